//! TLS, by rustls.

use std::io;

use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use mq_api::{Error, ErrorKind, Result};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::config::AmqpConfig;

/// Puts TLS on a connection where the configuration asks for it.
pub(crate) struct Tls(Option<RustlsConnector>);

impl Tls {
    pub(crate) fn new(config: &AmqpConfig) -> Result<Self> {
        if !config.tls {
            return Ok(Self(None));
        }
        let broken = |error: io::Error| Error::new(ErrorKind::Tls, error.to_string());
        let trust = match &config.tls_ca {
            None => RustlsConnectorConfig::new_with_native_certs().map_err(broken)?,
            Some(file) => {
                let unreadable = |what: &dyn std::fmt::Display| {
                    Error::new(
                        ErrorKind::InvalidConfig,
                        format!("tls_ca {}: {what}", file.display()),
                    )
                };
                let certificates = CertificateDer::pem_file_iter(file)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|e| unreadable(&e))?;
                if certificates.is_empty() {
                    return Err(unreadable(&"it holds no certificate"));
                }
                let mut trust = RustlsConnectorConfig::default();
                trust.add_parsable_certificates(certificates);
                trust
            }
        };
        let connector = trust.connector_with_no_client_auth().map_err(broken)?;
        Ok(Self(Some(connector)))
    }

    pub(crate) async fn wrap<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: AsyncTcpStream<S>,
        host: &str,
    ) -> io::Result<AsyncTcpStream<S>> {
        match &self.0 {
            None => Ok(stream),
            Some(connector) => stream
                .into_rustls(connector, host)
                .await
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e)),
        }
    }
}
