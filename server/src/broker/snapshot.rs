//! The next snapshot of a namespace, when its journal is due for one: at once if the state is
//! small, else beside the work, from the journal itself, so that nobody waits for it.

use std::sync::Arc;

use tokio::{
    sync::Semaphore,
    task::{spawn_blocking, yield_now},
};
use tracing::debug;

use super::Broker;
use crate::{
    entry::{Kept, Unusable, snapshot},
    journal::{Compaction, Store as _},
    limits::weigh,
    namespace::{Namespace, State},
};

/// A state of so many bytes is written within a step: it takes less than a millisecond.
const SMALL: usize = 1 << 20;
/// So many records are replayed in less time than a snapshot takes.
const FEW: u64 = 100;

impl Broker {
    /// Takes a snapshot, or has one taken, if it is time.
    pub(super) fn renew_snapshot(&self, namespace: &Arc<Namespace>, state: &mut State) {
        let Some(journal) = state.store.as_ref().filter(|journal| journal.is_due()) else { return };
        if is_small(state) {
            self.take_snapshot(namespace, state);
        } else if let Ok(compaction) = journal.compaction() {
            self.spawn(compact(self.compactions.clone(), namespace.clone(), compaction));
        }
    }

    /// Takes one for which there was no room a moment ago; a large one is begun in its time.
    pub(super) fn take_snapshot_after_all(&self, namespace: &Namespace, state: &mut State) {
        if is_small(state) {
            self.take_snapshot(namespace, state);
        }
        if let Some(journal) = &mut state.store {
            // Nothing else would help.
            journal.take_shortage();
        }
    }

    /// Takes a snapshot of a small state.
    fn take_snapshot(&self, namespace: &Namespace, state: &mut State) {
        let State { space, store: Some(journal), members, latest, .. } = state else { return };
        let config = self.core_config(&namespace.address);
        if let Err(error) = journal.switch(&snapshot(space, members, &config, *latest)) {
            // Its status says so, too, until it has succeeded.
            debug!(namespace = %namespace.address, "no snapshot could be taken: {error}");
        }
    }
}

impl Broker {
    /// Has a snapshot taken of all that has changed much since the last: a daemon that loads it has
    /// little to replay.
    pub async fn renew_snapshots(&self) {
        for namespace in self.registry.all() {
            if let Some(compaction) = self.begin_snapshot(&namespace) {
                compact(self.compactions.clone(), namespace, compaction).await;
            }
            yield_now().await;
        }
    }

    /// Takes one, or begins one that is to be made beside the work.
    fn begin_snapshot(&self, namespace: &Namespace) -> Option<Compaction> {
        let mut state = self.admit(namespace).ok()?;
        let journal = state.store.as_ref().filter(|journal| journal.status().records > FEW)?;
        if !is_small(&state) {
            return journal.compaction().ok();
        }
        self.take_snapshot(namespace, &mut state);
        None
    }
}

fn is_small(state: &State) -> bool {
    weigh(&state.space.totals(), state.references) <= SMALL
}

async fn compact(turn: Arc<Semaphore>, namespace: Arc<Namespace>, mut compaction: Compaction) {
    // One at a time: each needs as much memory again as its namespace.
    let Ok(_turn) = turn.acquire().await else { return };
    let mut work: fn(&mut Compaction) -> _ = |compaction| {
        let worked = compaction.work(rebuild);
        give_memory_back();
        worked
    };
    loop {
        let worked = spawn_blocking(move || {
            let worked = work(&mut compaction);
            (compaction, worked)
        });
        // If it has panicked the journal goes on as it was.
        let Ok((worked_on, worked)) = worked.await else { return };
        compaction = worked_on;
        let finished = worked.and_then(|()| {
            let mut state = namespace.lock();
            match &mut state.store {
                Some(journal) => journal.finish(&mut compaction),
                // The namespace is over.
                None => Ok(true),
            }
        });
        match finished {
            Ok(true) => return,
            Ok(false) => work = |compaction| compaction.catch_up(),
            Err(error) => {
                debug!(namespace = %namespace.address, "no snapshot could be taken: {error}");
                if let Some(journal) = &mut namespace.lock().store {
                    journal.note_failure(&error);
                }
                return;
            }
        }
        yield_now().await;
    }
}

/// The state after the records, from the one before them.
fn rebuild(snapshot: &[u8], records: &mut dyn Iterator<Item = &[u8]>) -> Result<Vec<u8>, Unusable> {
    let mut kept = Kept::read(snapshot)?;
    for record in records {
        kept.replay(record)?;
    }
    Ok(kept.snapshot())
}

/// The allocator would keep the memory of the state that was rebuilt for the next one.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes the allocator's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
