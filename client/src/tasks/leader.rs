//! The waker that a session's connection sees.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

/// Wakes the current leader.
pub(super) struct LeaderWaker(Mutex<Option<Waker>>);

impl LeaderWaker {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    /// Sets the leader's waker, and returns the former one.
    pub(super) fn set(&self, leader: Option<Waker>) -> Option<Waker> {
        mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), leader)
    }

    pub(super) fn get(&self) -> Option<Waker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether `task` is the leader's waker.
    pub(super) fn is(&self, task: &Waker) -> bool {
        let leader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leader.as_ref().is_some_and(|leader| leader.will_wake(task))
    }
}

impl Wake for LeaderWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(leader) = self.get() {
            leader.wake();
        }
    }
}
