//! The client of a cluster, against servers that follow a script: what it asks, in which order, and what it makes of
//! answers, silence and death.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mq_rocketmq::client::{
    Cluster, ClusterOptions, CreatedTopic, NameserverSource, PullOptions, PullStatus, QueueRef, Session,
};
use mq_rocketmq::remoting::{
    BatchWriter, Command, RemotingError, SendMessage, SubscriptionData, decode_frame, encode_response,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// What a server answers: code, fields, body.
struct Answer(i32, Vec<(&'static str, String)>, String);

fn ok(body: impl Into<String>) -> Option<Answer> {
    Some(Answer(0, Vec::new(), body.into()))
}

fn code(code: i32) -> Option<Answer> {
    Some(Answer(code, Vec::new(), String::new()))
}

type Script = dyn Fn(&Command) -> Option<Answer> + Send + Sync;

/// A server that answers by a script and remembers what it was asked.
struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Command>>>,
    connections: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(script: impl Fn(&Command) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, Arc::new(script))
    }

    fn serve(listener: TcpListener, script: Arc<Script>) -> Self {
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let task = tokio::spawn({
            let (asked, connections) = (asked.clone(), connections.clone());
            async move {
                let mut peers = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    *connections.lock().unwrap() += 1;
                    peers.spawn(converse(stream, script.clone(), asked.clone()));
                }
            }
        });
        Self {
            address,
            asked,
            connections,
            task,
        }
    }

    fn codes(&self) -> Vec<i32> {
        self.asked.lock().unwrap().iter().map(Command::code).collect()
    }

    fn asked(&self, code: i32) -> Vec<Command> {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|command| command.code() == code)
            .cloned()
            .collect()
    }

    async fn stop(self) {
        self.task.abort();
        drop(self.task.await);
    }
}

