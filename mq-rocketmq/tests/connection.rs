//! A connection pairs answers with callers, keeps its bounds and deadlines, and tells what may have happened.
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mq_rocketmq::remoting::codes::{inbound, response};
use mq_rocketmq::remoting::{
    Command, Connection, ConnectionOptions, Credentials, Effect, Inbound, InboundHandler, MinOffset, Plain,
    RefuseInbound, RemotingError, TlsOptions, TlsSetup, decode_frame, encode_request, encode_response,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

fn within(millis: u64) -> Instant {
    Instant::now() + Duration::from_millis(millis)
}

fn soon() -> Instant {
    within(10_000)
}

/// The other end of a connection, played by the test.
struct Peer<S = TcpStream> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWriteExt + Unpin> Peer<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next frame, or `None` at the end of the stream.
    async fn next(&mut self) -> Option<Command> {
        loop {
            if let Some(command) = decode_frame(&mut self.buffer).unwrap() {
                return Some(command);
            }
            if self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn answer(&mut self, opaque: i32, code: i32, remark: Option<&str>, body: &'static [u8]) {
        let mut out = BytesMut::new();
        encode_response(&mut out, opaque, code, remark, body, |_| ()).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }
}

async fn pair(options: ConnectionOptions, handler: Arc<dyn InboundHandler>) -> (Connection, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (connection, accepted) = tokio::join!(
        Connection::open(&address, options, handler, soon()),
        listener.accept()
    );
    (connection.unwrap(), Peer::new(accepted.unwrap().0))
}

async fn plain_pair() -> (Connection, Peer) {
    pair(ConnectionOptions::default(), Arc::new(RefuseInbound)).await
}

#[tokio::test]
async fn answers_in_any_order_find_their_callers() {
    let (connection, mut peer) = plain_pair().await;
    let calls: Vec<_> = (0..50u8)
        .map(|n| {
            let connection = connection.clone();
            tokio::spawn(async move {
                let body = Bytes::from(vec![n]);
                (
                    n,
                    connection.call_ok(&Plain(34), &body, soon()).await.unwrap().body,
                )
            })
        })
        .collect();
    let mut requests = Vec::new();
    for _ in 0..50 {
        requests.push(peer.next().await.unwrap());
    }
    for request in requests.into_iter().rev() {
        let mut out = BytesMut::new();
        encode_response(&mut out, request.header.opaque, 0, None, &request.body, |_| ()).unwrap();
        peer.stream.write_all(&out).await.unwrap();
    }
    for call in calls {
        let (n, body) = call.await.unwrap();
        assert_eq!(body, [n].as_slice());
    }
}

#[tokio::test]
async fn a_silent_server_costs_a_call_its_deadline_and_no_more() {
    let (connection, mut peer) = plain_pair().await;
    let began = Instant::now();
    let error = connection.call(&Plain(34), &(), within(100)).await.unwrap_err();
    assert!(
        matches!(error, RemotingError::Timeout { code: 34, .. }),
        "{error}"
    );
    assert_eq!(error.effect(), Effect::Unknown);
    assert!(began.elapsed() < Duration::from_secs(5));
    // The late answer harms nobody, and the connection still works.
    let late = peer.next().await.unwrap();
    peer.answer(late.header.opaque, 0, None, b"late").await;
    let (answer, ()) = tokio::join!(connection.call_ok(&Plain(34), &(), soon()), async {
        let request = peer.next().await.unwrap();
        peer.answer(request.header.opaque, 0, None, b"new").await;
    });
    assert_eq!(answer.unwrap().body, "new");
}

#[tokio::test]
async fn a_connection_silent_for_long_is_given_up() {
    let mut options = ConnectionOptions::default();
    options.silence = Duration::from_millis(50);
    let (connection, _peer) = pair(options, Arc::new(RefuseInbound)).await;
    connection.call(&Plain(34), &(), within(150)).await.unwrap_err();
    assert!(!connection.is_usable());
    let error = connection.call(&Plain(34), &(), soon()).await.unwrap_err();
    assert!(matches!(error, RemotingError::Lost { .. }), "{error}");
    assert_eq!(error.effect(), Effect::NotSent);
}

#[tokio::test]
async fn a_lost_connection_fails_what_waits_as_unknown() {
    let (connection, mut peer) = plain_pair().await;
    let (outcome, ()) = tokio::join!(connection.call(&Plain(34), &(), soon()), async {
        peer.next().await.unwrap();
        drop(peer);
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, RemotingError::Lost { .. }), "{error}");
    assert_eq!(error.effect(), Effect::Unknown);
}

#[tokio::test]
async fn what_a_stuck_server_did_not_take_is_bounded_and_not_sent() {
    let mut options = ConnectionOptions::default();
    options.max_outgoing = 1024 * 1024;
    let (connection, peer) = pair(options, Arc::new(RefuseInbound)).await;
    let body = Bytes::from(vec![0; 512 * 1024]);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let (connection, body) = (connection.clone(), body.clone());
            tokio::spawn(async move { connection.call(&Plain(34), &body, within(500)).await.unwrap_err() })
        })
        .collect();
    let mut not_sent = 0;
    for call in calls {
        let error = call.await.unwrap();
        assert!(matches!(error, RemotingError::Timeout { .. }), "{error}");
        not_sent += usize::from(error.effect() == Effect::NotSent);
    }
    // Socket buffers hold some, the outgoing buffer a few more.
    assert!(not_sent > 32, "{not_sent}");
    drop(peer);
}

