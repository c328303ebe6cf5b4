//! Routes on disk, for a start while every nameserver is down.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// What the file holds. Fields of later versions are skipped; a later version is not read at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    pub(super) version: u32,
    /// Layout records by topic.
    #[serde(default)]
    pub(super) topics: BTreeMap<String, String>,
    /// Addresses by broker name and id.
    #[serde(default)]
    pub(super) brokers: BTreeMap<String, BTreeMap<i64, String>>,
}

impl Snapshot {
    pub(super) fn new() -> Self {
        Self {
            version: VERSION,
            ..Self::default()
        }
    }

    /// Reads the file; one that is not there is empty.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        let size = match std::fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::new()),
            Err(error) => return Err(error),
        };
        let invalid = |rule: &'static str| io::Error::new(io::ErrorKind::InvalidData, rule);
        if size > MAX_SIZE {
            return Err(invalid("the route snapshot is over 16 MiB"));
        }
        let text = std::fs::read(path)?;
        let snapshot: Self =
            serde_json::from_slice(&text).map_err(|_| invalid("the route snapshot is not JSON"))?;
        if snapshot.version > VERSION {
            return Err(invalid("the route snapshot is of a later version"));
        }
        Ok(snapshot)
    }

    /// Writes the file beside the old one, then puts it in its place.
    pub(super) fn store(&self, path: &Path) -> io::Result<()> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let new = path.with_file_name(name);
        let mut file = std::fs::File::create(&new)?;
        file.write_all(&serde_json::to_vec(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_read_and_a_later_one_is_an_error() {
        let folder = std::env::temp_dir().join(format!("mq-rocketmq-snapshot-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("routes.json");
        assert_eq!(Snapshot::load(&path).unwrap(), Snapshot::new());
        let golden = r#"{"version":1,"topics":{"t":"1 a:0:2"},"brokers":{"a":{"0":"h:1"}},"later":[1]}"#;
        std::fs::write(&path, golden).unwrap();
        let snapshot = Snapshot::load(&path).unwrap();
        assert_eq!(snapshot.topics["t"], "1 a:0:2");
        assert_eq!(snapshot.brokers["a"][&0], "h:1");
        snapshot.store(&path).unwrap();
        assert_eq!(Snapshot::load(&path).unwrap(), snapshot);
        for bad in [r#"{"version":2}"#, "nope"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Snapshot::load(&path).is_err());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
