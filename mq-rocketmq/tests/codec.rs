//! What is encoded decodes to the same, for any content; what is hostile is refused with a type and a bound.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use mq_rocketmq::remoting::{
    BatchWriter, Compression, MAX_FRAME, MAX_HEADER, Properties, PropertyWriter, PullMessage, RemotingError,
    SendMessage, StoredMessage, StoredMessages, compress, decode_batch, decode_frame, decode_value,
    decompress, encode_request, encode_response, encode_value,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn property() -> impl Strategy<Value = (String, String)> {
    ("[^\u{1}\u{2}]{1,20}", "[^\u{1}\u{2}]{1,60}")
}

fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

prop_compose! {
    fn stored()(
        long_topic in any::<bool>(),
        numbers in any::<(u32, i32, i32, i64, i64, i64, i64, i32, i64)>(),
        flags in any::<u8>(),
        born_port in any::<u16>(),
        born_v6 in any::<[u8; 16]>(),
        store_v4 in any::<[u8; 4]>(),
        body in bytes(300),
        topic in "[a-zA-Z0-9_%+-]{0,127}",
        properties in bytes(300),
    ) -> StoredMessage {
        let (body_crc, queue, flag, offset, physical_offset, born, stored, reconsume_times, prepared_offset) = numbers;
        let born_host: SocketAddr = if flags & 16 != 0 {
            (born_v6, born_port).into()
        } else {
            ([born_v6[0], born_v6[1], born_v6[2], born_v6[3]], born_port).into()
        };
        let store_host: SocketAddr = if flags & 32 != 0 { ([7; 16], 1).into() } else { (store_v4, 65_535).into() };
        StoredMessage {
            long_topic, body_crc, queue, flag, offset, physical_offset, sys_flag: i32::from(flags), born, born_host,
            stored, store_host, reconsume_times, prepared_offset, body, topic: topic.into(), properties,
        }
    }
}