#[tokio::test]
async fn a_frame_that_did_not_leave_whole_is_not_sent_when_the_connection_is_lost() {
    let mut options = ConnectionOptions::default();
    options.max_outgoing = 64 * 1024 * 1024;
    let (connection, peer) = pair(options, Arc::new(RefuseInbound)).await;
    let body = Bytes::from(vec![0; 8 * 1024 * 1024]);
    let first = connection.call(&Plain(34), &body, soon());
    let second = connection.call(&Plain(34), &body, soon());
    let (first, second, ()) = tokio::join!(first, second, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(peer);
    });
    drop(first);
    assert_eq!(second.unwrap_err().effect(), Effect::NotSent);
}

#[tokio::test]
async fn junk_ends_the_connection_with_a_typed_error() {
    let (connection, mut peer) = plain_pair().await;
    let junk = tokio::spawn(async move {
        let block = vec![0xa5; 1024 * 1024];
        for _ in 0..64 {
            if peer.stream.write_all(&block).await.is_err() {
                break;
            }
        }
    });
    let error = connection.call(&Plain(34), &(), soon()).await.unwrap_err();
    assert!(error.to_string().contains("over the limit"), "{error}");
    junk.await.unwrap();
}

#[tokio::test]
async fn overload_is_busy_and_not_sent() {
    for code in [response::SYSTEM_BUSY, response::FLOW_CONTROL] {
        let (connection, mut peer) = plain_pair().await;
        let (outcome, ()) = tokio::join!(connection.call(&Plain(310), &(), soon()), async {
            let request = peer.next().await.unwrap();
            peer.answer(request.header.opaque, code, Some("[OVERLOAD]"), b"")
                .await;
        });
        let error = outcome.unwrap_err();
        assert!(matches!(error, RemotingError::Busy { .. }), "{error}");
        assert_eq!(error.effect(), Effect::NotSent);
        assert!(connection.is_usable());
    }
}

#[tokio::test]
async fn go_away_leaves_older_calls_alone_and_takes_no_new_ones() {
    let (connection, mut peer) = plain_pair().await;
    let older = tokio::spawn({
        let connection = connection.clone();
        async move { connection.call_ok(&Plain(11), &(), soon()).await }
    });
    let older_request = peer.next().await.unwrap();
    let (outcome, ()) = tokio::join!(connection.call(&Plain(34), &(), soon()), async {
        let request = peer.next().await.unwrap();
        peer.answer(request.header.opaque, response::GO_AWAY, None, b"")
            .await;
    });
    let error = outcome.unwrap_err();
    assert!(matches!(error, RemotingError::GoAway { .. }), "{error}");
    assert_eq!(error.effect(), Effect::NotSent);
    assert!(!connection.is_usable());
    assert!(connection.call(&Plain(34), &(), soon()).await.is_err());
    peer.answer(older_request.header.opaque, 0, None, b"done").await;
    assert_eq!(older.await.unwrap().unwrap().body, "done");
}

