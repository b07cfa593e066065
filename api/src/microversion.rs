//! Microversions: which are offered, which a request asks for, and what the answer says of it
//! (Compute API guide: Microversions; the same scheme in volume and placement).

use std::fmt;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::context::Service;
use crate::error::Fault;

const VERSION: HeaderName = HeaderName::from_static("openstack-api-version");
const VERSION_NOVA: HeaderName = HeaderName::from_static("x-openstack-nova-api-version");

/// The version in which a request is to be understood and answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Microversion {
    /// Before the dot.
    pub major: u16,
    /// After it.
    pub minor: u16,
}

impl Microversion {
    /// `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Whether what came with `major.minor` applies.
    pub fn at_least(self, major: u16, minor: u16) -> bool {
        self >= Self::new(major, minor)
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let digits = |part: &str| {
            (!part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit()))
                .then(|| part.parse().ok())
                .flatten()
        };
        Some(Self::new(digits(major)?, digits(minor)?))
    }
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a service offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// The service's name in the header.
    pub name: &'static str,
    /// The oldest, which holds when none is asked for.
    pub minimum: Microversion,
    /// The newest, which `latest` means.
    pub maximum: Microversion,
}

/// What Nova offers.
pub const COMPUTE: Offer =
    Offer { name: "compute", minimum: Microversion::new(2, 1), maximum: Microversion::new(2, 100) };
/// What Cinder offers.
pub const VOLUME: Offer =
    Offer { name: "volume", minimum: Microversion::new(3, 0), maximum: Microversion::new(3, 71) };
/// What Placement offers.
pub const PLACEMENT: Offer =
    Offer { name: "placement", minimum: Microversion::new(1, 0), maximum: Microversion::new(1, 39) };

/// What a service offers, if it has microversions.
pub fn offer(service: Service) -> Option<Offer> {
    match service {
        Service::Compute => Some(COMPUTE),
        Service::Volume => Some(VOLUME),
        Service::Placement => Some(PLACEMENT),
        Service::Identity | Service::Image | Service::Network => None,
    }
}

impl Offer {
    /// The version that the request's headers ask for: 400 if malformed, 406 if out of range.
    pub fn asked(&self, headers: &HeaderMap) -> Result<Microversion, Fault> {
        let Some(text) = self.header(headers) else { return Ok(self.minimum) };
        if text.eq_ignore_ascii_case("latest") {
            return Ok(self.maximum);
        }
        let version = Microversion::parse(text).ok_or_else(|| {
            Fault::malformed(format!(
                "API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum."
            ))
        })?;
        if version < self.minimum || version > self.maximum {
            return Err(Fault::NotAcceptable(format!(
                "Version {version} is not supported by the API. Minimum is {} and maximum is {}.",
                self.minimum, self.maximum
            )));
        }
        Ok(version)
    }

    /// `OpenStack-API-Version: compute 2.100` wins over Nova's older header; other services' entries are not ours.
    fn header<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let common = headers.get_all(VERSION).iter().filter_map(|value| value.to_str().ok());
        let ours = common.flat_map(|value| value.split(',')).find_map(|entry| {
            let (name, version) = entry.trim().split_once(char::is_whitespace)?;
            name.eq_ignore_ascii_case(self.name).then(|| version.trim())
        });
        ours.or_else(|| {
            let value = (self.name == COMPUTE.name).then(|| headers.get(VERSION_NOVA)).flatten()?;
            value.to_str().ok().map(str::trim)
        })
    }

    /// Says in the answer which version it is in, and that it depends on the headers.
    pub fn echo(&self, version: Option<Microversion>, headers: &mut HeaderMap) {
        headers.append(header::VARY, HeaderValue::from_static("OpenStack-API-Version"));
        let nova = self.name == COMPUTE.name;
        if nova {
            headers.append(header::VARY, HeaderValue::from_static("X-OpenStack-Nova-API-Version"));
        }
        let Some(version) = version else { return };
        if let Ok(value) = HeaderValue::from_str(&format!("{} {version}", self.name)) {
            headers.insert(VERSION, value);
        }
        if nova && let Ok(value) = HeaderValue::from_str(&version.to_string()) {
            headers.insert(VERSION_NOVA, value);
        }
    }
}

/// The frame has already found it; a service without microversions has none to ask for.
impl<S: Send + Sync> FromRequestParts<S> for Microversion {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        parts.extensions.get::<Self>().copied().ok_or(Fault::NoRoute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &'static str, value: &str) -> Result<Microversion, Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        COMPUTE.asked(&headers)
    }

    #[test]
    fn no_header_means_the_minimum_and_latest_the_maximum() {
        assert_eq!(COMPUTE.asked(&HeaderMap::new()).unwrap(), Microversion::new(2, 1));
        assert_eq!(asked("openstack-api-version", "compute latest").unwrap(), Microversion::new(2, 100));
        assert_eq!(asked("x-openstack-nova-api-version", "2.47").unwrap(), Microversion::new(2, 47));
    }

    #[test]
    fn another_services_version_is_not_ours() {
        assert_eq!(asked("openstack-api-version", "volume 3.71").unwrap(), Microversion::new(2, 1));
        assert_eq!(
            asked("openstack-api-version", "volume 3.71, compute 2.5").unwrap(),
            Microversion::new(2, 5)
        );
    }

    #[test]
    fn out_of_range_is_not_acceptable_and_nonsense_is_malformed() {
        assert!(matches!(asked("openstack-api-version", "compute 2.101"), Err(Fault::NotAcceptable(_))));
        assert!(matches!(asked("openstack-api-version", "compute 2.99999999"), Err(Fault::Malformed(_))));
        assert!(matches!(asked("openstack-api-version", "compute 2.-1"), Err(Fault::Malformed(_))));
    }
}
