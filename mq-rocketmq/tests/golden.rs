//! Frames that a real broker, nameserver and Java client exchanged decode, and encode to the same fields.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use mq_rocketmq::remoting::codes::request;
use mq_rocketmq::remoting::{
    Ack, BatchAckBody, BatchWriter, ChangeInvisible, CheckTransaction, ClusterInfo, Command, ConsumeStats,
    ConsumerIdsChanged, ConsumerList, CreateTopic, DeleteTopicInBroker, DeleteTopicInNamesrv, EndTransaction,
    GetTopicConfig, Header, HeartbeatBody, ListConsumers, LockBody, LockedBody, MaxOffset, MinOffset, Plain,
    Pop, PopReceipt, PopTopicKind, Properties, PropertyWriter, PullMessage, QueryOffset, QueryRoute,
    RemotingError, Request, ResetOffset, SearchOffset, SendBack, SendMessage, StartOffsets, StoredMessage,
    StoredMessages, TopicConfig, TopicList, TopicRoute, TopicStats, UnregisterClient, UpdateOffset,
    decode_batch, decode_frame, decode_value, decompress, encode_request, parse_lenient,
};

struct Exchange {
    name: String,
    request: Command,
    response: Option<Command>,
}

fn frame(header: &str, body: &str) -> Command {
    let body: Vec<u8> = (0..body.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&body[at..at + 2], 16).unwrap())
        .collect();
    let mut bytes = BytesMut::new();
    bytes.put_u32((4 + header.len() + body.len()) as u32);
    bytes.put_u32(header.len() as u32);
    bytes.put_slice(header.as_bytes());
    bytes.put_slice(&body);
    let command = decode_frame(&mut bytes).unwrap().unwrap();
    assert!(bytes.is_empty());
    command
}

fn exchanges() -> Vec<Exchange> {
    let file: serde_json::Value = serde_json::from_str(include_str!("golden/frames.json")).unwrap();
    let side = |value: &serde_json::Value| {
        value
            .as_array()
            .map(|parts| frame(parts[0].as_str().unwrap(), parts[1].as_str().unwrap()))
    };
    file.as_array()
        .unwrap()
        .iter()
        .map(|entry| Exchange {
            name: entry["name"].as_str().unwrap().to_owned(),
            request: side(&entry["request"]).unwrap(),
            response: side(&entry["response"]),
        })
        .collect()
}

fn named(name: &str) -> Exchange {
    exchanges()
        .into_iter()
        .find(|e| e.name == name)
        .unwrap_or_else(|| panic!("no exchange {name}"))
}