proptest! {
    #[test]
    fn requests_round_trip(
        topic in ".{0,40}",
        text in "(?s).{0,200}",
        queue in any::<i32>(),
        born in any::<i64>(),
        max in proptest::option::of(any::<i32>()),
        batch in any::<bool>(),
        opaque in 0..i32::MAX,
        oneway in any::<bool>(),
        body in bytes(200),
        rest in bytes(20),
    ) {
        let request = SendMessage {
            group: "g", topic: &topic, properties: Some(&text), queue, born, max_reconsume_times: max, batch,
            ..SendMessage::default()
        };
        let mut out = BytesMut::new();
        encode_request(&mut out, opaque, oneway, &request, &body, None).unwrap();
        out.put_slice(&rest);
        let command = decode_frame(&mut out).unwrap().unwrap();
        prop_assert_eq!(&out[..], &rest[..]);
        prop_assert_eq!(SendMessage::read(&command).unwrap(), request);
        prop_assert_eq!(command.header.opaque, opaque);
        prop_assert_eq!(command.is_oneway(), oneway);
        prop_assert_eq!(command.body, body);
    }

    #[test]
    fn responses_round_trip(code in any::<i32>(), remark in "(?s).{0,60}", value in any::<i64>(), body in bytes(99)) {
        let mut out = BytesMut::new();
        encode_response(&mut out, 7, code, Some(&remark), &body, |fields| fields.put("nextBeginOffset", value)).unwrap();
        let command = decode_frame(&mut out).unwrap().unwrap();
        prop_assert!(command.is_response());
        prop_assert_eq!(command.code(), code);
        prop_assert_eq!(command.remark(), remark.as_str());
        prop_assert_eq!(command.field::<i64>("nextBeginOffset").unwrap(), value);
        prop_assert_eq!(command.body, body);
    }

    #[test]
    fn headers_read_as_a_json_library_reads_them(
        code in any::<i32>(),
        ext in proptest::collection::btree_map("(?s).{1,12}", "(?s).{0,30}", 0..12),
    ) {
        let json = serde_json::json!({"extFields": ext, "x": [{"y": 1}], "code": code, "flag": 1, "remark": null});
        let header = serde_json::to_vec(&json).unwrap();
        let command = decode_frame(&mut raw(&header, b"")).unwrap().unwrap();
        prop_assert_eq!(command.code(), code);
        let got: std::collections::BTreeMap<_, _> =
            command.header.ext.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        prop_assert_eq!(got, ext);
    }

    #[test]
    fn a_frame_is_incomplete_until_its_last_byte(body in bytes(50)) {
        let mut whole = BytesMut::new();
        encode_request(&mut whole, 1, false, &PullMessage::default(), &body, None).unwrap();
        for end in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..end]);
            prop_assert!(decode_frame(&mut part).unwrap().is_none());
            prop_assert_eq!(part.len(), end);
        }
    }

    #[test]
    fn stored_messages_round_trip(messages in vec(stored(), 0..4)) {
        let mut out = BytesMut::new();
        for message in &messages {
            message.encode(&mut out).unwrap();
        }
        let got: Vec<_> = StoredMessages::new(out.freeze()).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn batches_round_trip(entries in vec((any::<i32>(), bytes(80), vec(property(), 0..5)), 0..6)) {
        let mut out = BytesMut::new();
        let mut batch = BatchWriter::new(&mut out);
        for (flag, body, properties) in &entries {
            batch.push(*flag, body, |writer| properties.iter().try_for_each(|(n, v)| writer.put(n, v))).unwrap();
        }
        let got = decode_batch(out.freeze()).unwrap();
        prop_assert_eq!(got.len(), entries.len());
        for (got, (flag, body, properties)) in got.iter().zip(&entries) {
            prop_assert_eq!(got.flag, *flag);
            prop_assert_eq!(&got.body, body);
            let read: Vec<_> = Properties::new(&got.properties).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(&read, properties);
        }
    }

    #[test]
    fn any_value_survives_as_a_property(value in prop_oneof![bytes(80), ".{0,30}".prop_map(Bytes::from)]) {
        let text = encode_value(&value);
        prop_assert!(!text.is_empty());
        let mut out = BytesMut::new();
        PropertyWriter::new(&mut out).put("name", &text).unwrap();
        prop_assert_eq!(Properties::new(&out).find("name"), Some(&*text));
        prop_assert_eq!(decode_value(&text).unwrap(), &value[..]);
        prop_assert!(text.len() <= 2 + (value.len() * 4).div_ceil(3));
    }

    #[test]
    fn compressed_bodies_round_trip(body in bytes(2000), copies in 1usize..20, level in 0u8..12) {
        let body = Bytes::from(body.repeat(copies));
        for kind in [Compression::Zlib(level), Compression::Zstd] {
            let small = Bytes::from(compress(kind, &body).unwrap());
            prop_assert_eq!(decompress(kind.sys_flag(), &small, body.len()).unwrap(), body.clone());
            if !body.is_empty() {
                let error = decompress(kind.sys_flag(), &small, body.len() - 1).unwrap_err();
                let too_large = matches!(error, RemotingError::FrameTooLarge { .. });
                prop_assert!(too_large);
            }
        }
    }

    // The bounded stand-in for the fuzz target, on the stable compiler.
    #[test]
    fn no_bytes_break_a_decoder(data in vec(any::<u8>(), 0..400), at in 0usize..60) {
        let data = Bytes::from(data);
        drop(decode_frame(&mut BytesMut::from(&data[..])));
        drop(decode_frame(&mut raw(&data, b"")));
        drop(StoredMessages::new(data.clone()).collect::<Vec<_>>());
        drop(decode_batch(data.clone()));
        drop(mq_rocketmq::remoting::parse_lenient(&data));
        drop(Properties::new(&data).collect::<Vec<_>>());
        for flags in [1, 1 | 1 << 8, 1 | 2 << 8, 1 | 3 << 8, 1 | 7 << 8] {
            drop(decompress(flags, &data, 100_000));
        }
        if let Ok(text) = std::str::from_utf8(&data) {
            drop(decode_value(text));
            drop(text.parse::<mq_rocketmq::remoting::PopReceipt>());
        }
        // One broken byte in an otherwise whole frame reaches deeper than noise does.
        let mut whole = BytesMut::new();
        encode_request(&mut whole, 1, false, &PullMessage { topic: "t\u{1}", ..PullMessage::default() }, &data, None)
            .unwrap();
        let at = at * whole.len() / 60;
        whole[at] ^= data.first().copied().unwrap_or(1);
        drop(decode_frame(&mut whole));
    }
}

fn raw(header: &[u8], body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32((4 + header.len() + body.len()) as u32);
    out.put_u32(header.len() as u32);
    out.put_slice(header);
    out.put_slice(body);
    out
}

fn prelude(length: u32, word: u32) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32(length);
    out.put_u32(word);
    out
}

#[test]
fn lengths_over_the_bounds_are_refused_before_anything_is_allocated() {
    for (mut bytes, want) in [
        (prelude(MAX_FRAME as u32 + 1, 2), "over the limit"),
        (prelude(u32::MAX, 2), "over the limit"),
        (prelude(3, 0), "shorter than its header length"),
        (prelude(100, 97), "longer than the frame"),
        (prelude(MAX_FRAME as u32, MAX_HEADER as u32 + 1), "over the limit"),
        (prelude(100, 1 << 24), "not JSON"),
    ] {
        let before = bytes.capacity();
        let error = decode_frame(&mut bytes).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(bytes.capacity(), before, "{want}");
    }
}

