//! As much of Redis's protocol (RESP2) as handling a test server takes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::Context;
use crate::{Error, Result};

const LIMIT: Duration = Duration::from_secs(5);

/// A connection for commands of the test's own.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&address, LIMIT).context(format!("cannot connect to {address}"))?;
        stream
            .set_read_timeout(Some(LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(LIMIT)))
            .context("cannot set a socket's limits")?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command and returns its answer as text, elements of arrays one a line; an error is an error.
    pub(super) fn call(&mut self, words: &[&str]) -> Result<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .context("cannot send to Redis")?;
        let command = words.first().copied().unwrap_or_default();
        self.answer()
            .context("cannot read Redis's answer")?
            .map_err(|output| Error::Command {
                program: format!("Redis's {command}"),
                output,
            })
    }

    fn answer(&mut self) -> io::Result<Result<String, String>> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {line:?}"));
        let line = line.strip_suffix("\r\n").ok_or_else(invalid)?;
        let mut characters = line.chars();
        let kind = characters.next().ok_or_else(invalid)?;
        let rest = characters.as_str();
        match kind {
            '+' | ':' => Ok(Ok(rest.to_owned())),
            '-' => Ok(Err(rest.to_owned())),
            '$' => match rest.parse::<usize>() {
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(length);
                    Ok(Ok(String::from_utf8_lossy(&bytes).into_owned()))
                }
                Err(_) => Ok(Ok("(nil)".to_owned())),
            },
            '*' => {
                let mut elements = Vec::new();
                for _ in 0..rest.parse::<usize>().unwrap_or(0) {
                    elements.push(self.answer()?.unwrap_or_else(|error| format!("-{error}")));
                }
                Ok(Ok(elements.join("\n")))
            }
            _ => Err(invalid()),
        }
    }
}
