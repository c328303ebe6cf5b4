//! Work that is shared out among tasks.

use std::{iter::StepBy, ops::Range};

/// The numbers of one task.
pub type Numbers = StepBy<Range<u64>>;

/// Deals numbers out among so many tasks, each of which does its part in order, and waits for all.
///
/// # Errors
/// The first error of a task.
///
/// # Panics
/// Where a task does, or there are none.
pub async fn by_tasks<F, E>(numbers: Range<u64>, tasks: u64, work: impl Fn(Numbers) -> F) -> Result<(), E>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let step = usize::try_from(tasks).unwrap_or(usize::MAX);
    let parts = (0..tasks).map(|task| (numbers.start + task..numbers.end).step_by(step));
    let running: Vec<_> = parts.map(|part| tokio::spawn(work(part))).collect();
    let mut result = Ok(());
    for task in running {
        let done = task.await.expect("a task of a bench does not panic");
        result = result.and(done);
    }
    result
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn each_number_is_done_once_and_a_failure_is_told() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let outcome = by_tasks(1..100, 7, |numbers| {
            let done = Arc::clone(&done);
            async move {
                for number in numbers {
                    done.lock().unwrap().push(number);
                }
                Ok::<_, u64>(())
            }
        });
        outcome.await.unwrap();
        let mut done = std::mem::take(&mut *done.lock().unwrap());
        done.sort_unstable();
        assert_eq!(done, (1..100).collect::<Vec<_>>());

        let failing = |mut numbers: Numbers| async move {
            match numbers.find(|number| *number == 5) {
                Some(number) => Err(number),
                None => Ok(()),
            }
        };
        assert_eq!(by_tasks(0..10, 3, failing).await, Err(5));
    }
}
