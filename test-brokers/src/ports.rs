//! Ports that no other test and no outgoing connection can take.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Context;
use crate::{Error, Result, scratch};

/// The ephemeral range of Linux begins at 32768: a port in it can be taken by any outgoing connection while
/// its server restarts.
const PORTS: std::ops::Range<u16> = 10_240..32_768;

/// A port of 127.0.0.1 below 32768 that belongs to this value until it is dropped.
///
/// A lock file keeps other test processes off, also while nothing listens on it. Connections to it are refused
/// until somebody does.
#[derive(Debug)]
pub struct ReservedPort {
    number: u16,
    // Held, never read.
    _lock: File,
    path: PathBuf,
}

/// Reserves one free port.
///
/// # Errors
/// [`Error::Missing`] when all are taken, [`Error::Io`] when lock files cannot be made.
pub fn free_port() -> Result<ReservedPort> {
    let folder = folder()?;
    let count = u64::from(PORTS.end - PORTS.start);
    let begin = RandomState::new().build_hasher().finish() % count;
    for step in 0..count {
        let offset = u16::try_from((begin + step) % count).unwrap_or_default();
        if let Some(port) = ReservedPort::try_reserve(&folder, PORTS.start + offset)? {
            return Ok(port);
        }
    }
    Err(Error::Missing {
        what: "a free port".into(),
        hint: format!("all of {} to {} are in use", PORTS.start, PORTS.end - 1),
    })
}

fn folder() -> Result<PathBuf> {
    let folder = scratch::base()?.join("ports");
    fs::create_dir_all(&folder).context(format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Reserves an address that refuses connections as long as the value lives and nothing is started on it.
///
/// # Errors
/// Those of [`free_port`].
pub fn refused_address() -> Result<ReservedPort> {
    free_port()
}

impl ReservedPort {
    /// Returns the port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Returns the port's address on the loopback interface.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }

    /// Reserves a port and the one `distance` below it.
    pub(crate) fn with_one_below(distance: u16) -> Result<(Self, Self)> {
        for _ in 0..100 {
            let port = free_port()?;
            let below = port.number.saturating_sub(distance);
            if PORTS.contains(&below)
                && let Some(below) = Self::try_reserve(&folder()?, below)?
            {
                return Ok((port, below));
            }
        }
        Err(Error::Missing {
            what: "two ports side by side".into(),
            hint: "too many are in use".into(),
        })
    }

    fn try_reserve(folder: &Path, number: u16) -> Result<Option<Self>> {
        let path = folder.join(number.to_string());
        let lock = File::create(&path).context(format!("cannot make {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(cause)) => return Err(cause).context("cannot lock a port's file"),
        }
        // The file may have been removed by its last holder between our opening and our locking it.
        let still_there = match fs::metadata(&path) {
            Ok(there) => there.ino() == lock.metadata().context("cannot read a port's file")?.ino(),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => false,
            Err(cause) => return Err(cause).context("cannot read a port's file"),
        };
        if !still_there {
            return Ok(None);
        }
        let port = Self {
            number,
            _lock: lock,
            path,
        };
        Ok(TcpListener::bind(port.address()).is_ok().then_some(port))
    }
}

impl Drop for ReservedPort {
    fn drop(&mut self) {
        // While the lock is held, so that nobody's new file is removed.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn ports_are_distinct_and_below_the_ephemeral_range() {
        let ports: Vec<ReservedPort> = (0..50).map(|_| free_port().unwrap()).collect();
        let numbers: HashSet<u16> = ports.iter().map(ReservedPort::number).collect();
        assert_eq!(numbers.len(), 50);
        assert!(numbers.iter().all(|number| (10_240..32_768).contains(number)));
    }

    #[test]
    fn a_reserved_port_is_not_given_twice_while_nothing_listens() {
        let port = free_port().unwrap();
        let folder = port.path.parent().unwrap().to_path_buf();
        assert!(
            ReservedPort::try_reserve(&folder, port.number())
                .unwrap()
                .is_none()
        );
        let number = port.number();
        drop(port);
        assert!(ReservedPort::try_reserve(&folder, number).unwrap().is_some());
    }

    #[test]
    fn a_refused_address_refuses() {
        let port = refused_address().unwrap();
        let refused = TcpStream::connect(port.address()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