fn fields(command: &Command) -> BTreeMap<String, String> {
    command
        .header
        .ext
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Encodes what was decoded and decodes it again.
fn again<R: Request>(original: &Command, read: Result<R, RemotingError>) -> Command {
    let request = read.unwrap();
    let mut out = BytesMut::new();
    let opaque = original.header.opaque;
    encode_request(
        &mut out,
        opaque,
        original.is_oneway(),
        &request,
        &original.body,
        None,
    )
    .unwrap();
    decode_frame(&mut out).unwrap().unwrap()
}

fn reencode(command: &Command) -> Command {
    let c = command;
    match c.code() {
        11 | 361 => again(c, PullMessage::read(c)),
        14 => again(c, QueryOffset::read(c)),
        15 => again(c, UpdateOffset::read(c)),
        17 => again(c, CreateTopic::read(c)),
        29 => again(c, SearchOffset::read(c)),
        30 => again(c, MaxOffset::read(c)),
        31 => again(c, MinOffset::read(c)),
        35 => again(c, UnregisterClient::read(c)),
        36 => again(c, SendBack::read(c)),
        37 => again(c, EndTransaction::read(c)),
        38 => again(c, ListConsumers::read(c)),
        39 => again(c, CheckTransaction::read(c)),
        40 => again(c, ConsumerIdsChanged::read(c)),
        105 => again(c, QueryRoute::read(c)),
        202 => again(c, TopicStats::read(c)),
        208 => again(c, ConsumeStats::read(c)),
        215 => again(c, DeleteTopicInBroker::read(c)),
        216 => again(c, DeleteTopicInNamesrv::read(c)),
        222 => again(c, ResetOffset::read(c)),
        310 | 320 => again(c, SendMessage::read(c)),
        351 => again(c, GetTopicConfig::read(c)),
        200_050 => again(c, Pop::read(c)),
        200_051 => again(c, Ack::read(c)),
        200_053 => again(c, ChangeInvisible::read(c)),
        34 | 41 | 42 | 106 | 200 | 206 | 400 | 401 | 9999 | 200_151 => again(c, Ok(Plain(c.code()))),
        other => panic!("no request type for code {other}"),
    }
}

#[test]
fn every_request_encodes_to_the_fields_it_was_decoded_from() {
    // Fields that Java's base classes write and this client has no use for.
    const UNUSED: [&str; 2] = ["ReqT", "suspend"];
    let exchanges = exchanges();
    assert_eq!(exchanges.len(), 85);
    for Exchange { name, request, .. } in exchanges {
        let copy = reencode(&request);
        let mut wanted = fields(&request);
        wanted.retain(|field, _| !UNUSED.contains(&field.as_str()));
        let mut got = fields(&copy);
        // A field that a refused request left out on purpose comes back as its default.
        if !wanted.contains_key("m") && name.starts_with("probe") {
            got.remove("m");
        }
        assert_eq!(got, wanted, "{name}");
        assert_eq!(copy.code(), request.code(), "{name}");
        assert_eq!(copy.header.flag, request.header.flag, "{name}");
        assert_eq!(copy.header.opaque, request.header.opaque, "{name}");
        assert_eq!(copy.body, request.body, "{name}");
    }
}

#[test]
fn every_response_pairs_with_its_request() {
    for Exchange {
        name,
        request,
        response,
    } in exchanges()
    {
        let Some(response) = response else {
            assert!(request.is_oneway(), "{name}");
            continue;
        };
        assert!(response.is_response() && !request.is_response(), "{name}");
        assert_eq!(response.header.opaque, request.header.opaque, "{name}");
        let code = name.rsplit_once("-code").unwrap().1.split('-').next().unwrap();
        assert_eq!(response.code().to_string(), code, "{name}");
    }
}

#[test]
fn stored_messages_encode_to_the_same_bytes() {
    let mut count = 0;
    for Exchange {
        name,
        request,
        response,
    } in exchanges()
    {
        let body = match request.code() {
            11 | 361 | 200_050 => response.unwrap().body,
            39 => request.body,
            _ => continue,
        };
        let mut out = BytesMut::new();
        for message in StoredMessages::new(body.clone()) {
            let message = message.unwrap();
            message.encode(&mut out).unwrap();
            let text = properties(&message);
            assert_eq!(text, message.properties, "{name}");
            count += 1;
        }
        assert_eq!(out, body, "{name}");
    }
    assert!(count > 30, "{count}");
}

fn properties(message: &StoredMessage) -> Bytes {
    let mut out = BytesMut::new();
    let mut writer = PropertyWriter::new(&mut out);
    for (name, value) in message.properties() {
        writer.put(name, value).unwrap();
    }
    out.freeze()
}

#[test]
fn batches_encode_to_the_same_bytes() {
    for name in ["send-batch-code0", "probe-send-batch-code0"] {
        let body = named(name).request.body;
        let mut out = BytesMut::new();
        let mut batch = BatchWriter::new(&mut out);
        for entry in decode_batch(body.clone()).unwrap() {
            batch
                .push(entry.flag, &entry.body, |writer| {
                    mq_rocketmq::remoting::Properties::new(&entry.properties)
                        .try_for_each(|(name, value)| writer.put(name, value))
                })
                .unwrap();
        }
        assert_eq!(out, body, "{name}");
    }
}

#[test]
fn pulled_messages_have_their_content() {
    let answer = named("pull-sysflag4-code0").response.unwrap();
    assert!(answer.field::<i64>("nextBeginOffset").unwrap() > 0);
    let messages: Vec<_> = StoredMessages::new(answer.body)
        .collect::<Result<_, _>>()
        .unwrap();
    let message = &messages[0];
    assert_eq!(message.topic().unwrap(), "FrT");
    assert_eq!(message.property("WAIT"), Some("true"));
    assert_eq!(message.property("UNIQ_KEY").unwrap().len(), 56);
    assert!(!message.payload(1024).unwrap().is_empty());
    assert!(message.stored >= message.born);
}

#[test]
fn receipts_are_built_from_a_pop_answer_as_java_builds_them() {
    let exchange = named("pop-code0");
    let answer = exchange.response.unwrap();
    let starts = StartOffsets::parse(answer.field("startOffsetInfo").unwrap()).unwrap();
    let receipts: Vec<_> = StoredMessages::new(answer.body.clone())
        .map(|message| {
            let message = message.unwrap();
            let kind = PopTopicKind::of(message.topic().unwrap());
            PopReceipt {
                start_offset: starts.find(kind, message.queue).unwrap(),
                pop_time: answer.field("popTime").unwrap(),
                invisible_ms: answer.field("invisibleTime").unwrap(),
                revive_queue: answer.field("reviveQid").unwrap(),
                kind,
                broker: "broker-a".into(),
                queue: message.queue,
                offset: message.offset,
            }
            .to_string()
        })
        .collect();
    assert_eq!(receipts.len(), 8);
    let ack = named("ack-code0").request;
    assert!(
        receipts
            .iter()
            .any(|receipt| receipt == Ack::read(&ack).unwrap().receipt)
    );
    let change = named("change-invisible-code0").request;
    assert!(
        receipts
            .iter()
            .any(|receipt| receipt == ChangeInvisible::read(&change).unwrap().receipt)
    );
}

#[test]
fn a_message_that_comes_back_carries_its_receipt() {
    let answer = named("probe-pop-code0-2").response.unwrap();
    let message = StoredMessages::new(answer.body).next().unwrap().unwrap();
    let receipt: PopReceipt = message.property("POP_CK").unwrap().parse().unwrap();
    assert_eq!(receipt.kind, PopTopicKind::RetryV2);
    assert_eq!(
        receipt.kind.stored_topic(message.topic().unwrap(), "Gq"),
        "%RETRY%Gq+Xf"
    );
}

#[test]
fn bodies_decode() {
    let body = |name: &str| named(name).response.unwrap();
    let route: TopicRoute = body("probe-route-code0").json("route").unwrap();
    assert_eq!(route.brokers[0].broker_name, route.queues[0].broker_name);
    assert!(route.brokers[0].broker_addrs.contains_key(&0));

    let cluster = ClusterInfo::parse(&body("cluster-info-code0").body).unwrap();
    assert_eq!(
        cluster.broker_addr_table["broker-a"].broker_addrs[&0],
        "127.0.0.2:29004"
    );
    assert_eq!(cluster.cluster_addr_table["test"], ["broker-a"]);

    let topics: TopicList = body("probe-topic-list-code0").json("topics").unwrap();
    assert!(topics.topic_list.iter().any(|topic| topic == "Xf"));

    let config: TopicConfig = body("code351-code0").json("topic").unwrap();
    assert_eq!(
        (config.read_queue_nums, config.write_queue_nums, config.perm),
        (4, 4, 6)
    );

    let consumers: ConsumerList = body("consumer-list-code0").json("consumers").unwrap();
    assert_eq!(consumers.consumer_id_list, ["192.0.2.2@c1"]);

    let locked: LockedBody = body("lock-queues-code0").json("locks").unwrap();
    assert_eq!(locked.locked[0].queue_id, 2);
}

#[test]
fn bodies_encode_to_what_java_sends() {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(name: &str) {
        let request = named(name).request;
        let typed: T = request.json("body").unwrap();
        let plain: serde_json::Value = request.json("body").unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), plain, "{name}");
    }
    same::<HeartbeatBody>("heartbeat-consumer-code0");
    same::<HeartbeatBody>("heartbeat-producer-code0");
    same::<LockBody>("lock-queues-code0");
    same::<LockBody>("unlock-queues-code0");
    same::<BatchAckBody>("probe-batch-ack-code0");
    assert_eq!(
        request::HEART_BEAT,
        named("heartbeat-consumer-code0").request.code()
    );
}

