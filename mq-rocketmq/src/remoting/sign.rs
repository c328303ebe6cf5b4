//! The signature of access control.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::error::RemotingError;
use super::frame::EncodeBody;
use super::header::{Fields, Request};

const ACCESS_KEY: &str = "AccessKey";
const SECURITY_TOKEN: &str = "SecurityToken";
const SIGNATURE: &str = "Signature";

/// Who a client is, for access control. `Debug` shows the access key only.
#[derive(Clone)]
pub struct Credentials {
    access_key: String,
    secret_key: String,
    security_token: Option<String>,
}

impl Credentials {
    /// Makes credentials of a user and its secret.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            security_token: None,
        }
    }

    /// Adds the token of temporary credentials.
    #[must_use]
    pub fn with_security_token(mut self, token: impl Into<String>) -> Self {
        self.security_token = Some(token.into());
        self
    }

    /// Signs a request: HMAC-SHA1 over the values of all fields in the order of their names, then the body.
    ///
    /// # Errors
    ///
    /// What the body's encoder says.
    pub fn sign<R: Request + ?Sized, B: EncodeBody + ?Sized>(
        &self,
        request: &R,
        body: &B,
    ) -> Result<String, RemotingError> {
        let mut list = Vec::new();
        request.write(&mut Fields::list(&mut list));
        list.push((ACCESS_KEY, self.access_key.clone()));
        if let Some(token) = &self.security_token {
            list.push((SECURITY_TOKEN, token.clone()));
        }
        list.sort_by_key(|(name, _)| *name);
        let mut mac =
            Hmac::<Sha1>::new_from_slice(self.secret_key.as_bytes()).map_err(|_| RemotingError::Config {
                option: "secret key",
                rule: "not usable as a key".into(),
            })?;
        for (_, value) in &list {
            mac.update(value.as_bytes());
        }
        let mut bytes = BytesMut::new();
        body.encode(&mut bytes)?;
        mac.update(&bytes);
        Ok(STANDARD.encode(mac.finalize().into_bytes()))
    }

    pub(super) fn write(&self, fields: &mut Fields<'_>, signature: &str) {
        fields.put(ACCESS_KEY, self.access_key.as_str());
        fields.put(SECURITY_TOKEN, self.security_token.as_deref());
        fields.put(SIGNATURE, signature);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remoting::{MinOffset, Plain};

    #[test]
    fn the_signature_covers_sorted_values_and_the_body() {
        let credentials = Credentials::new("admin", "admin-secret");
        let request = MinOffset {
            topic: "T",
            queue: 3,
            broker: Some("broker-a"),
        };
        // AccessKey bname queueId topic, made with Python's hmac module.
        assert_eq!(credentials.sign(&request, b"body".as_slice()).unwrap(), SIGNED);
        assert_ne!(credentials.sign(&request, b"other".as_slice()).unwrap(), SIGNED);
        assert_ne!(credentials.sign(&Plain(34), b"body".as_slice()).unwrap(), SIGNED);
        assert!(!format!("{credentials:?}").contains("admin-secret"));
    }

    const SIGNED: &str = "3W7R5wUuMUA/qaG3oT22IwGoLvQ=";
}
