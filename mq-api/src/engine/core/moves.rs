//! Moving a tenure to another place.

use tokio::sync::oneshot;

use super::{Core, SeekRequest};
use crate::{Error, ErrorKind, Offset, Position, Result, driver::AssignmentId};

impl Core {
    /// Asks the task to move a tenure.
    pub(crate) fn ask_seek(
        &mut self,
        id: AssignmentId,
        to: Position,
        done: Option<oneshot::Sender<Result<Offset>>>,
    ) -> Result<()> {
        let Some(partition) = self.partition_mut(id) else {
            return Err(Error::new(
                ErrorKind::InvalidPartition,
                format!("partition {} is not assigned to this consumer", id.partition),
            ));
        };
        if partition.seeking.is_some() {
            return Err(Error::new(
                ErrorKind::Interrupted,
                format!("partition {} is being moved already", id.partition),
            ));
        }
        let generation = partition.generation + 1;
        partition.seeking = Some(generation);
        self.seeks.push(SeekRequest {
            id,
            to,
            generation,
            done,
        });
        self.kick = true;
        Ok(())
    }

    pub(crate) fn move_done(&mut self, request: SeekRequest, result: Result<Offset>) {
        let Some(owner) = self.owner.clone() else { return };
        let config = self.config.clone();
        let id = request.id;
        let result = match (self.partition_mut(id), result) {
            (None, _) => Err(Error::new(
                ErrorKind::Interrupted,
                format!("partition {} was given up while it was being moved", id.partition),
            )),
            (Some(partition), Ok(offset)) => {
                partition.moved(request.generation, offset, &config, &owner);
                self.news = true;
                self.dead.retain(|dead| dead.item.source.assignment != id);
                Ok(offset)
            }
            (Some(partition), Err(error)) => {
                partition.seeking = None;
                Err(error)
            }
        };
        if result.is_ok() {
            self.plan_commit();
        }
        self.make_ready(id.partition);
        self.refill(id.partition);
        if let Some(done) = request.done {
            let _ = done.send(result);
        }
    }
}
