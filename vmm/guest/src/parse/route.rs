//! What a request line asks for.

use core::net::{IpAddr, Ipv6Addr};

/// What the guest answers over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    /// `GET /`: the page.
    Page,
    /// `GET /metadata`: the metadata as it was received.
    Metadata,
    /// `GET /identity`: generation id, a number drawn, the time.
    Identity,
    /// `/poweroff`, by GET or POST.
    PowerOff,
    /// `GET /ping?TARGET`: one ICMP echo to another address.
    Ping(IpAddr),
    /// `GET /fetch?http://ADDRESS[:PORT]/PATH`: another server's answer.
    Fetch(Url<'a>),
    /// `GET /disk`: the disks.
    Disks,
    /// `GET /disk/N`: one disk's size.
    Disk(usize),
    /// `GET /disk/N/SECTOR`: 512 bytes.
    ReadSector(usize, u64),
    /// `PUT` or `POST /disk/N/SECTOR`: at most 512 bytes, the rest of the sector becomes zeros.
    WriteSector(usize, u64),
}

/// Why a request line asks for nothing the guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteError {
    /// There is no such path.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// A number, an address or a URL in it is malformed.
    Malformed,
}

impl<'a> Route<'a> {
    /// Reads the method and the target of a request line.
    pub fn of(method: &str, target: &'a str) -> Result<Self, RouteError> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let reads = matches!(method, "GET" | "HEAD");
        let writes = matches!(method, "PUT" | "POST");
        let read = |route| if reads { Ok(route) } else { Err(RouteError::MethodNotAllowed) };
        match path {
            "/" | "/index.html" => return read(Route::Page),
            "/metadata" => return read(Route::Metadata),
            "/identity" => return read(Route::Identity),
            "/disk" => return read(Route::Disks),
            "/poweroff" if reads || writes => return Ok(Route::PowerOff),
            "/poweroff" => return Err(RouteError::MethodNotAllowed),
            "/ping" => return read(Route::Ping(number(query.ok_or(RouteError::Malformed)?)?)),
            "/fetch" => {
                return read(Route::Fetch(query.and_then(Url::parse).ok_or(RouteError::Malformed)?));
            }
            _ => {}
        }
        let disk = path.strip_prefix("/disk/").ok_or(RouteError::NotFound)?;
        match disk.split_once('/') {
            None => read(Route::Disk(number(disk)?)),
            Some((disk, sector)) if reads => Ok(Route::ReadSector(number(disk)?, number(sector)?)),
            Some((disk, sector)) if writes => Ok(Route::WriteSector(number(disk)?, number(sector)?)),
            Some(_) => Err(RouteError::MethodNotAllowed),
        }
    }
}

fn number<T: core::str::FromStr>(text: &str) -> Result<T, RouteError> {
    text.parse().map_err(|_| RouteError::Malformed)
}

/// An `http` URL whose host is an address: there is no name resolution here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Url<'a> {
    /// The host.
    pub address: IpAddr,
    /// The port, 80 if none is named.
    pub port: u16,
    /// Path and query, with the leading slash.
    pub target: &'a str,
}

impl<'a> Url<'a> {
    /// Reads `http://ADDRESS[:PORT][/PATH]`, an IPv6 address in brackets; a target of printable characters only, since it becomes a request line.
    pub fn parse(text: &'a str) -> Option<Self> {
        let rest = text.strip_prefix("http://")?;
        let (host, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (address, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((address, port)) => {
                let port = if port.is_empty() { "80" } else { port.strip_prefix(':')? };
                (IpAddr::V6(address.parse::<Ipv6Addr>().ok()?), port)
            }
            None => {
                let (address, port) = host.split_once(':').unwrap_or((host, "80"));
                (IpAddr::V4(address.parse().ok()?), port)
            }
        };
        let target = if target.is_empty() { "/" } else { target };
        let printable = target.bytes().all(|byte| byte.is_ascii_graphic());
        Some(Url { address, port: port.parse().ok()?, target }).filter(|_| printable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_routes() {
        let address = IpAddr::from([10, 0, 0, 7]);
        let url = Url { address, port: 8080, target: "/a?b=c" };
        for (method, target, route) in [
            ("GET", "/", Route::Page),
            ("HEAD", "/", Route::Page),
            ("GET", "/metadata", Route::Metadata),
            ("GET", "/identity", Route::Identity),
            ("POST", "/poweroff", Route::PowerOff),
            ("GET", "/poweroff", Route::PowerOff),
            ("GET", "/ping?10.0.0.7", Route::Ping(address)),
            ("GET", "/fetch?http://10.0.0.7:8080/a?b=c", Route::Fetch(url)),
            ("GET", "/disk", Route::Disks),
            ("GET", "/disk/1", Route::Disk(1)),
            ("GET", "/disk/0/100", Route::ReadSector(0, 100)),
            ("PUT", "/disk/0/100", Route::WriteSector(0, 100)),
            ("POST", "/disk/0/100", Route::WriteSector(0, 100)),
        ] {
            assert_eq!(Route::of(method, target), Ok(route), "{method} {target}");
        }
    }

    #[test]
    fn what_is_not_there_or_malformed_is_told_apart() {
        for (method, target, error) in [
            ("GET", "/nothing", RouteError::NotFound),
            ("GET", "", RouteError::NotFound),
            ("DELETE", "/", RouteError::MethodNotAllowed),
            ("DELETE", "/disk/0/1", RouteError::MethodNotAllowed),
            ("PUT", "/disk/0", RouteError::MethodNotAllowed),
            ("GET", "/ping", RouteError::Malformed),
            ("GET", "/ping?example.org", RouteError::Malformed),
            ("GET", "/fetch?https://10.0.0.7/", RouteError::Malformed),
            ("GET", "/disk/x", RouteError::Malformed),
            ("GET", "/disk/0/-1", RouteError::Malformed),
            ("GET", "/disk/0/99999999999999999999", RouteError::Malformed),
        ] {
            assert_eq!(Route::of(method, target), Err(error), "{method} {target}");
        }
    }

    #[test]
    fn url_without_path_asks_for_the_root_and_control_characters_are_refused() {
        let url = Url::parse("http://192.0.2.1").unwrap();
        assert_eq!((url.port, url.target), (80, "/"));
        assert_eq!(Url::parse("http://192.0.2.1/a b"), None);
        assert_eq!(Url::parse("http://192.0.2.1/a\r\nHost: b"), None);
    }
}
