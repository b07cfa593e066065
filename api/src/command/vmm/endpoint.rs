//! What a guest without a cloud is answered on a tap: its address by DHCP, and metadata, from words and a directory.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, ensure};
use ipnet::Ipv4Net;
use vmm::config::{Addressing, EndpointConfig, Ipv4Config};
use vmm::document::Document;
use vmm::endpoint::METADATA_ADDRESS;

use super::words::Said;

/// How long an address is given for, in seconds: a day, as in a cloud.
const LEASE_S: u32 = 86_400;
/// The most of all metadata in bytes, of which the VMM keeps a copy for each network device, and the most documents.
const METADATA_BYTES_MAX: u64 = 1 << 20;
const DOCUMENTS_MAX: usize = 1024;
/// The deepest of them: what is deeper is a directory that leads into itself.
const DEPTH_MAX: usize = 16;

/// What DHCP gives, of the words `address`, `gateway`, `dns` and `hostname`; nothing without an address.
///
/// # Errors
/// A value is none, or says something of a guest that has no address.
pub(super) fn addressing(said: &Said<'_>) -> Result<Option<Addressing>, String> {
    let text = |word: &str| {
        let value = said.get(word).map(|value| value.to_str().ok_or(format!("{word}= takes text")));
        value.transpose()
    };
    let Some(address) = text("address")? else {
        return match ["gateway", "dns", "hostname"].iter().find(|word| said.contains_key(**word)) {
            Some(word) => {
                Err(format!("`{word}=` is told a guest that is given an address: say `address=A/N` too"))
            }
            None => Ok(None),
        };
    };
    let net: Ipv4Net = address.parse().map_err(|_| {
        format!("`{address}` is none: address=A/N takes an IPv4 address and its prefix, as 10.0.0.5/24")
    })?;
    let is_a_host = net.prefix_len() >= 31 || (net.addr() != net.network() && net.addr() != net.broadcast());
    if net.prefix_len() == 0 || net.addr().is_unspecified() || net.addr().is_multicast() || !is_a_host {
        return Err(format!("`{address}` is the address of no host in its subnet"));
    }
    let one = |word: &str, text: &str| {
        text.parse::<Ipv4Addr>().map_err(|_| format!("`{text}` is none: {word}= takes an IPv4 address"))
    };
    let gateway = text("gateway")?.map(|gateway| one("gateway", gateway)).transpose()?;
    if let Some(gateway) = gateway.filter(|gateway| !net.contains(gateway) || *gateway == net.addr()) {
        return Err(format!("the gateway {gateway} is no other host of the subnet of {net}"));
    }
    let dns =
        text("dns")?.map_or(Ok(Vec::new()), |dns| dns.split('+').map(|dns| one("dns", dns)).collect())?;
    let ipv4 = Ipv4Config {
        address: net.addr(),
        prefix_len: net.prefix_len(),
        gateway,
        // Nobody's on the link, so that none is taken from it.
        dhcp_server: METADATA_ADDRESS,
        dns,
        routes: Vec::new(),
        options: Vec::new(),
    };
    let hostname = text("hostname")?.unwrap_or_default().to_owned();
    Ok(Some(Addressing { ipv4: Some(ipv4), hostname, lease_s: LEASE_S, ..Addressing::default() }))
}

/// The endpoint of a device, if anything is to be answered there.
pub(super) fn endpoint(
    addressing: Option<&Addressing>,
    metadata: &BTreeMap<String, Document>,
) -> Option<EndpointConfig> {
    let answers = addressing.is_some() || !metadata.is_empty();
    let addressing = addressing.cloned().unwrap_or_default();
    answers.then(|| EndpointConfig { addressing, metadata: metadata.clone() })
}

/// All files below `directory`, by the paths at which a guest finds them.
///
/// # Errors
/// One cannot be read, or there is too much of them.
pub(super) fn metadata(directory: &Path) -> anyhow::Result<BTreeMap<String, Document>> {
    let mut documents = BTreeMap::new();
    let mut left = METADATA_BYTES_MAX;
    collect(directory, "", &mut documents, &mut left)
        .with_context(|| format!("read the metadata in {}", directory.display()))?;
    Ok(documents)
}

