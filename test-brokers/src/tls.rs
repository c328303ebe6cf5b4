//! Certificates for TLS listeners.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::error::Context;
use crate::{Error, Result};

/// A certificate authority of its own, and a server's certificate that it signed, as PEM files in one folder.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes an authority and a certificate for `names` (host names or addresses) in `folder`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that cannot stand in a certificate, [`Error::Io`] where a file cannot be
    /// written.
    pub fn generate(folder: &Path, names: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder).context(format!("cannot make {}", folder.display()))?;
        let this = Self {
            folder: folder.to_path_buf(),
        };
        let (ca, server, key) = sign(names).map_err(|cause| Error::Invalid {
            what: "a certificate's names".into(),
            value: format!("{names:?}: {cause}"),
        })?;
        this.write(&this.ca_file(), &ca)?;
        this.write(&this.certificate_file(), &server)?;
        this.write(&this.key_file(), &key)?;
        this.write(&this.key_and_chain_file(), &format!("{key}{server}{ca}"))?;
        Ok(this)
    }

    /// Returns the file with the authority's certificate, which clients are to trust.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Returns the file with the server's certificate.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// Returns the file with the server's key (PKCS#8).
    #[must_use]
    pub fn key_file(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// Returns the file with the server's key, its certificate and the authority's, in this order.
    #[must_use]
    pub fn key_and_chain_file(&self) -> PathBuf {
        self.folder.join("server-key-and-chain.pem")
    }

    fn write(&self, path: &Path, text: &str) -> Result<()> {
        fs::write(path, text).context(format!("cannot write {}", path.display()))
    }
}

/// Returns the authority's certificate, the server's and the server's key, as PEM.
fn sign(names: &[&str]) -> Result<(String, String, String), rcgen::Error> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name
        .push(DnType::CommonName, "mq test authority");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let issuer = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut server = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    server
        .distinguished_name
        .push(DnType::CommonName, names.first().copied().unwrap_or("localhost"));
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &issuer)?;
    Ok((issuer.pem(), certificate.pem(), key.serialize_pem()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_authorities_differ() {
        let folder = tempfile::tempdir().unwrap();
        let one = Certificates::generate(&folder.path().join("1"), &["localhost", "127.0.0.1"]).unwrap();
        let two = Certificates::generate(&folder.path().join("2"), &["other.test"]).unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        assert_ne!(read(one.ca_file()), read(two.ca_file()));
        assert!(read(one.key_file()).contains("BEGIN PRIVATE KEY"));
        assert_eq!(
            read(one.key_and_chain_file())
                .matches("BEGIN CERTIFICATE")
                .count(),
            2
        );
    }
}
