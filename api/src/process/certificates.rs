//! Where the API's certificate comes from: files of the operator's, or a certificate authority of the cloud's own. The
//! control process reads a copy in its own directory, since it may read nothing else.
//!
//! Must never know: who connects.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::privileges::User;
use super::state_directory::StateDirectory;
use crate::server::tls;

/// The copies that the control process reads, below the cloud's directory.
pub const CERTIFICATE: &str = "control/tls-certificate.pem";
/// The key beside it.
pub const KEY: &str = "control/tls-key.pem";
/// How long the cloud's own authority holds.
const AUTHORITY_YEARS: i32 = 10;
/// How long a certificate holds that it gives; every start and every SIGHUP gives a new one.
const CERTIFICATE_YEARS: i32 = 2;
/// The longest certificate or key file in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whether TLS is spoken, and with whose certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The cloud's own authority gives one for the names the API has.
    Generated,
    /// The operator's files.
    Files {
        /// A PEM file, the server's own certificate first.
        certificate: PathBuf,
        /// A PEM file.
        key: PathBuf,
        /// The authority that clients are told to trust, where they do not already.
        authority: Option<PathBuf>,
    },
}

impl Source {
    /// Puts the certificate and its key where the control process reads them, and says which authority clients trust
    /// it by; `None` is one they know anyway. `names` are the API's.
    pub fn provide(
        &self,
        directory: &StateDirectory,
        control: User,
        names: &[String],
    ) -> anyhow::Result<Option<PathBuf>> {
        let (certificate, key, authority) = match self {
            Self::Generated => {
                let (certificate, key) = generate(directory, names)?;
                (certificate, key, Some(authority_file(directory)))
            }
            Self::Files { certificate, key, authority } => {
                tls::check(certificate, key)
                    .with_context(|| format!("use {} with {}", certificate.display(), key.display()))?;
                let authority = authority.as_deref().map(std::path::absolute).transpose()?;
                (read(certificate)?, read(key)?, authority)
            }
        };
        for (place, text) in [(CERTIFICATE, certificate), (KEY, key)] {
            directory.write_secret(&directory.path().join(place), control, &text)?;
        }
        Ok(authority)
    }
}

/// The names by which clients reach an API: where it listens, what its URL says, and this machine.
pub fn names(listen: SocketAddr, public_url: &str) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !listen.ip().is_unspecified() {
        names.push(listen.ip().to_string());
    }
    let authority = public_url.split_once("://").map_or(public_url, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    names.push(host.to_owned());
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    names.push(hostname.trim().to_owned());
    names.sort();
    names.dedup();
    names.retain(|name| !name.is_empty() && name.is_ascii());
    names
}

fn authority_file(directory: &StateDirectory) -> PathBuf {
    directory.path().join("ca.pem")
}

/// A new certificate for `names` and its key, as PEM, by the cloud's own authority, which is made if it is not there.
fn generate(directory: &StateDirectory, names: &[String]) -> anyhow::Result<(String, String)> {
    let key_file = directory.path().join("ca-key.pem");
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "Wisp certificate authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    hold(&mut authority, AUTHORITY_YEARS)?;
    let authority_key = if key_file.exists() && authority_file(directory).exists() {
        KeyPair::from_pem(&read(&key_file)?).context("read the authority's key")?
    } else {
        let key = KeyPair::generate().context("make the authority's key")?;
        let certificate = authority.self_signed(&key).context("make the authority's certificate")?;
        let owner = User::current();
        directory.write_secret(&key_file, owner, &key.serialize_pem())?;
        let file = authority_file(directory);
        std::fs::write(&file, certificate.pem()).with_context(|| format!("write {}", file.display()))?;
        key
    };
    let mut params = CertificateParams::new(names).context("name the API in a certificate")?;
    params.distinguished_name.push(DnType::CommonName, "Wisp API");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    hold(&mut params, CERTIFICATE_YEARS)?;
    let key = KeyPair::generate().context("make the API's key")?;
    let issuer = Issuer::new(authority, authority_key);
    let certificate = params.signed_by(&key, &issuer).context("make the API's certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// From yesterday, since clocks differ, for so many years.
fn hold(params: &mut CertificateParams, years: i32) -> anyhow::Result<()> {
    let from = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date().yesterday()?;
    let day = |year: i16| {
        // The 29th of February comes in leap years only.
        let day = u8::try_from(from.day().min(28)).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(year), u8::try_from(from.month()).unwrap_or(1), day)
    };
    params.not_before = day(from.year());
    params.not_after = day(from.year().saturating_add(i16::try_from(years).unwrap_or(1)));
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let length = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len();
    if length > FILE_BYTES_MAX {
        bail!("{} has {length} bytes: it is no certificate or key", path.display());
    }
    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn names_are_those_of_the_url_and_of_the_address() {
        let names = names("10.0.0.1:5000".parse().unwrap(), "https://[2001:db8::1]:5000/cloud");
        for name in ["10.0.0.1", "2001:db8::1", "localhost", "127.0.0.1"] {
            assert!(names.iter().any(|found| found == name), "{name}");
        }
        assert!(names.iter().all(|name| name.parse::<IpAddr>().is_ok() || !name.contains(':')));
    }

    #[test]
    fn authority_stays_and_its_certificates_can_be_used() {
        let place = tempfile::tempdir().unwrap();
        let directory = StateDirectory::at(place.path()).unwrap();
        let user = directory.control_user().unwrap();
        directory.create_parts(user).unwrap();
        let names = ["cloud.test".to_owned(), "127.0.0.1".to_owned()];
        let authority = Source::Generated.provide(&directory, user, &names).unwrap().unwrap();
        let first = std::fs::read(&authority).unwrap();
        let (certificate, key) = (place.path().join(CERTIFICATE), place.path().join(KEY));
        let given = std::fs::read(&certificate).unwrap();
        tls::check(&certificate, &key).unwrap();
        Source::Generated.provide(&directory, user, &names).unwrap();
        assert_eq!(std::fs::read(&authority).unwrap(), first);
        assert_ne!(std::fs::read(&certificate).unwrap(), given);
        tls::check(&certificate, &key).unwrap();
        assert!(tls::check(&authority, &key).is_err());
        assert!(tls::check(&key, &key).is_err());
    }
}