#[tokio::test]
async fn a_refusal_carries_code_and_words() {
    let (connection, mut peer) = plain_pair().await;
    let (outcome, ()) = tokio::join!(connection.call_ok(&Plain(310), &(), soon()), async {
        let request = peer.next().await.unwrap();
        peer.answer(
            request.header.opaque,
            response::TOPIC_NOT_EXIST,
            Some("topic[x] not exist"),
            b"",
        )
        .await;
    });
    let error = outcome.unwrap_err();
    assert_eq!(error.refusal(), Some(response::TOPIC_NOT_EXIST));
    assert_eq!(error.effect(), Effect::NotSent);
    assert!(error.to_string().contains("topic[x] not exist"));
}

#[tokio::test]
async fn dropped_calls_leave_the_connection_usable() {
    let (connection, mut peer) = plain_pair().await;
    for _ in 0..20 {
        let call = connection.call(&Plain(34), &(), soon());
        assert!(
            tokio::time::timeout(Duration::from_millis(1), call)
                .await
                .is_err()
        );
    }
    let (answer, ()) = tokio::join!(connection.call_ok(&Plain(99), &(), soon()), async {
        loop {
            let request = peer.next().await.unwrap();
            if request.code() == 99 {
                break peer.answer(request.header.opaque, 0, None, b"yes").await;
            }
        }
    });
    assert_eq!(answer.unwrap().body, "yes");
}

#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<i32>>);

impl InboundHandler for Recorder {
    fn on_request(&self, inbound: Inbound) {
        self.0.lock().unwrap().push(inbound.command.code());
        inbound
            .reply(0, None, b"running".as_slice(), |fields| fields.put("x", 1i32))
            .unwrap();
    }
}

#[tokio::test]
async fn requests_of_the_server_reach_the_handler_and_are_answered() {
    let recorder = Arc::new(Recorder::default());
    let (connection, mut peer) = pair(ConnectionOptions::default(), recorder.clone()).await;
    let mut out = BytesMut::new();
    encode_request(
        &mut out,
        5,
        true,
        &Plain(inbound::NOTIFY_CONSUMER_IDS_CHANGED),
        &(),
        None,
    )
    .unwrap();
    encode_request(
        &mut out,
        6,
        false,
        &Plain(inbound::GET_CONSUMER_RUNNING_INFO),
        &(),
        None,
    )
    .unwrap();
    peer.stream.write_all(&out).await.unwrap();
    let answer = peer.next().await.unwrap();
    assert!(answer.is_response());
    assert_eq!((answer.header.opaque, answer.code()), (6, 0));
    assert_eq!(answer.body, "running");
    assert_eq!(*recorder.0.lock().unwrap(), [40, 307]);
    drop(connection);
}

#[tokio::test]
async fn requests_that_nobody_takes_are_refused() {
    let (_connection, mut peer) = plain_pair().await;
    let mut out = BytesMut::new();
    encode_request(&mut out, 9, false, &Plain(12_345), &(), None).unwrap();
    peer.stream.write_all(&out).await.unwrap();
    let answer = peer.next().await.unwrap();
    assert_eq!(
        (answer.header.opaque, answer.code()),
        (9, response::REQUEST_CODE_NOT_SUPPORTED)
    );
}

#[tokio::test]
async fn close_writes_what_is_queued_and_then_refuses() {
    let (connection, mut peer) = plain_pair().await;
    for _ in 0..100 {
        connection.send_oneway(&Plain(15), &(), soon()).await.unwrap();
    }
    connection.close(soon()).await;
    connection.close(soon()).await;
    let mut count = 0;
    while let Some(request) = peer.next().await {
        assert!(request.is_oneway());
        count += 1;
    }
    assert_eq!(count, 100);
    let error = connection.call(&Plain(34), &(), soon()).await.unwrap_err();
    assert!(matches!(error, RemotingError::Closed { .. }), "{error}");
}