async fn converse(mut stream: TcpStream, script: Arc<Script>, asked: Arc<Mutex<Vec<Command>>>) {
    let mut buffer = BytesMut::new();
    loop {
        while let Some(command) = decode_frame(&mut buffer).unwrap() {
            let answer = script(&command);
            let opaque = command.header.opaque;
            asked.lock().unwrap().push(command);
            if let Some(Answer(code, ext, body)) = answer {
                let mut out = BytesMut::new();
                encode_response(
                    &mut out,
                    opaque,
                    code,
                    Some("scripted"),
                    &Bytes::from(body),
                    |fields| {
                        for (name, value) in &ext {
                            fields.put(name, value.as_str());
                        }
                    },
                )
                .unwrap();
                stream.write_all(&out).await.unwrap();
            }
        }
        if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// The route of a topic with `queues` queues on one broker.
fn route(broker: &str, addresses: &[(i64, &str)], queues: i32) -> String {
    let addresses: BTreeMap<String, &str> = addresses.iter().map(|(id, a)| (id.to_string(), *a)).collect();
    serde_json::json!({
        "brokerDatas": [{"brokerName": broker, "cluster": "c", "brokerAddrs": addresses}],
        "queueDatas": [{"brokerName": broker, "perm": 6, "readQueueNums": queues, "writeQueueNums": queues}],
    })
    .to_string()
}

/// A nameserver that routes every topic to one broker and keeps no layouts.
async fn nameserver(broker: &'static str, address: &str, queues: i32) -> Server {
    let address = address.to_owned();
    Server::start(move |command| match command.code() {
        105 => ok(route(broker, &[(0, &address)], queues)),
        106 => {
            let table = format!("{{\"brokerAddrTable\":{{\"{broker}\":{{\"brokerAddrs\":{{0:\"{address}\"}},\"brokerName\":\"{broker}\",\"cluster\":\"c\"}}}},\"clusterAddrTable\":{{\"c\":[\"{broker}\"]}}}}");
            ok(table)
        }
        101 => code(22),
        _ => ok(""),
    })
    .await
}

fn options(addresses: &[&str]) -> ClusterOptions {
    let list = addresses.iter().map(|address| (*address).to_owned()).collect();
    let mut options = ClusterOptions::new(NameserverSource::List(list));
    options.nameserver_timeout = Duration::from_millis(500);
    options
}

fn queue(broker: &str, queue: i32) -> QueueRef {
    QueueRef {
        broker: broker.into(),
        queue,
    }
}

#[tokio::test]
async fn a_silent_or_dead_nameserver_leaves_time_for_the_next() {
    let silent = Server::start(|_| None).await;
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let good = nameserver("a", "127.0.0.1:1", 2).await;
    for _ in 0..4 {
        let cluster = Cluster::open(options(&[&silent.address, &dead, &good.address])).unwrap();
        let found = cluster
            .route("t", Instant::now() + Duration::from_secs(3))
            .await
            .unwrap();
        assert_eq!(found.layout.to_string(), "1 a:0:2");
    }
}

#[tokio::test]
async fn routes_outlive_the_nameserver() {
    let server = nameserver("a", "127.0.0.1:1", 2).await;
    let cluster = Cluster::open(options(&[&server.address])).unwrap();
    let first = cluster.route("t", soon()).await.unwrap();
    server.stop().await;
    assert!(
        cluster
            .refresh("t", Instant::now() + Duration::from_millis(300))
            .await
            .is_err()
    );
    assert_eq!(cluster.route("t", soon()).await.unwrap(), first);
    assert_eq!(&*cluster.addresses("a")[&0], "127.0.0.1:1");
}

#[tokio::test]
async fn a_client_starts_from_its_snapshot_while_every_nameserver_is_down() {
    let folder = std::env::temp_dir().join(format!("mq-rocketmq-client-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("routes.json");
    let server = nameserver("a", "127.0.0.1:1", 3).await;
    let mut options = options(&[&server.address]);
    options.snapshot = Some(path.clone());
    options.route_refresh = Duration::from_millis(20);
    let cluster = Cluster::open(options.clone()).unwrap();
    let watched = cluster.watch("t");
    cluster.route("t", soon()).await.unwrap();
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop((cluster, watched));
    server.stop().await;
    let cluster = Cluster::open(options).unwrap();
    assert_eq!(cluster.route("t", soon()).await.unwrap().layout.len(), 3);
    assert_eq!(&*cluster.addresses("a")[&0], "127.0.0.1:1");
    assert!(cluster.route("other", soon()).await.is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn two_clusters_in_one_process_never_mix() {
    let first_broker = Server::start(|_| Some(Answer(0, vec![("offset", "1".into())], String::new()))).await;
    let second_broker = Server::start(|_| Some(Answer(0, vec![("offset", "2".into())], String::new()))).await;
    let first_names = nameserver("broker-a", &first_broker.address, 1).await;
    let second_names = nameserver("broker-a", &second_broker.address, 4).await;
    let first = Cluster::open(options(&[&first_names.address])).unwrap();
    let second = Cluster::open(options(&[&second_names.address])).unwrap();
    for (cluster, partitions, offset) in [(&first, 1, 1), (&second, 4, 2)] {
        let found = cluster.route("t", soon()).await.unwrap();
        assert_eq!(found.layout.len(), partitions);
        let session = Session::new(cluster);
        let committed = session
            .committed("g", "t", &queue("broker-a", 0), soon())
            .await
            .unwrap();
        assert_eq!(committed, Some(offset));
    }
    assert_eq!(first_broker.codes(), [14]);
    assert_eq!(second_broker.codes(), [14]);
}

#[tokio::test]
async fn an_address_service_names_the_nameservers() {
    let names = nameserver("a", "127.0.0.1:1", 2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/rocketmq/nsaddr", listener.local_addr().unwrap());
    let address = names.address.clone();
    let service = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        assert!(request.starts_with(b"GET /rocketmq/nsaddr HTTP/1.0\r\n"));
        let answer = format!("HTTP/1.1 200 OK\r\nServer: x\r\n\r\n{address};\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let cluster = Cluster::open(ClusterOptions::new(NameserverSource::Http(url))).unwrap();
    assert_eq!(cluster.route("t", soon()).await.unwrap().layout.len(), 2);
    service.await.unwrap();
}

/// Runs itself once more where the variable is set, since a process cannot safely set its own.
#[test]
fn nameservers_can_come_from_the_environment() {
    const VARIABLE: &str = "NAMESRV_ADDR";
    const LIST: &str = " a:1; b:2;";
    if std::env::var(VARIABLE).is_ok_and(|list| list == LIST) {
        let url = mq_api::url::ConnectUrl::parse("rocketmq:///?namespace=dev").unwrap();
        let config = mq_rocketmq::RocketMqConfig::from_url(&url).unwrap();
        let list = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(config.nameservers, NameserverSource::List(list));
        return;
    }
    let again = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["nameservers_can_come_from_the_environment", "--exact"])
        .env(VARIABLE, LIST)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_recorded_layout_keeps_the_numbers_of_a_broker_that_is_down() {
    let names = Server::start(|command| match command.code() {
        // Broker a is down: only b is in the route, and an operator gave it a queue more.
        105 => ok(route("b", &[(0, "127.0.0.1:1")], 3)),
        101 => Some(Answer(0, vec![("value", "1 a:0:2 b:0:2".into())], String::new())),
        _ => None,
    })
    .await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    let found = cluster.route("t", soon()).await.unwrap();
    assert_eq!(found.layout.to_string(), "1 a:0:2 b:0:3");
    let error = Session::new(&cluster)
        .bounds("t", &queue("a", 0), soon())
        .await
        .unwrap_err();
    assert!(matches!(error, RemotingError::NoServer { .. }), "{error}");
}

#[tokio::test]
async fn a_known_topic_without_a_broker_is_an_outage_and_an_unknown_one_is_missing() {
    let names = Server::start(|command| match (command.code(), command.header.ext.text("key")) {
        (101, Some("known")) => Some(Answer(0, vec![("value", "1 a:0:2".into())], String::new())),
        (101, _) => code(22),
        _ => code(17),
    })
    .await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    let error = cluster.route("known", soon()).await.unwrap_err();
    assert!(matches!(error, RemotingError::NoServer { .. }), "{error}");
    assert_eq!(
        cluster.route("unknown", soon()).await.unwrap_err().refusal(),
        Some(17)
    );
}

#[tokio::test]
async fn a_layout_record_of_a_later_version_is_an_error() {
    let names = Server::start(|command| match command.code() {
        101 => Some(Answer(0, vec![("value", "2 whatever".into())], String::new())),
        _ => ok(route("a", &[(0, "127.0.0.1:1")], 1)),
    })
    .await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    let error = cluster.route("t", soon()).await.unwrap_err();
    assert!(matches!(error, RemotingError::Malformed { .. }), "{error}");
}

#[tokio::test]
async fn creating_an_existing_topic_changes_nothing() {
    let broker = Server::start(|command| match command.code() {
        351 => ok(r#"{"topicName":"t","readQueueNums":2,"writeQueueNums":2,"perm":6}"#),
        _ => None,
    })
    .await;
    let names = nameserver("a", &broker.address, 2).await;
    let session = Session::new(&Cluster::open(options(&[&names.address])).unwrap());
    for partitions in [2, 5] {
        let outcome = session.create_topic("t", partitions, None, soon()).await.unwrap();
        assert_eq!(outcome, CreatedTopic::Existed { partitions: 2 });
    }
    assert!(!broker.codes().contains(&17));
    assert!(!names.codes().contains(&100));
}

#[tokio::test]
async fn a_broker_that_says_go_away_is_asked_again_over_a_new_connection() {
    let turns = Mutex::new(0);
    let broker = Server::start(move |_| {
        let mut turns = turns.lock().unwrap();
        *turns += 1;
        if *turns == 1 {
            code(1500)
        } else {
            Some(Answer(0, vec![("offset", "7".into())], String::new()))
        }
    })
    .await;
    let names = nameserver("a", &broker.address, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    assert_eq!(
        session.committed("g", "t", &queue("a", 0), soon()).await.unwrap(),
        Some(7)
    );
    assert_eq!(*broker.connections.lock().unwrap(), 2);
}

#[tokio::test]
async fn stored_offsets_are_asked_for_without_the_zero_of_small_topics() {
    let broker = Server::start(|_| code(22)).await;
    let names = nameserver("a", &broker.address, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    assert_eq!(
        session.committed("g", "t", &queue("a", 0), soon()).await.unwrap(),
        None
    );
    assert_eq!(
        broker.asked(14)[0].header.ext.text("setZeroIfNotFound"),
        Some("false")
    );
}

#[tokio::test]
async fn a_broker_without_counters_yet_is_asked_again() {
    let turns = Mutex::new(0);
    let broker = Server::start(move |_| {
        let mut turns = turns.lock().unwrap();
        *turns += 1;
        if *turns < 3 {
            return code(1);
        }
        ok(r#"{"table":{"commitLogMaxOffset":"9","dispatchBehindBytes":"0"}}"#)
    })
    .await;
    let names = nameserver("a", &broker.address, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    assert!(Session::new(&cluster).catch_up("a", soon()).await.unwrap());
    assert_eq!(broker.codes(), [28, 28, 28]);
}

#[tokio::test]
async fn a_new_connection_begins_with_a_heartbeat_of_the_groups() {
    let broker = Server::start(|command| match command.code() {
        11 => Some(Answer(
            19,
            vec![
                ("nextBeginOffset", "5".into()),
                ("minOffset", "0".into()),
                ("maxOffset", "5".into()),
            ],
            String::new(),
        )),
        _ => ok(""),
    })
    .await;
    let address = broker.address.clone();
    let names = nameserver("a", &address, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    session
        .join_consumers(
            "g",
            vec![SubscriptionData::tags("t", "*", 1)],
            &["a".into()],
            soon(),
        )
        .await
        .unwrap();
    broker.stop().await;

    let listener = loop {
        if let Ok(listener) = TcpListener::bind(&address).await {
            break listener;
        }
        tokio::task::yield_now().await;
    };
    let again = Server::serve(
        listener,
        Arc::new(|command: &Command| match command.code() {
            11 => Some(Answer(
                19,
                vec![
                    ("nextBeginOffset", "5".into()),
                    ("minOffset", "0".into()),
                    ("maxOffset", "5".into()),
                ],
                String::new(),
            )),
            _ => ok(""),
        }),
    );
    let pull = PullOptions::default();
    let pulled = loop {
        if let Ok(pulled) = session.pull("g", "t", &queue("a", 0), 5, &pull, soon()).await {
            break pulled;
        }
    };
    assert_eq!((pulled.status, pulled.next_offset), (PullStatus::Nothing, 5));
    assert_eq!(again.codes()[0], 34);
    let beat: serde_json::Value = again.asked(34)[0].json("beat").unwrap();
    assert_eq!(beat["clientID"], session.client_id());
    assert_eq!(beat["consumerDataSet"][0]["groupName"], "g");
    session.close(soon()).await;
    let left = again.asked(35);
    assert_eq!(left[0].header.ext.text("consumerGroup"), Some("g"));
}

#[tokio::test]
async fn a_replica_answers_pulls_while_the_master_is_down() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let replica = Server::start(|_| {
        let fields = vec![
            ("nextBeginOffset", "9".into()),
            ("minOffset", "3".into()),
            ("maxOffset", "9".into()),
        ];
        Some(Answer(21, fields, String::new()))
    })
    .await;
    let found = route("a", &[(0, &dead), (1, &replica.address)], 1);
    let names = Server::start(move |command| {
        if command.code() == 105 {
            ok(found.clone())
        } else {
            code(22)
        }
    })
    .await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    let pulled = session
        .pull("g", "t", &queue("a", 0), 1, &PullOptions::default(), soon())
        .await
        .unwrap();
    assert_eq!((pulled.status, pulled.min_offset), (PullStatus::OffsetMoved, 3));
    assert!(
        session
            .commit(
                "g",
                "t",
                &queue("a", 0),
                1,
                Instant::now() + Duration::from_millis(200)
            )
            .await
            .is_err()
    );
}

#[tokio::test]
async fn members_come_once_each_and_none_is_no_error() {
    let turns = Mutex::new(0);
    let broker = Server::start(move |_| {
        let mut turns = turns.lock().unwrap();
        *turns += 1;
        if *turns == 1 {
            ok(r#"{"consumerIdList":["b","a","b"]}"#)
        } else {
            code(1)
        }
    })
    .await;
    let names = nameserver("a", &broker.address, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    let members = session.members("a", "g", soon()).await.unwrap();
    assert_eq!(members.into_iter().collect::<Vec<_>>(), ["a", "b"]);
    // The script's words are not those of an empty group.
    assert_eq!(
        session.members("a", "g", soon()).await.unwrap_err().refusal(),
        Some(1)
    );
}

#[tokio::test]
async fn callers_in_a_loop_do_not_hammer_a_dead_broker() {
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let names = nameserver("a", &dead, 1).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    let until = Instant::now() + Duration::from_secs(1);
    let mut tries = 0;
    while Instant::now() < until {
        let error = session.bounds("t", &queue("a", 0), until).await.unwrap_err();
        assert!(
            error.is_connection() || matches!(error, RemotingError::Timeout { .. }),
            "{error}"
        );
        tries += 1;
    }
    assert!(tries < 20, "{tries}");
}

/// A body of three messages.
struct Three;

impl mq_rocketmq::remoting::EncodeBody for Three {
    fn encode(&self, out: &mut BytesMut) -> Result<(), RemotingError> {
        let mut batch = BatchWriter::new(out);
        (0..3u8).try_for_each(|n| batch.push(0, &[n], |properties| properties.put("n", "v")))
    }
}

#[tokio::test]
async fn a_batch_is_answered_with_its_first_offset() {
    let broker = Server::start(|_| {
        let fields = vec![
            ("queueId", "1".into()),
            ("queueOffset", "40".into()),
            ("msgId", "A,B,C".into()),
        ];
        Some(Answer(0, fields, String::new()))
    })
    .await;
    let names = nameserver("a", &broker.address, 2).await;
    let cluster = Cluster::open(options(&[&names.address])).unwrap();
    cluster.route("t", soon()).await.unwrap();
    let session = Session::new(&cluster);
    let request = SendMessage {
        group: "p",
        topic: "t",
        queue: 1,
        batch: true,
        ..SendMessage::default()
    };
    let receipt = session.send("a", &request, &Three, soon()).await.unwrap();
    assert_eq!((receipt.queue, receipt.offset), (1, 40));
    assert_eq!(broker.codes(), [320]);
    assert_eq!(
        mq_rocketmq::remoting::decode_batch(broker.asked(320)[0].body.clone())
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn a_dropped_cluster_and_session_leave_no_task_and_no_connection() {
    let broker = Server::start(|_| ok(r#"{"consumerIdList":[]}"#)).await;
    let names = nameserver("a", &broker.address, 1).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    for _ in 0..5 {
        let cluster = Cluster::open(options(&[&names.address])).unwrap();
        cluster.route("t", soon()).await.unwrap();
        let session = Session::new(&cluster);
        session.members("a", "g", soon()).await.unwrap();
        assert!(tasks() > before);
        drop((cluster, session));
    }
    while tasks() > before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
