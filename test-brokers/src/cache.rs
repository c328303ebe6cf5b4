//! The folder that fetched servers are kept in.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::Context;
use crate::{Error, Result};

/// The folder that fetched servers are kept in between runs.
///
/// It is `MQ_TEST_CACHE`, else `$XDG_CACHE_HOME/mq-test-brokers`, else `~/.cache/mq-test-brokers`.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Finds the folder and makes it.
    ///
    /// # Errors
    /// [`Error::Missing`] where no variable tells the place, [`Error::Io`] where it cannot be made.
    pub fn open() -> Result<Self> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let root = set("MQ_TEST_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("mq-test-brokers")))
            .or_else(|| set("HOME").map(|folder| folder.join(".cache/mq-test-brokers")))
            .ok_or_else(|| Error::Missing {
                what: "a cache folder".into(),
                hint: "set MQ_TEST_CACHE, XDG_CACHE_HOME or HOME".into(),
            })?;
        fs::create_dir_all(&root).context(format!("cannot make {}", root.display()))?;
        let root = root
            .canonicalize()
            .context(format!("cannot resolve {}", root.display()))?;
        Ok(Self { root })
    }

    /// Returns the folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the entry `name`, filled by `fill` if no earlier run has done it.
    ///
    /// `fill` gets an empty folder. Processes that ask at once wait for the one that fills it; what a broken
    /// run left is thrown away.
    ///
    /// # Errors
    /// Those of `fill`, and [`Error::Io`].
    pub fn entry(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = self.root.join(name);
        let complete = self.root.join(format!("{name}.ok"));
        if complete.exists() && folder.exists() {
            return Ok(folder);
        }
        let _held = self.lock(name)?;
        if complete.exists() && folder.exists() {
            return Ok(folder);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).context(format!("cannot clear {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).context(format!("cannot make {}", folder.display()))?;
        fill(&folder)?;
        fs::write(&complete, []).context(format!("cannot write {}", complete.display()))?;
        Ok(folder)
    }

    /// Waits for the lock `name`, which the returned file holds.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::create(&path).context(format!("cannot make {}", path.display()))?;
        file.lock().context(format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_in(folder: &Path) -> Cache {
        Cache {
            root: folder.to_path_buf(),
        }
    }

    #[test]
    fn an_entry_is_filled_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let first = cache
            .entry("a", |place| fs::write(place.join("x"), "1").context("write"))
            .unwrap();
        let second = cache.entry("a", |_| panic!("filled twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read(second.join("x")).unwrap(), b"1");
    }

    #[test]
    fn a_failed_fill_is_thrown_away() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let failed = cache.entry("a", |place| {
            fs::write(place.join("half"), "1").context("write")?;
            Err(Error::Invalid {
                what: "a".into(),
                value: "b".into(),
            })
        });
        assert!(failed.is_err());
        let place = cache.entry("a", |_| Ok(())).unwrap();
        assert!(!place.join("half").exists());
    }

    #[test]
    fn threads_that_ask_at_once_fill_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache_in(folder.path());
        let fills = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    cache
                        .entry("a", |_| {
                            fills.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            Ok(())
                        })
                        .unwrap();
                });
            }
        });
        assert_eq!(fills.into_inner(), 1);
    }
}
