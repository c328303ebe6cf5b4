//! TLS, by rustls.

use std::sync::Arc;

use mq_api::{Error, ErrorKind, Result};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};

use crate::{config::RedisConfig, dial::Stream};

pub(crate) async fn connect(config: &RedisConfig, stream: TcpStream) -> Result<Box<dyn Stream>> {
    let name = ServerName::try_from(config.host.clone()).map_err(|error| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("host {:?} is no name or address", config.host),
        )
        .with_source(error)
    })?;
    let connector = TlsConnector::from(Arc::new(client_config(config)?));
    match connector.connect(name, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(Error::new(
            ErrorKind::Tls,
            format!("server {}: the TLS handshake failed: {error}", config.address()),
        )),
    }
}

fn client_config(config: &RedisConfig) -> Result<ClientConfig> {
    let broken = |error: tokio_rustls::rustls::Error| Error::new(ErrorKind::Tls, error.to_string());
    Ok(
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(broken)?
            .with_root_certificates(roots(config)?)
            .with_no_client_auth(),
    )
}

/// Trusts the named authority alone, else what the system trusts.
fn roots(config: &RedisConfig) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let Some(file) = &config.tls_ca else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Error::new(
                ErrorKind::Tls,
                "the system has no trusted certificates; name a file of them with `tls_ca`",
            ));
        }
        return Ok(roots);
    };
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::new(
            ErrorKind::InvalidConfig,
            format!("tls_ca {}: {error}", file.display()),
        )
    };
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| unreadable(&error))? {
        roots
            .add(certificate.map_err(|error| unreadable(&error))?)
            .map_err(|error| unreadable(&error))?;
    }
    if roots.is_empty() {
        return Err(unreadable(&"it holds no certificate"));
    }
    Ok(roots)
}
