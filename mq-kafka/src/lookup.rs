//! What brokers are asked about a partition before it is moved. An answer may take seconds, in which other partitions and
//! the group's rebalances go on.

use std::sync::Arc;

use mq_api::{Error, ErrorKind, Offset, Position, Result, driver::AssignmentId};
use tokio::sync::{Semaphore, oneshot};

use crate::{member::Member, outbox::Part, session::FIRST_PAUSE};

/// What is wished for one partition.
#[derive(Debug)]
pub(crate) enum Wish {
    /// The engine moves a tenure.
    Seek {
        id: AssignmentId,
        to: Position,
        generation: u64,
        done: oneshot::Sender<Result<Offset>>,
    },
    /// A tenure is to be read on where it stands, or at what is nearest. `late` where that has just failed.
    Reset { id: AssignmentId, late: bool },
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Found {
    Seek {
        id: AssignmentId,
        to: Result<Offset>,
        generation: u64,
        done: oneshot::Sender<Result<Offset>>,
    },
    /// Where the tenure stands, and the first and the next offset that the partition has; none where nothing is to be moved.
    Reset {
        id: AssignmentId,
        place: Result<Option<(Offset, Offset, Offset)>>,
    },
}

impl Wish {
    pub(crate) fn id(&self) -> AssignmentId {
        match self {
            Self::Seek { id, .. } | Self::Reset { id, .. } => *id,
        }
    }
}

impl Found {
    pub(crate) fn id(&self) -> AssignmentId {
        match self {
            Self::Seek { id, .. } | Self::Reset { id, .. } => *id,
        }
    }
}

/// Says that a tenure is over.
pub(crate) fn gone(id: AssignmentId) -> Error {
    Error::new(
        ErrorKind::Interrupted,
        format!("partition {} is no longer this member's", id.partition),
    )
}

/// Tells where a tenure stands that waits to be moved.
pub(crate) fn waits_at(part: &mut Part) -> Option<Offset> {
    part.moving.then_some(part.next)
}

/// Asks when it is this one's turn, each question within the time of a request.
pub(crate) async fn find(member: Arc<Member>, turns: Arc<Semaphore>, wish: Wish) -> Found {
    if let Wish::Reset { late: true, .. } = wish {
        // Nothing can be moved before the library has the answer that a job may be.
        tokio::time::sleep(FIRST_PAUSE).await;
    }
    // It is never closed.
    let _turn = turns.acquire().await;
    match wish {
        Wish::Seek {
            id,
            to,
            generation,
            done,
        } => Found::Seek {
            id,
            to: target(&member, id, to).await,
            generation,
            done,
        },
        Wish::Reset { id, .. } => {
            let place = place(&member, id).await;
            Found::Reset { id, place }
        }
    }
}

async fn target(member: &Member, id: AssignmentId, to: Position) -> Result<Offset> {
    member.link.outbox.part(id, |_| ()).ok_or_else(|| gone(id))?;
    let offsets = member
        .client
        .resolve(&member.link.topic, vec![id.partition], to)
        .await?;
    offsets.first().copied().ok_or_else(|| gone(id))
}

async fn place(member: &Member, id: AssignmentId) -> Result<Option<(Offset, Offset, Offset)>> {
    let Some(at) = member.link.outbox.part(id, waits_at).flatten() else {
        return Ok(None);
    };
    let bounds = member
        .client
        .bounds(&member.link.topic, vec![id.partition])
        .await?;
    let (first, next) = bounds.first().copied().unwrap_or((at, at));
    Ok(Some((at, first, next)))
}
