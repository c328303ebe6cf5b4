//! The form in which brokers store and hand out messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codes::sys_flag;
use super::compress::decompress;
use super::error::RemotingError;
use super::properties::Properties;

/// The magic number of a message whose topic length takes one byte.
const MAGIC_V1: u32 = 0xdaa3_20a7;
/// The magic number of a message whose topic length takes two bytes.
const MAGIC_V2: u32 = 0xdaa3_20ab;
/// The bytes of a message with IPv4 hosts, no body, no topic and no properties.
const MIN_SIZE: usize = 91;

/// A stored message. Body, topic and properties are slices of the answer it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage {
    /// Whether the topic length takes two bytes on the wire.
    pub long_topic: bool,
    /// The CRC-32 of the stored body.
    pub body_crc: u32,
    /// The queue.
    pub queue: i32,
    /// The number that the producer gave.
    pub flag: i32,
    /// The offset in the queue.
    pub offset: i64,
    /// The offset in the broker's commit log.
    pub physical_offset: i64,
    /// Bits of [`sys_flag`].
    pub sys_flag: i32,
    /// When the message was made, in milliseconds since the epoch of the producer's clock.
    pub born: i64,
    /// Where it was made.
    pub born_host: SocketAddr,
    /// When it was stored, in milliseconds since the epoch of the broker's clock.
    pub stored: i64,
    /// Where it was stored.
    pub store_host: SocketAddr,
    /// How often it was delivered in vain, as far as the broker counted.
    pub reconsume_times: i32,
    /// The offset of the half message that it was made from.
    pub prepared_offset: i64,
    /// The body as stored, maybe compressed.
    pub body: Bytes,
    /// The name of the topic.
    pub topic: Bytes,
    /// The text of the properties.
    pub properties: Bytes,
}

impl StoredMessage {
    /// Cuts one message off the front of `rest`.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when the bytes are not a message, or it is longer than what is left.
    pub fn decode(rest: &mut Bytes) -> Result<Self, RemotingError> {
        let size = rest
            .get(..4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_be_bytes)
            .unwrap_or(0) as usize;
        if size < MIN_SIZE || size > rest.len() {
            return Err(broken("its length is below the least or beyond the answer"));
        }
        let mut bytes = rest.split_to(size);
        bytes.advance(4);
        // Every fixed field is within MIN_SIZE; what depends on a flag or a length is checked.
        let long_topic = match bytes.get_u32() {
            MAGIC_V1 => false,
            MAGIC_V2 => true,
            _ => return Err(broken("unknown magic number")),
        };
        let body_crc = bytes.get_u32();
        let queue = bytes.get_i32();
        let flag = bytes.get_i32();
        let offset = bytes.get_i64();
        let physical_offset = bytes.get_i64();
        let flags = bytes.get_i32();
        let born = bytes.get_i64();
        let born_host = take_host(&mut bytes, flags & sys_flag::BORN_HOST_V6 != 0)?;
        need(&bytes, 8)?;
        let stored = bytes.get_i64();
        let store_host = take_host(&mut bytes, flags & sys_flag::STORE_HOST_V6 != 0)?;
        need(&bytes, 16)?;
        let reconsume_times = bytes.get_i32();
        let prepared_offset = bytes.get_i64();
        let body_len = bytes.get_u32() as usize;
        let body = take(&mut bytes, body_len)?;
        need(&bytes, if long_topic { 2 } else { 1 })?;
        let topic_len = if long_topic {
            usize::from(bytes.get_u16())
        } else {
            usize::from(bytes.get_u8())
        };
        let topic = take(&mut bytes, topic_len)?;
        need(&bytes, 2)?;
        let properties_len = usize::from(bytes.get_u16());
        let properties = take(&mut bytes, properties_len)?;
        Ok(Self {
            long_topic,
            body_crc,
            queue,
            flag,
            offset,
            physical_offset,
            sys_flag: flags,
            born,
            born_host,
            stored,
            store_host,
            reconsume_times,
            prepared_offset,
            body,
            topic,
            properties,
        })
    }

