//! What one process knows of its dealings with one SemLock. Never here: the daemon's view.

use syncd_client::{LockGuard, raw};

/// How often an object was acquired in this process, by whom last, and what it holds: the process's
/// own, as the C type's are.
pub(crate) struct Books {
    generation: u32,
    /// The C type's count: acquired less released, by this object in this process.
    pub(crate) count: i32,
    /// Who acquired last.
    pub(crate) last: u64,
    /// What is owned through this object, oldest first.
    pub(crate) holds: Vec<(u64, LockGuard)>,
}

/// What a Condition takes out of the books for the time of a wait.
pub(crate) struct Lent {
    pub(crate) guard: LockGuard,
    pub(crate) count: i32,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self { generation: raw::generation(), count: 0, last: 0, holds: Vec::new() }
    }

    /// Whether they are a forked child's parent's.
    pub(crate) fn are_inherited(&self) -> bool {
        self.generation != raw::generation()
    }

    /// Notes that it was acquired.
    pub(crate) fn enter(&mut self, owner: u64, guard: Option<LockGuard>) {
        self.count += 1;
        self.last = owner;
        self.holds.extend(guard.map(|guard| (owner, guard)));
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        // What was acquired and not released stays so, as in multiprocessing: until the process
        // dies, or somebody releases it by another object.
        self.holds.drain(..).for_each(std::mem::forget);
    }
}
