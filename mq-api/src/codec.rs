//! Typed payloads.

use bytes::Bytes;

use crate::{Error, ErrorKind, Message, Result};

/// Turns values into payloads.
pub trait Encode<T: ?Sized> {
    /// Encodes a value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] where the format has no form for it.
    fn encode(&self, value: &T) -> Result<Bytes>;
}

/// Turns payloads back into values.
pub trait Decode<T> {
    /// Decodes a payload.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] where it is not of the format. The error does not show the payload.
    fn decode(&self, payload: &[u8]) -> Result<T>;
}

impl Message {
    /// Makes a message of a value by a codec.
    ///
    /// ```
    /// # use bytes::Bytes;
    /// # use mq_api::{Encode, Message};
    /// struct Text;
    /// impl Encode<str> for Text {
    ///     fn encode(&self, value: &str) -> mq_api::Result<Bytes> {
    ///         Ok(Bytes::copy_from_slice(value.as_bytes()))
    ///     }
    /// }
    /// # fn main() -> mq_api::Result<()> {
    /// let message = Message::encode(&Text, "paid")?;
    /// assert_eq!(message.payload_or_empty(), b"paid");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the codec says.
    pub fn encode<T: ?Sized>(codec: &impl Encode<T>, value: &T) -> Result<Self> {
        Ok(Self::new(codec.encode(value)?))
    }

    /// Decodes the payload by a codec.
    ///
    /// ```
    /// # use mq_api::{Decode, Message};
    /// struct Text;
    /// impl Decode<String> for Text {
    ///     fn decode(&self, payload: &[u8]) -> mq_api::Result<String> {
    ///         Ok(String::from_utf8_lossy(payload).into_owned())
    ///     }
    /// }
    /// # fn main() -> mq_api::Result<()> {
    /// let text: String = Message::new("paid").decode(&Text)?;
    /// assert_eq!(text, "paid");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`] for a tombstone, and what the codec says.
    pub fn decode<T>(&self, codec: &impl Decode<T>) -> Result<T> {
        match self.payload() {
            Some(payload) => codec.decode(payload),
            None => Err(Error::new(
                ErrorKind::InvalidMessage,
                "a tombstone has no payload to decode",
            )),
        }
    }
}

#[cfg(feature = "json")]
pub use self::json::Json;

#[cfg(feature = "json")]
mod json {
    use bytes::Bytes;
    use serde::{Serialize, de::DeserializeOwned};
    use serde_json::error::Category;

    use super::{Decode, Encode};
    use crate::{Error, ErrorKind, Message, Result};

    /// Encodes and decodes JSON through `serde`.
    ///
    /// ```
    /// use mq_api::{Json, Message};
    ///
    /// # fn main() -> mq_api::Result<()> {
    /// let message = Message::encode(&Json, &vec![1, 2])?;
    /// assert_eq!(message.payload_or_empty(), b"[1,2]");
    /// assert_eq!(message.decode::<Vec<u32>>(&Json)?, [1, 2]);
    /// # Ok(()) }
    /// ```
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Json;

    impl<T: Serialize + ?Sized> Encode<T> for Json {
        fn encode(&self, value: &T) -> Result<Bytes> {
            match serde_json::to_vec(value) {
                Ok(json) => Ok(json.into()),
                Err(_) => Err(Error::new(
                    ErrorKind::InvalidMessage,
                    format!("a {} has no form in JSON", std::any::type_name::<T>()),
                )),
            }
        }
    }

    impl<T: DeserializeOwned> Decode<T> for Json {
        fn decode(&self, payload: &[u8]) -> Result<T> {
            // The text of serde's error shows pieces of the payload, so only the place is kept.
            serde_json::from_slice(payload).map_err(|error| {
                let fault = match error.classify() {
                    Category::Data => "does not fit",
                    Category::Eof => "ends too early for",
                    Category::Syntax | Category::Io => "is not JSON, wanted for",
                };
                Error::new(
                    ErrorKind::InvalidMessage,
                    format!(
                        "the payload {fault} a {}, line {} column {}",
                        std::any::type_name::<T>(),
                        error.line(),
                        error.column()
                    ),
                )
            })
        }
    }

    impl Message {
        /// Makes a message of a value as JSON.
        ///
        /// ```
        /// use mq_api::Message;
        ///
        /// # fn main() -> mq_api::Result<()> {
        /// let message = Message::json(&vec!["a", "b"])?.with_key("k");
        /// assert_eq!(message.decode_json::<Vec<String>>()?, ["a", "b"]);
        /// # Ok(()) }
        /// ```
        ///
        /// # Errors
        /// [`ErrorKind::InvalidMessage`] where JSON has no form for it, such as a map whose keys are not text.
        pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
            Self::encode(&Json, value)
        }

        /// Decodes the payload as JSON.
        ///
        /// ```
        /// use mq_api::Message;
        ///
        /// # fn main() -> mq_api::Result<()> {
        /// assert_eq!(Message::new("[1,2]").decode_json::<Vec<u32>>()?, [1, 2]);
        /// assert!(Message::new("paid").decode_json::<Vec<u32>>().is_err());
        /// # Ok(()) }
        /// ```
        ///
        /// # Errors
        /// [`ErrorKind::InvalidMessage`] where it is not JSON of that type; the error does not show the payload.
        pub fn decode_json<T: DeserializeOwned>(&self) -> Result<T> {
            self.decode(&Json)
        }
    }

    #[cfg(test)]
    mod tests {
        use std::collections::HashMap;

        use super::*;

        #[test]
        fn what_is_not_of_the_type_is_a_typed_error_without_the_payload() {
            for payload in ["\"secret\"", "{secret", "[1, \"secret\"]", "[1,"] {
                let error = Message::new(payload).decode_json::<Vec<u32>>().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidMessage);
                let text = format!("{error} {error:?}");
                assert!(!text.contains("secret") && text.contains("line 1"), "{text}");
            }
            let tombstone = Message::tombstone("k").decode_json::<u32>().unwrap_err();
            assert_eq!(tombstone.kind(), ErrorKind::InvalidMessage);
        }

        #[test]
        fn what_json_cannot_hold_is_refused() {
            let map: HashMap<Vec<u8>, u8> = [(vec![1], 1)].into();
            assert_eq!(Message::json(&map).unwrap_err().kind(), ErrorKind::InvalidMessage);
        }
    }
}