#[tokio::test]
async fn the_last_clone_dropped_ends_the_connection() {
    let (connection, mut peer) = plain_pair().await;
    let clone = connection.clone();
    drop(connection);
    clone.send_oneway(&Plain(15), &(), soon()).await.unwrap();
    assert!(peer.next().await.is_some());
    drop(clone);
    assert!(peer.next().await.is_none());
}

#[tokio::test]
async fn nobody_listening_is_a_typed_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = ConnectionOptions::default();
    let error = Connection::open(&address, options, Arc::new(RefuseInbound), soon())
        .await
        .unwrap_err();
    assert!(matches!(error, RemotingError::Connect { .. }), "{error}");
    assert_eq!(error.effect(), Effect::NotSent);
}

#[tokio::test]
async fn signed_requests_carry_the_signature_and_not_the_secret() {
    let mut options = ConnectionOptions::default();
    let credentials = Credentials::new("admin", "top-secret").with_security_token("token");
    options.credentials = Some(Arc::new(credentials.clone()));
    assert!(!format!("{options:?}").contains("top-secret"));
    let (connection, mut peer) = pair(options, Arc::new(RefuseInbound)).await;
    let request = MinOffset {
        topic: "T",
        queue: 1,
        broker: None,
    };
    connection
        .send_oneway(&request, b"body".as_slice(), soon())
        .await
        .unwrap();
    let seen = peer.next().await.unwrap();
    assert_eq!(seen.header.ext.text("AccessKey"), Some("admin"));
    assert_eq!(seen.header.ext.text("SecurityToken"), Some("token"));
    let signature = credentials.sign(&request, b"body".as_slice()).unwrap();
    assert_eq!(seen.header.ext.text("Signature"), Some(signature.as_str()));
    assert_eq!(seen.body, "body");
}

mod tls {
    use super::*;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

    async fn try_pair(
        options: &TlsOptions,
        cert: &rcgen::CertifiedKey<rcgen::KeyPair>,
    ) -> Result<(), RemotingError> {
        let key = PrivateKeyDer::try_from(cert.signing_key.serialize_der()).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![cert.cert.der().clone()];
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let mut peer = Peer::new(stream);
            while let Some(request) = peer.next().await {
                peer.answer(request.header.opaque, 0, None, b"over TLS").await;
            }
        });
        let mut connection_options = ConnectionOptions::default();
        connection_options.tls = Some(TlsSetup::new(options)?);
        let address = format!("127.0.0.1:{port}");
        let connection =
            Connection::open(&address, connection_options, Arc::new(RefuseInbound), soon()).await?;
        let body = Bytes::from(vec![7; 300_000]);
        for _ in 0..3 {
            assert_eq!(
                connection.call_ok(&Plain(34), &body, soon()).await?.body,
                "over TLS"
            );
        }
        drop(connection);
        server.await.unwrap();
        Ok(())
    }

    #[tokio::test]
    async fn certificates_are_verified_unless_told_otherwise() {
        let cert =
            rcgen::generate_simple_self_signed(vec!["broker.test".into(), "127.0.0.1".into()]).unwrap();
        let folder = std::env::temp_dir().join(format!("mq-rocketmq-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let ca_file = folder.join("ca.pem");
        std::fs::write(&ca_file, cert.cert.pem()).unwrap();

        let mut trusting = TlsOptions::default();
        trusting.ca_file = Some(ca_file);
        try_pair(&trusting, &cert).await.unwrap();
        trusting.server_name = Some("broker.test".into());
        try_pair(&trusting, &cert).await.unwrap();
        trusting.server_name = Some("other.test".into());
        let error = try_pair(&trusting, &cert).await.unwrap_err();
        assert!(matches!(error, RemotingError::Tls { .. }), "{error}");

        let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
        trusting.server_name = None;
        let error = try_pair(&trusting, &stranger).await.unwrap_err();
        assert!(matches!(error, RemotingError::Tls { .. }), "{error}");
        let mut insecure = TlsOptions::default();
        insecure.insecure = true;
        try_pair(&insecure, &stranger).await.unwrap();

        insecure.insecure = false;
        insecure.ca_file = Some(folder.join("none.pem"));
        assert!(matches!(
            TlsSetup::new(&insecure),
            Err(RemotingError::Config { .. })
        ));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