#[test]
fn an_announced_length_costs_at_most_a_mebibyte() {
    let mut bytes = prelude(MAX_FRAME as u32, 10);
    assert!(decode_frame(&mut bytes).unwrap().is_none());
    assert!(bytes.capacity() <= 2 * 1024 * 1024, "{}", bytes.capacity());
}

#[test]
fn headers_that_are_not_of_the_protocol_are_typed_errors() {
    let deep = format!("{{\"code\":0,\"x\":{}", "[".repeat(500_000));
    let many: Vec<_> = (0..300).map(|n| format!("\"f{n}\":\"v\"")).collect();
    let many = format!("{{\"code\":0,\"extFields\":{{{}}}}}", many.join(","));
    for header in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "{\"code\":\"x\"}",
        "{\"code\":99999999999}",
        "{\"code\":0,\"extFields\":[]}",
        "{\"code\":0,\"extFields\":{\"a\":1}}",
        "{\"code\":0}x",
        "{\"code\":0,\"remark\":5}",
        &deep,
        &many,
    ] {
        let error = decode_frame(&mut raw(header.as_bytes(), b"")).unwrap_err();
        assert!(
            matches!(error, RemotingError::Malformed { .. }),
            "{header:.30}: {error}"
        );
        assert!(error.to_string().len() < 300);
    }
}

#[test]
fn a_frame_too_large_to_send_leaves_the_buffer_as_it_was() {
    let mut out = BytesMut::from(&b"before"[..]);
    let body = Bytes::from(vec![0; MAX_FRAME]);
    let error = encode_request(&mut out, 1, false, &PullMessage::default(), &body, None).unwrap_err();
    assert!(matches!(error, RemotingError::FrameTooLarge { .. }));
    assert_eq!(&out[..], b"before");
}

#[test]
fn stored_messages_with_lying_lengths_are_typed_errors() {
    let message = StoredMessage {
        long_topic: false,
        body_crc: 0,
        queue: 1,
        flag: 0,
        offset: 2,
        physical_offset: 3,
        sys_flag: 0,
        born: 4,
        born_host: ([127, 0, 0, 1], 5).into(),
        stored: 6,
        store_host: ([127, 0, 0, 1], 7).into(),
        reconsume_times: 0,
        prepared_offset: 0,
        body: Bytes::from_static(b"body"),
        topic: Bytes::from_static(b"topic"),
        properties: Bytes::from_static(b"a\x01b\x02"),
    };
    let mut good = BytesMut::new();
    message.encode(&mut good).unwrap();
    // The size, the magic number, the flags that widen hosts, the lengths of body, topic and properties.
    for at in [0, 3, 4, 7, 39, 84, 87, 92, 98, 99] {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let messages: Vec<_> = StoredMessages::new(bad.freeze()).collect();
        assert!(messages.last().unwrap().is_err(), "byte {at}");
    }
    for end in 1..good.len() {
        assert!(
            StoredMessages::new(good.clone().freeze().slice(..end))
                .next()
                .unwrap()
                .is_err()
        );
    }
}

#[test]
fn properties_that_the_servers_would_drop_or_cut_are_refused() {
    let mut out = BytesMut::new();
    let mut writer = PropertyWriter::new(&mut out);
    for (name, value) in [
        ("", "v"),
        ("n", ""),
        ("n\u{1}", "v"),
        ("n", "v\u{2}"),
        ("n", "\u{1}v"),
    ] {
        assert!(writer.put(name, value).is_err());
    }
    assert!(writer.put("n", &"v".repeat(32_600)).is_err());
    assert!(writer.is_empty());
    writer.put("n", &"v".repeat(32_597)).unwrap();
    assert_eq!(writer.len(), 32_600);
}

#[test]
fn lz4_bodies_are_read() {
    use std::io::Write;
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
    encoder.write_all(b"a body from Java").unwrap();
    let body = Bytes::from(encoder.finish().unwrap());
    assert_eq!(decompress(1 | 1 << 8, &body, 100).unwrap(), "a body from Java");
    assert!(decompress(1 | 1 << 8, &body, 3).is_err());
    assert!(decompress(1, &body, 100).is_err());
}

#[test]
fn a_small_body_that_expands_without_end_is_cut_at_the_limit() {
    let bomb = Bytes::from(compress(Compression::Zlib(9), &vec![0; 50 << 20]).unwrap());
    assert!(bomb.len() < 100_000);
    assert!(matches!(
        decompress(1, &bomb, 1 << 20),
        Err(RemotingError::FrameTooLarge { .. })
    ));
}