fn collect(
    directory: &Path,
    below: &str,
    documents: &mut BTreeMap<String, Document>,
    left: &mut u64,
) -> anyhow::Result<()> {
    ensure!(below.matches('/').count() < DEPTH_MAX, "{below} lies deeper than {DEPTH_MAX} directories");
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("the name of {} is no text", path.display()))?;
        let at = format!("{below}/{name}");
        let found = fs::metadata(&path).with_context(|| path.display().to_string())?;
        if found.is_dir() {
            collect(&path, &at, documents, left)?;
            continue;
        }
        ensure!(found.is_file(), "{} is no regular file", path.display());
        ensure!(documents.len() < DOCUMENTS_MAX, "there are more than {DOCUMENTS_MAX} files");
        let kib = METADATA_BYTES_MAX >> 10;
        *left = left.checked_sub(found.len()).with_context(|| format!("there are more than {kib} KiB"))?;
        let body = fs::read(&path).with_context(|| path.display().to_string())?;
        documents.insert(at, body.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn read(words: &[(&'static str, &'static str)]) -> Result<Option<Addressing>, String> {
        addressing(&words.iter().map(|(word, value)| (*word, OsStr::new(*value))).collect())
    }

    #[test]
    fn address_with_what_belongs_to_it_is_given_by_one_who_takes_none_of_the_subnets() {
        assert_eq!(read(&[]), Ok(None));
        let words = [
            ("address", "10.0.0.5/24"),
            ("gateway", "10.0.0.1"),
            ("dns", "10.0.0.2+9.9.9.9"),
            ("hostname", "web"),
        ];
        let given = read(&words).unwrap().unwrap();
        let ipv4 = given.ipv4.unwrap();
        assert_eq!((ipv4.address, ipv4.prefix_len), (Ipv4Addr::new(10, 0, 0, 5), 24));
        assert_eq!((ipv4.gateway, ipv4.dhcp_server), (Some(Ipv4Addr::new(10, 0, 0, 1)), METADATA_ADDRESS));
        assert_eq!((ipv4.dns.len(), given.hostname.as_str(), given.lease_s), (2, "web", 86_400));
        for alone in ["10.0.0.5/31", "10.0.0.4/31", "10.0.0.5/32"] {
            assert!(read(&[("address", alone)]).is_ok(), "{alone}");
        }
    }

    #[test]
    fn what_no_guest_could_use_is_refused_with_what_could_be_said() {
        for (words, why) in [
            (vec![("address", "10.0.0.5")], "as 10.0.0.5/24"),
            (vec![("address", "fe80::1/64")], "IPv4 address and its prefix"),
            (vec![("address", "10.0.0.0/24")], "no host"),
            (vec![("address", "10.0.0.255/24")], "no host"),
            (vec![("address", "224.0.0.1/24")], "no host"),
            (vec![("address", "10.0.0.5/0")], "no host"),
            (vec![("address", "10.0.0.5/24"), ("gateway", "10.0.1.1")], "no other host of the subnet"),
            (vec![("address", "10.0.0.5/24"), ("gateway", "10.0.0.5")], "no other host of the subnet"),
            (vec![("address", "10.0.0.5/24"), ("gateway", "x")], "gateway= takes an IPv4 address"),
            (vec![("address", "10.0.0.5/24"), ("dns", "1.1.1.1+")], "dns= takes an IPv4 address"),
            (vec![("hostname", "web")], "say `address=A/N` too"),
        ] {
            let error = read(&words).unwrap_err();
            assert!(error.contains(why), "{words:?}: {error}");
        }
    }

    #[test]
    fn files_below_a_directory_are_documents_at_their_paths() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("openstack/latest")).unwrap();
        fs::write(at("openstack/latest/meta_data.json"), "{}").unwrap();
        fs::write(at("id"), [0xff, 0]).unwrap();
        let found = metadata(directory.path()).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["/id", "/openstack/latest/meta_data.json"]);
        assert_eq!(found["/id"].as_bytes(), [0xff, 0]);
        assert!(endpoint(None, &BTreeMap::new()).is_none());
        assert_eq!(endpoint(None, &found).unwrap().metadata, found);

        std::os::unix::fs::symlink(".", at("loop")).unwrap();
        let error = format!("{:#}", metadata(directory.path()).unwrap_err());
        assert!(error.contains("deeper than 16") || error.contains("more than"), "{error}");
        fs::remove_file(at("loop")).unwrap();
        fs::File::create(at("large")).unwrap().set_len(METADATA_BYTES_MAX).unwrap();
        let error = format!("{:#}", metadata(directory.path()).unwrap_err());
        assert!(error.contains("more than 1024 KiB"), "{error}");
        assert!(metadata(&at("none")).is_err());
    }
}
