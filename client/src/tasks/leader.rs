//! The one waker that a session's connection ever sees.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

/// Wakes the task that leads, whichever that is.
pub(super) struct LeaderWaker(Mutex<Option<Waker>>);

impl LeaderWaker {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    /// Another task leads from now on, or none; returns the one that did.
    pub(super) fn set(&self, leader: Option<Waker>) -> Option<Waker> {
        mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), leader)
    }

    pub(super) fn get(&self) -> Option<Waker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is this task that is woken.
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
