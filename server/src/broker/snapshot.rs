//! Snapshots of namespaces: at once if the state is small, else in the background, from the journal,
//! so that no caller waits for them.

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

/// The largest state, in bytes, that is written within a step: it takes less than a millisecond.
const SMALL: usize = 1 << 20;
/// The number of records up to which replaying takes less time than a snapshot.
const FEW: u64 = 100;

impl Broker {
    /// Takes a snapshot, or starts one in the background, if it is due.
    pub(super) fn renew_snapshot(&self, namespace: &Arc<Namespace>, state: &mut State) {
        let Some(journal) = state.store.as_ref().filter(|journal| journal.is_due()) else { return };
        if is_small(state) {
            self.take_snapshot(namespace, state);
        } else if let Ok(compaction) = journal.compaction() {
            self.spawn(compact(self.compactions.clone(), namespace.clone(), compaction));
        }
    }

    /// Takes a snapshot that just failed for lack of room, if it is small; a large one is started
    /// when it is due.
    pub(super) fn take_snapshot_after_all(&self, namespace: &Namespace, state: &mut State) {
        if is_small(state) {
            self.take_snapshot(namespace, state);
        }
        if let Some(journal) = &mut state.store {
            // Nothing else would free room.
            journal.take_shortage();
        }
    }

    /// Takes a snapshot of a small state.
    fn take_snapshot(&self, namespace: &Namespace, state: &mut State) {
        let State { space, store: Some(journal), members, latest, .. } = state else { return };
        let config = self.core_config(&namespace.address);
        if let Err(error) = journal.switch(&snapshot(space, members, &config, *latest)) {
            // `syncctl status` shows the error, too.
            debug!(namespace = %namespace.address, "no snapshot could be taken: {error}");
        }
    }
}

impl Broker {
    /// Takes snapshots of all namespaces with many records since the last, so that a daemon that
    /// loads them has little to replay.
    pub async fn renew_snapshots(&self) {
        for namespace in self.registry.all() {
            if let Some(compaction) = self.begin_snapshot(&namespace) {
                compact(self.compactions.clone(), namespace, compaction).await;
            }
            yield_now().await;
        }
    }

    /// Takes a snapshot, or returns one to be made in the background.
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
    // One at a time: each needs as much memory as its namespace.
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
        // After a panic, the journal goes on as it was.
        let Ok((worked_on, worked)) = worked.await else { return };
        compaction = worked_on;
        let finished = worked.and_then(|()| {
            let mut state = namespace.lock();
            match &mut state.store {
                Some(journal) => journal.finish(&mut compaction),
                // The namespace has ended.
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

/// The snapshot after the records, from the one before them.
fn rebuild(snapshot: &[u8], records: &mut dyn Iterator<Item = &[u8]>) -> Result<Vec<u8>, Unusable> {
    let mut kept = Kept::read(snapshot)?;
    for record in records {
        kept.replay(record)?;
    }
    Ok(kept.snapshot())
}

/// Returns the memory of the rebuilt state to the system, which glibc's allocator would keep.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim(3) is thread-safe, and frees only unused memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
