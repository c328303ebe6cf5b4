//! The few lines of HTTP that an address service needs.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 * 1024;

/// Fetches the body of a plain `http` URL.
pub(super) async fn get(url: &str, deadline: Instant) -> io::Result<String> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| invalid("only http URLs are supported"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let address = if has_port {
        host.to_owned()
    } else {
        format!("{host}:80")
    };
    // Version 1.0 keeps the server from answering in chunks.
    let request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let exchange = async {
        let mut stream = TcpStream::connect(&address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = timeout_at(deadline, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let text = String::from_utf8(answer).map_err(|_| invalid("the answer is not UTF-8"))?;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("the answer has no body"))?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(body.trim().to_owned()),
        _ => Err(invalid("the status is not 200")),
    }
}

fn invalid(rule: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, rule)
}
