//! Compression of what is sent, where it is asked for.

use bytes::Bytes;
use mq_api::Message;

use crate::{
    config::RocketMqConfig,
    format::PLACEHOLDER,
    remoting::{Compression, compress},
};

/// From so many bytes on, compression runs beside the runtime's threads, which others need meanwhile.
const LONG_WORK: usize = 64 * 1024;

/// The compressed bodies of a batch, or none.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    bodies: Vec<Vec<u8>>,
    sys_flag: i32,
}

impl Packed {
    /// Compresses the payloads of a batch if one of them reaches the threshold: all of them then, since the messages
    /// of one request are marked alike.
    pub(crate) async fn new(messages: &[Message], config: &RocketMqConfig) -> Self {
        let Some(kind) = config.compression else {
            return Self::default();
        };
        let lengths = messages.iter().map(|message| message.payload_or_empty().len());
        if !lengths
            .clone()
            .any(|length| length >= config.compression_threshold)
        {
            return Self::default();
        }
        let work = lengths.sum::<usize>();
        let bodies: Vec<Bytes> = messages.iter().map(stand_in).collect();
        if work < LONG_WORK {
            return pack(kind, &bodies);
        }
        // A runtime that is shut down ends it; what is sent then is plain.
        tokio::task::spawn_blocking(move || pack(kind, &bodies))
            .await
            .unwrap_or_default()
    }

    /// The bits that tell a reader; none where the bodies are plain.
    pub(crate) fn sys_flag(&self) -> i32 {
        self.sys_flag
    }

    /// The compressed body of a message; none where it goes as it is.
    pub(crate) fn body(&self, index: usize) -> Option<&[u8]> {
        self.bodies.get(index).map(Vec::as_slice)
    }
}

/// A compressed body is never empty, so that nothing has to stand for one; but a delayed message, which goes alone,
/// says in its properties that something does.
fn stand_in(message: &Message) -> Bytes {
    match message.payload() {
        Some(payload) if !payload.is_empty() => payload.clone(),
        _ if message.due().is_some() => Bytes::from_static(PLACEHOLDER),
        _ => Bytes::new(),
    }
}

fn pack(kind: Compression, bodies: &[Bytes]) -> Packed {
    let packed: Result<_, _> = bodies.iter().map(|body| compress(kind, body)).collect();
    packed.map_or_else(
        |error| {
            tracing::warn!(%error, "a batch goes as it is");
            Packed::default()
        },
        |bodies| Packed {
            bodies,
            sys_flag: kind.sys_flag(),
        },
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::remoting::decompress;

    fn config(kind: Option<Compression>) -> RocketMqConfig {
        let mut config = RocketMqConfig::new(["a"]);
        config.compression = kind;
        config.compression_threshold = 100;
        config
    }

    #[tokio::test]
    async fn a_batch_is_compressed_where_one_of_it_is_long_enough() {
        let messages = [
            Message::new(vec![7; 100]),
            Message::new("short"),
            Message::new(""),
            Message::tombstone("k"),
            Message::new("").with_delay(Duration::from_secs(1)),
            Message::new(vec![1; LONG_WORK]),
        ];
        for kind in [Compression::Zlib(5), Compression::Zstd] {
            for messages in [&messages[..5], &messages[..]] {
                let packed = Packed::new(messages, &config(Some(kind))).await;
                for (index, message) in messages.iter().enumerate() {
                    let body = Bytes::copy_from_slice(packed.body(index).unwrap());
                    let plain = decompress(packed.sys_flag(), &body, 1 << 20).unwrap();
                    match message.due() {
                        None => assert_eq!(plain, message.payload_or_empty()),
                        Some(_) => assert_eq!(plain, PLACEHOLDER),
                    }
                }
                assert!(packed.body(0).unwrap().len() < 50);
            }
            let packed = Packed::new(&messages[1..4], &config(Some(kind))).await;
            assert_eq!((packed.body(0), packed.sys_flag()), (None, 0));
        }
        let packed = Packed::new(&messages, &config(None)).await;
        assert!(packed.body(0).is_none());
    }
}
