//! The one waker that a connection ever sees. Never here: who is behind it.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    task::{Wake, Waker},
};

/// Passes the connection's wake-ups on to whoever leads.
pub(super) struct Relay(Mutex<Option<Waker>>);

impl Relay {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    /// Has somebody else woken from now on; returns who was until now.
    pub(super) fn set(&self, leader: Option<Waker>) -> Option<Waker> {
        mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), leader)
    }

    pub(super) fn get(&self) -> Option<Waker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if let Some(leader) = self.get() {
            leader.wake();
        }
    }
}
