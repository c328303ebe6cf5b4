//! Delayed messages: a sorted set a partition, by due time, and a script that moves what is due into the stream.
//!
//! The script runs on the server as one step: a mover that dies loses and doubles nothing. Every client that has the
//! topic open moves, so that one is enough.

use std::io::Write;

use mq_api::{Message, Timestamp};
use redis::Cmd;

use crate::format::encode;

/// Stores a delayed message, unless the topic is gone.
const STORE: &str = "\
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[2])
return 1";

/// Moves what is due, at most `ARGV[1]` messages. Returns the due time of the next one in milliseconds from now, or -1.
///
/// An element is `mq1`, a space, 16 characters that make it unique, a space, and the fields, each as its length, a
/// colon and its bytes. One of a later version stays where it is.
const MOVE: &str = "\
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, ARGV[1])
for _, e in ipairs(due) do
  if string.sub(e, 1, 4) == 'mq1 ' then
    local fields, at = {}, 22
    while at <= #e do
      local colon = string.find(e, ':', at, true)
      local size = tonumber(string.sub(e, at, colon - 1))
      fields[#fields + 1] = string.sub(e, colon + 1, colon + size)
      at = colon + size + 1
    end
    fields[2] = string.format('%.0f', now)
    if not redis.call('XADD', KEYS[1], 'NOMKSTREAM', '0-*', unpack(fields)) then
      redis.call('UNLINK', KEYS[2])
      return -1
    end
    redis.call('ZREM', KEYS[2], e)
  else
    redis.call('ZADD', KEYS[2], now + 3600000, e)
  end
end
local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if not next[2] then return -1 end
return math.max(0, math.ceil(tonumber(next[2]) - now))";

/// How many messages one call moves: the server does nothing else meanwhile.
const MOVE_AT_ONCE: usize = 200;

/// Makes the command that stores a delayed message.
pub(crate) fn store(stream: &str, delayed: &str, message: &Message, stamp: &str, due: Timestamp) -> Cmd {
    let mut element = format!("mq1 {:016x} ", fastrand::u64(..)).into_bytes();
    encode(message, stamp, |field| {
        // Writing to a vector cannot fail.
        let _ = write!(element, "{}:", field.len());
        element.extend_from_slice(field);
    });
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(STORE)
        .arg(2)
        .arg(stream)
        .arg(delayed)
        .arg(due.as_millis())
        .arg(element);
    cmd
}

/// Makes the command that moves what is due.
pub(crate) fn move_due(stream: &str, delayed: &str) -> Cmd {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(MOVE).arg(2).arg(stream).arg(delayed).arg(MOVE_AT_ONCE);
    cmd
}

/// Asks when the next message of a partition is due.
pub(crate) fn next_due(delayed: &str) -> Cmd {
    let mut cmd = redis::cmd("ZRANGE");
    cmd.arg(delayed).arg(0).arg(0).arg("WITHSCORES");
    cmd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_one_of_a_delayed_message_is_frozen() {
        let message = Message::new("paid: now").with_key("k");
        let cmd = store("s", "d", &message, "7", Timestamp::from_millis(9));
        let args: Vec<Vec<u8>> = cmd
            .args_iter()
            .filter_map(|arg| match arg {
                redis::Arg::Simple(bytes) => Some(bytes.to_vec()),
                _ => None,
            })
            .collect();
        assert_eq!(args[5], b"9");
        assert!(args[6].starts_with(b"mq1 "));
        assert_eq!(&args[6][20..], b" 3:mq11:73:key1:k7:payload9:paid: now");
    }
}
