//! Addresses where there is no server, or something that is none.

use std::{net::SocketAddr, time::Duration};

use mq_api::{Error, ErrorKind, Mq, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};

use crate::{
    cases::resources::peak_memory,
    context::Context,
    failure::{CaseResult, ensure, fail, note},
};

/// How long a connect may take that gets nowhere: the default request timeout and some more.
pub(super) const CONNECT: Duration = Duration::from_secs(35);

/// F4: a connect to an address where no server is fails in its deadline, typed and worth a retry. Guarantees 9 and 10.
pub(super) async fn absent_server_is_a_typed_error(cx: Context) -> CaseResult {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    drop(listener);
    let what = "a connect to an address without a server";
    let result = connect(&cx, what, address).await?;
    unreachable(what, result.map(drop))
}

/// F6: a connect to a peer that accepts and says nothing, or sends 64 MB of junk, fails in its deadline, typed, and its
/// memory stays bounded. Guarantees 9 and 10.
pub(super) async fn silent_and_babbling_peers_are_typed_errors(cx: Context) -> CaseResult {
    /// What all of the peers together may cost: less than what one of them sends.
    const MEMORY: u64 = 48 * 1024 * 1024;
    // What is loaded once is loaded by a client that works.
    cx.mq().await?.describe_topic(cx.topic("peers", 1).await?).await?;
    let before = peak_memory()?;
    let mut tasks = JoinSet::new();
    for peer in Peer::ALL {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cx = cx.clone();
        tasks.spawn(async move {
            let served = tokio::spawn(peer.serve(listener));
            let what = format!("a connect to a peer that {}", peer.describe());
            let result = connect(&cx, &what, address).await;
            served.abort();
            match result? {
                Err(error) if TYPED.contains(&error.kind()) => Ok(()),
                Err(error) => fail!(
                    "{what} was to give one of {TYPED:?}, it gave {:?}: {error}",
                    error.kind()
                ),
                Ok(_) => fail!("{what} was `Ok`"),
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    let grown = peak_memory()?.saturating_sub(before);
    note!(cx, "{grown} bytes more than before at the peak");
    ensure!(
        grown <= MEMORY,
        "unbounded: peers that sent 64 MB of junk each cost {grown} bytes at the peak, allowed are {MEMORY}"
    );
    Ok(())
}

/// What a peer that is no server may be told as.
const TYPED: &[ErrorKind] = &[ErrorKind::Timeout, ErrorKind::Connection, ErrorKind::Protocol];

async fn connect(cx: &Context, what: &str, address: SocketAddr) -> CaseResult<Result<Mq>> {
    let Some(url) = cx.harness().url_at(address) else {
        fail!("the harness gives no URL for an address");
    };
    let begun = Instant::now();
    let result = cx
        .within(format!("hangs: {what}"), CONNECT, cx.harness().connect(&url))
        .await?;
    let told = result.as_ref().err().map(Error::to_string);
    note!(cx, "{what} took {:?} and gave {told:?}", begun.elapsed());
    Ok(result)
}

/// Checks the error of a connect that reached nobody.
pub(super) fn unreachable(what: &str, result: Result<()>) -> CaseResult {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout) => {
            ensure!(error.is_retryable(), "{what} was to be worth a retry: {error}");
            Ok(())
        }
        Err(error) => fail!(
            "{what} was to be a connection error or a timeout, it gave {:?}: {error}",
            error.kind()
        ),
        Ok(()) => fail!("{what} was `Ok`"),
    }
}

#[derive(Clone, Copy)]
enum Peer {
    Silent,
    Random,
    Same(u8),
    Lines,
}

impl Peer {
    const ALL: [Self; 5] = [
        Self::Silent,
        Self::Random,
        Self::Same(0),
        Self::Same(0xff),
        Self::Lines,
    ];

    fn describe(self) -> String {
        match self {
            Self::Silent => "says nothing".to_owned(),
            Self::Random => "sends random bytes".to_owned(),
            Self::Same(byte) => format!("sends nothing but {byte:#04x}"),
            Self::Lines => "sends lines of text".to_owned(),
        }
    }

    async fn serve(self, listener: TcpListener) {
        let mut peers = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            peers.spawn(self.talk(stream));
        }
    }

    async fn talk(self, mut stream: TcpStream) {
        const PIECE: usize = 64 * 1024;
        let mut piece = vec![0; PIECE];
        match self {
            Self::Silent => {}
            Self::Random => piece.fill_with(|| fastrand::u8(..)),
            Self::Same(byte) => piece.fill(byte),
            Self::Lines => piece
                .iter_mut()
                .zip(b"HTTP/1.1 400 Bad Request\r\n".iter().cycle())
                .for_each(|(to, from)| *to = *from),
        }
        if !matches!(self, Self::Silent) {
            for _ in 0..64 * 1024 * 1024 / PIECE {
                if stream.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }
        // Holds the connection until the client ends it.
        while matches!(stream.read(&mut piece).await, Ok(read) if read > 0) {}
    }
}