#[test]
fn tables_with_objects_as_keys_decode() {
    for name in [
        "topic-stats-code0",
        "consume-stats-code0",
        "invoke-reset-offset-code0",
    ] {
        let table = parse_lenient(&named(name).response.unwrap().body).unwrap();
        assert_eq!(table["offsetTable"].as_array().unwrap().len(), 4, "{name}");
    }
}

/// What fuzzing does without end, in a second, or a million times where `MQ_TEST_FULL` is set: bytes of real frames are
/// turned, dropped and doubled.
#[test]
fn captured_frames_with_broken_bytes_break_no_decoder() {
    let bodies: Vec<Bytes> = exchanges()
        .into_iter()
        .flat_map(|exchange| [Some(exchange.request), exchange.response])
        .flatten()
        .flat_map(|command| {
            let mut frame = BytesMut::new();
            encode_request(&mut frame, 1, false, &Plain(command.code()), &command.body, None).unwrap();
            [frame.freeze(), command.body]
        })
        .filter(|bytes| !bytes.is_empty())
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    let rounds = if std::env::var_os("MQ_TEST_FULL").is_some() {
        1_000_000
    } else {
        20_000
    };
    for _ in 0..rounds {
        let mut broken = bodies[random.usize(..bodies.len())].to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..broken.len());
            match random.u8(..3) {
                0 => broken[at] = random.u8(..),
                1 => broken.insert(at, random.u8(..)),
                _ => broken.truncate(at.max(1)),
            }
        }
        let bytes = Bytes::from(broken);
        if let Ok(Some(command)) = decode_frame(&mut BytesMut::from(&bytes[..])) {
            command.header.ext.iter().for_each(drop);
        }
        for message in StoredMessages::new(bytes.clone()).flatten() {
            message.properties().for_each(drop);
            drop(message.payload(1 << 20));
        }
        drop(decode_batch(bytes.clone()));
        drop(parse_lenient(&bytes));
        drop(Header::decode(&bytes));
        drop(decompress(1 | random.i32(0..4) << 8, &bytes, 1 << 16));
        Properties::new(&bytes).for_each(|(_, value)| drop(decode_value(value)));
        if let Ok(text) = std::str::from_utf8(&bytes) {
            drop(text.parse::<PopReceipt>());
            drop(StartOffsets::parse(text));
        }
    }
}