    /// Appends the message in the broker's form.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when topic, properties or body are longer than their length fields can say,
    /// or a host does not fit the flags.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError> {
        let start = out.len();
        out.put_u32(0);
        out.put_u32(if self.long_topic { MAGIC_V2 } else { MAGIC_V1 });
        out.put_u32(self.body_crc);
        out.put_i32(self.queue);
        out.put_i32(self.flag);
        out.put_i64(self.offset);
        out.put_i64(self.physical_offset);
        out.put_i32(self.sys_flag);
        out.put_i64(self.born);
        put_host(out, self.born_host, self.sys_flag & sys_flag::BORN_HOST_V6 != 0)?;
        out.put_i64(self.stored);
        put_host(out, self.store_host, self.sys_flag & sys_flag::STORE_HOST_V6 != 0)?;
        out.put_i32(self.reconsume_times);
        out.put_i64(self.prepared_offset);
        out.put_u32(length(self.body.len())?);
        out.put_slice(&self.body);
        if self.long_topic {
            out.put_u16(length(self.topic.len())?);
        } else {
            out.put_u8(length(self.topic.len())?);
        }
        out.put_slice(&self.topic);
        out.put_u16(length(self.properties.len())?);
        out.put_slice(&self.properties);
        let size: u32 = length(out.len() - start)?;
        if let Some(slot) = out.get_mut(start..start + 4) {
            slot.copy_from_slice(&size.to_be_bytes());
        }
        Ok(())
    }

    /// The name of the topic.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when it is not UTF-8.
    pub fn topic(&self) -> Result<&str, RemotingError> {
        std::str::from_utf8(&self.topic).map_err(|_| broken("its topic is not UTF-8"))
    }

    /// Iterates over the properties.
    pub fn properties(&self) -> Properties<'_> {
        Properties::new(&self.properties)
    }

    /// Finds a property.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties().find(name)
    }

    /// The body as it was sent: a slice of the answer, or up to `limit` bytes decompressed.
    ///
    /// # Errors
    ///
    /// [`RemotingError::Malformed`] when it does not decompress, [`RemotingError::FrameTooLarge`] beyond the
    /// limit.
    pub fn payload(&self, limit: usize) -> Result<Bytes, RemotingError> {
        decompress(self.sys_flag, &self.body, limit)
    }
}

fn broken(rule: &'static str) -> RemotingError {
    RemotingError::malformed("stored message", rule)
}

fn length<N: TryFrom<usize>>(len: usize) -> Result<N, RemotingError> {
    N::try_from(len).map_err(|_| broken("a part is longer than its length field can say"))
}

fn need(bytes: &Bytes, count: usize) -> Result<(), RemotingError> {
    if bytes.len() < count {
        Err(broken("it ends within a field"))
    } else {
        Ok(())
    }
}

fn take(bytes: &mut Bytes, count: usize) -> Result<Bytes, RemotingError> {
    need(bytes, count)?;
    Ok(bytes.split_to(count))
}

fn take_host(bytes: &mut Bytes, v6: bool) -> Result<SocketAddr, RemotingError> {
    need(bytes, if v6 { 20 } else { 8 })?;
    let ip = if v6 {
        IpAddr::V6(Ipv6Addr::from(bytes.get_u128()))
    } else {
        IpAddr::V4(Ipv4Addr::from(bytes.get_u32()))
    };
    // Java writes ports as 32-bit numbers.
    Ok(SocketAddr::new(ip, (bytes.get_u32() & 0xffff) as u16))
}

fn put_host(out: &mut BytesMut, host: SocketAddr, v6: bool) -> Result<(), RemotingError> {
    match (host.ip(), v6) {
        (IpAddr::V4(ip), false) => out.put_slice(&ip.octets()),
        (IpAddr::V6(ip), true) => out.put_slice(&ip.octets()),
        _ => return Err(broken("a host does not fit its flag")),
    }
    out.put_u32(u32::from(host.port()));
    Ok(())
}

/// Iterates over the messages in the body of a pull or POP answer; it ends after the first that is broken.
#[derive(Debug, Clone)]
pub struct StoredMessages {
    rest: Bytes,
}

impl StoredMessages {
    /// Reads a body.
    pub fn new(body: Bytes) -> Self {
        Self { rest: body }
    }
}

impl Iterator for StoredMessages {
    type Item = Result<StoredMessage, RemotingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = StoredMessage::decode(&mut self.rest);
        if message.is_err() {
            self.rest.clear();
        }
        Some(message)
    }
}
