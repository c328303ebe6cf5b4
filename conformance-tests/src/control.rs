//! What this machine is worth at the moment, measured beside what a case measures: a time that a driver is held to must not
//! be that of a machine which is busy with something else.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::failure::CaseResult;

/// How often the other thread answers: a message that goes through a server wakes as many threads at least.
const EXCHANGES: usize = 3;

/// Talks to a thread over loopback, as a client does to a server; neither has anything to do with the driver.
pub(crate) struct Control {
    stream: tokio::net::TcpStream,
}

impl Control {
    /// Starts the thread. It ends with the value.
    pub(crate) async fn start() -> CaseResult<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            if let Ok((peer, _)) = listener.accept() {
                answer(peer);
            }
        })?;
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Waits for a moment by a plain timer, then has the other thread answer; returns how long after the moment that was
    /// done.
    pub(crate) async fn late(&mut self, due: Instant) -> CaseResult<Duration> {
        tokio::time::sleep_until(due).await;
        for _ in 0..EXCHANGES {
            self.stream.write_all(&[0]).await?;
            self.stream.read_exact(&mut [0]).await?;
        }
        Ok(due.elapsed())
    }
}

fn answer(mut peer: TcpStream) {
    let mut byte = [0];
    let _ = peer.set_nodelay(true);
    while matches!(peer.read(&mut byte), Ok(1)) && peer.write_all(&byte).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_control_waits_for_its_time_and_says_how_late_it_was() {
        let mut control = Control::start().await.unwrap();
        let begun = Instant::now();
        let due = begun + Duration::from_millis(30);
        let late = control.late(due).await.unwrap();
        assert!(late > Duration::ZERO && begun.elapsed() >= Duration::from_millis(30) + late);
        let already = control.late(begun).await.unwrap();
        assert!(already >= Duration::from_millis(30), "{already:?}");
    }
}
