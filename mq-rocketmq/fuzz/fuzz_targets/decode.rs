//! Feeds every decoder of the remoting layer with arbitrary bytes.
//!
//! Run it in `mq-rocketmq` with `cargo +nightly fuzz run decode -- -runs=1000000 -max_len=8192 -rss_limit_mb=512
//! -malloc_limit_mb=64`. What runs of it in CI, on the stable compiler, are `no_bytes_break_a_decoder` in `tests/codec.rs`
//! and `captured_frames_with_broken_bytes_break_no_decoder` in `tests/golden.rs`.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use mq_rocketmq::remoting::{
    Header, PopReceipt, Properties, StartOffsets, StoredMessages, decode_batch, decode_frame, decode_value,
    decompress, parse_lenient,
};

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(data);
    match kind % 8 {
        0 => {
            let mut stream = BytesMut::from(data);
            while let Ok(Some(command)) = decode_frame(&mut stream) {
                command.header.ext.iter().for_each(drop);
                command.remark();
            }
        }
        1 => drop(Header::decode(&bytes)),
        2 => {
            for message in StoredMessages::new(bytes).flatten() {
                message.properties().for_each(drop);
                drop(message.payload(1 << 20));
                let mut out = BytesMut::new();
                message.encode(&mut out).expect("what was decoded encodes");
            }
        }
        3 => drop(decode_batch(bytes)),
        4 => drop(parse_lenient(data)),
        5 => {
            Properties::new(data).for_each(|(_, value)| drop(decode_value(value)));
        }
        6 => {
            for flags in [1, 1 | 1 << 8, 1 | 2 << 8, 1 | 3 << 8] {
                drop(decompress(flags, &bytes, 1 << 20));
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(data) {
                drop(text.parse::<PopReceipt>());
                drop(StartOffsets::parse(text));
            }
        }
    }
});
