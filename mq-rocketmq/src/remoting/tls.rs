//! TLS towards brokers and nameservers.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::error::RemotingError;

/// How TLS is set up.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TlsOptions {
    /// A PEM file with the authorities to trust; the system's are trusted if there is none.
    pub ca_file: Option<PathBuf>,
    /// A PEM file with the client's certificate chain.
    pub certificate_file: Option<PathBuf>,
    /// A PEM file with the client's private key.
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must carry, in place of the host that is connected to.
    pub server_name: Option<String>,
    /// Accepts any certificate, as RocketMQ's own clients do by default; traffic can then be read by anyone who
    /// stands in between.
    pub insecure: bool,
}

/// TLS ready for use; cheap to clone.
#[derive(Clone)]
pub struct TlsSetup {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl fmt::Debug for TlsSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSetup")
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

impl TlsSetup {
    /// Reads the files that the options name. It blocks on the file system.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Config`] when a file cannot be read or used.
    pub fn new(options: &TlsOptions) -> Result<Self, RemotingError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| config("tls", error.to_string()))?;
        let builder = if options.insecure {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        } else {
            builder.with_root_certificates(roots(options.ca_file.as_deref())?)
        };
        let client = match (&options.certificate_file, &options.key_file) {
            (Some(chain), Some(key)) => builder
                .with_client_auth_cert(certificates(chain)?, private_key(key)?)
                .map_err(|error| config("client certificate", error.to_string()))?,
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(config("client certificate", "certificate and key go together")),
        };
        let server_name = options
            .server_name
            .clone()
            .map(ServerName::try_from)
            .transpose()
            .map_err(|_| config("server name", "neither a host name nor an address"))?;
        Ok(Self {
            config: Arc::new(client),
            server_name,
        })
    }

    pub(super) async fn connect(&self, address: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(io::Error::other)?
            }
        };
        TlsConnector::from(self.config.clone())
            .connect(name, stream)
            .await
    }
}

fn config(option: &'static str, rule: impl Into<std::borrow::Cow<'static, str>>) -> RemotingError {
    RemotingError::Config {
        option,
        rule: rule.into(),
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, RemotingError> {
    let mut roots = RootCertStore::empty();
    let found = match ca_file {
        Some(path) => certificates(path)?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(found);
    if roots.is_empty() {
        return Err(config("certificate authorities", "none could be read"));
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RemotingError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| config("certificate file", format!("{}: {error}", path.display())))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, RemotingError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| config("key file", format!("{}: {error}", path.display())))
}

/// Accepts every certificate; only signatures of the handshake are checked.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
