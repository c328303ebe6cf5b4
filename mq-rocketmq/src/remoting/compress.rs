//! Compression of message bodies.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::CompressionLevel;

use super::codes::sys_flag;
use super::error::RemotingError;

/// The largest window that a zstd body may ask for, in bytes.
const MAX_WINDOW: u64 = 16 * 1024 * 1024;

/// A way to compress bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// zlib, which every RocketMQ client reads, at a level from 1 to 9.
    Zlib(u8),
    /// zstd at its fastest level, which clients from 4.9.4 on read.
    Zstd,
}

impl Compression {
    /// The bits that tell a reader.
    pub fn sys_flag(self) -> i32 {
        let kind = match self {
            Self::Zstd => 2,
            Self::Zlib(_) => 3,
        };
        sys_flag::COMPRESSED | kind << sys_flag::COMPRESSION_SHIFT
    }
}

/// Compresses a body.
///
/// # Errors
///
/// [`RemotingError::Malformed`] when the encoder fails, which writing to memory does not.
pub fn compress(kind: Compression, body: &[u8]) -> Result<Vec<u8>, RemotingError> {
    match kind {
        Compression::Zlib(level) => {
            let level = flate2::Compression::new(u32::from(level.clamp(1, 9)));
            let mut encoder = ZlibEncoder::new(Vec::with_capacity(body.len() / 2), level);
            encoder
                .write_all(body)
                .and_then(|()| encoder.finish())
                .map_err(|_| broken("cannot be compressed"))
        }
        Compression::Zstd => Ok(ruzstd::encoding::compress_to_vec(body, CompressionLevel::Fastest)),
    }
}

/// Gives the plain body: the same bytes when `flags` tell of no compression, else up to `limit` bytes.
///
/// # Errors
///
/// [`RemotingError::Malformed`] when the bytes do not decompress, [`RemotingError::FrameTooLarge`] beyond the
/// limit.
pub fn decompress(flags: i32, body: &Bytes, limit: usize) -> Result<Bytes, RemotingError> {
    if flags & sys_flag::COMPRESSED == 0 || body.is_empty() {
        return Ok(body.clone());
    }
    match (flags & sys_flag::COMPRESSION_MASK) >> sys_flag::COMPRESSION_SHIFT {
        // Clients from before the bits existed compress with zlib.
        0 | 3 => read_bounded(ZlibDecoder::new(body.as_ref()), limit),
        1 => read_bounded(lz4_flex::frame::FrameDecoder::new(body.as_ref()), limit),
        2 => {
            let decoder = StreamingDecoder::new_with_max_window_size(body.as_ref(), MAX_WINDOW)
                .map_err(|_| broken("does not begin as zstd with a window of at most 16 MiB"))?;
            read_bounded(decoder, limit)
        }
        _ => Err(broken("its compression is unknown")),
    }
}

fn broken(rule: &'static str) -> RemotingError {
    RemotingError::malformed("message body", rule)
}

fn read_bounded(reader: impl Read, limit: usize) -> Result<Bytes, RemotingError> {
    let mut out = Vec::new();
    let read = reader
        .take(limit as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|_| broken("does not decompress"))?;
    if read > limit {
        return Err(RemotingError::FrameTooLarge { size: read, limit });
    }
    Ok(Bytes::from(out))
}
