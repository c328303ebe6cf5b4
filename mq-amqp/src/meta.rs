//! What is known of a topic: a stream of records, which is read from its beginning.
//!
//! ```text
//! mq1 create id=1f name=orders partitions=4 age_ms=3600000    the first of these wins
//! mq1 ready partitions=4                                      the streams are there
//! mq1 grow partitions=8
//! mq1 group name=billing mode=partitioned                     the first of a name wins
//! mq1 delete
//! ```

use std::collections::BTreeMap;

use mq_api::{Offset, Result};

use crate::{error, words::Words};

/// How the members of a group share its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Partitioned,
    Shared,
}

impl Mode {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Partitioned => "partitioned",
            Self::Shared => "shared",
        }
    }
}

/// What the records of a topic say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) partitions: u32,
    pub(crate) age_ms: Option<u64>,
    pub(crate) bytes: Option<u64>,
    /// How many streams are known to be there.
    pub(crate) ready: u32,
    pub(crate) deleting: bool,
    pub(crate) groups: BTreeMap<String, String>,
    /// Where the next record will be.
    pub(crate) next: Offset,
}

impl Meta {
    /// Reads records in order.
    pub(crate) fn fold<'a>(records: impl IntoIterator<Item = (Offset, &'a [u8])>) -> Result<Option<Self>> {
        let mut meta = None;
        for (offset, body) in records {
            Self::apply(
                &mut meta,
                offset,
                &Words::parse("the description of a topic", body)?,
            )?;
        }
        Ok(meta)
    }

    pub(crate) fn apply(meta: &mut Option<Self>, offset: Offset, words: &Words) -> Result<()> {
        let broken = || error::protocol("the description of a topic that cannot be read");
        let partitions = || {
            words
                .number("partitions")
                .and_then(|count| u32::try_from(count).ok())
                .filter(|count| *count > 0)
                .ok_or_else(broken)
        };
        let Some(known) = meta else {
            if words.kind() == "create" {
                *meta = Some(Self {
                    id: words.text("id").ok_or_else(broken)?.to_owned(),
                    name: words.text("name").ok_or_else(broken)?.to_owned(),
                    partitions: partitions()?,
                    age_ms: words.number("age_ms"),
                    bytes: words.number("bytes"),
                    ready: 0,
                    deleting: false,
                    groups: BTreeMap::new(),
                    next: offset + 1,
                });
            }
            return Ok(());
        };
        known.next = offset + 1;
        match words.kind() {
            "ready" => known.ready = known.ready.max(partitions()?),
            "grow" => {
                known.partitions = known.partitions.max(partitions()?);
                known.ready = known.ready.max(known.partitions);
            }
            "group" => {
                let name = words.text("name").ok_or_else(broken)?;
                let mode = words.text("mode").ok_or_else(broken)?;
                known
                    .groups
                    .entry(name.to_owned())
                    .or_insert_with(|| mode.to_owned());
            }
            "delete" => known.deleting = true,
            // What a later build adds is not for us.
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(records: &[&str]) -> Result<Option<Meta>> {
        Meta::fold((0..).zip(records.iter().map(|record| record.as_bytes())))
    }

    #[test]
    fn the_first_creation_and_the_first_mode_win() {
        let meta = fold(&[
            "mq1 create id=a name=orders partitions=4 age_ms=5000",
            "mq1 create id=b name=orders partitions=8",
            "mq1 group name=g mode=shared",
            "mq1 group name=g mode=partitioned",
            "mq1 ready partitions=4",
            "mq1 paint colour=red",
            "mq1 grow partitions=6",
        ])
        .unwrap()
        .unwrap();
        assert_eq!((meta.id.as_str(), meta.partitions, meta.ready), ("a", 6, 6));
        assert_eq!(meta.groups["g"], "shared");
        assert_eq!((meta.age_ms, meta.deleting, meta.next), (Some(5000), false, 7));
        assert_eq!(fold(&["mq1 ready partitions=4"]).unwrap(), None);
        assert!(
            fold(&["mq1 create id=a name=o partitions=1", "mq1 delete"])
                .unwrap()
                .unwrap()
                .deleting
        );
        for broken in [
            "mq2 create",
            "mq1 create id=a name=o partitions=0",
            "mq1 create name=o partitions=1",
        ] {
            assert!(fold(&[broken]).is_err(), "{broken}");
        }
    }
}
