//! TLS by rustls: the certificate that is shown, and how it is replaced while connections run.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// The protocols that are spoken, the better one first (RFC 7301).
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// The most certificates of a chain: more than a few is a mistake, and every handshake sends them all.
const CHAIN_LENGTH_MAX: usize = 10;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain of certificates is no PEM file of certificates.
    #[error("read the certificates")]
    Certificates(#[source] pem::Error),
    /// There is none in it, or there are too many.
    #[error("a chain has 1 to {CHAIN_LENGTH_MAX} certificates, not {0}")]
    Length(usize),
    /// The key is no PEM file of a private key.
    #[error("read the private key")]
    Key(#[source] pem::Error),
    /// The key is of a kind that is not used, or not the certificate's.
    #[error("use the certificate with its key")]
    Pair(#[source] rustls::Error),
    /// The protocol cannot be set up.
    #[error("set TLS up")]
    Setup(#[source] rustls::Error),
}

/// What a listener needs to speak TLS.
#[derive(Debug)]
pub struct Tls {
    acceptor: Acceptor,
    shown: Arc<Shown>,
}

struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

/// The certificate that is shown to new connections.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// Shows the certificates of a PEM file, the server's own first, with the private key of another.
    pub fn open(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
        let shown = Arc::new(Shown(RwLock::new(Arc::new(pair(certificates, key)?))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = PROTOCOLS.iter().map(|name| name.to_vec()).collect();
        Ok(Self { acceptor: Acceptor(TlsAcceptor::from(Arc::new(config))), shown })
    }

    /// Shows what the files hold now to whoever comes from now on. If they cannot be used, all stays as it is.
    pub fn reload(&self, certificates: &Path, key: &Path) -> Result<(), TlsError> {
        let pair = Arc::new(pair(certificates, key)?);
        *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = pair;
        Ok(())
    }

    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.0.accept(stream).await
    }
}

/// Whether these files can be used.
pub fn check(certificates: &Path, key: &Path) -> Result<(), TlsError> {
    pair(certificates, key).map(drop)
}

fn pair(certificates: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(|found| found.take(CHAIN_LENGTH_MAX + 1).collect::<Result<Vec<_>, _>>())
        .map_err(TlsError::Certificates)?;
    if chain.is_empty() || chain.len() > CHAIN_LENGTH_MAX {
        return Err(TlsError::Length(chain.len()));
    }
    let key = PrivateKeyDer::from_pem_file(key).map_err(TlsError::Key)?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(TlsError::Pair)
}
