//! Who may change anything: everybody; nobody for a moment, while another daemon looks at what is
//! kept; or nobody any more. Never here: why.

use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{
        AtomicU8,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use super::{Broker, Over};
use crate::{
    handover::News,
    journal::Journal,
    namespace::{Namespace, Standing, State},
    panic,
};

const OPEN: u8 = 0;
const PAUSED: u8 = 1;
const SEALED: u8 = 2;

#[derive(Default)]
pub(super) struct Gate {
    standing: AtomicU8,
    queue: Mutex<()>,
    moved: Condvar,
    /// Held by who makes a namespace.
    making: RwLock<()>,
}

impl Gate {
    /// Waits until it isn't paused.
    #[cold]
    fn wait(&self) {
        let mut queue = panic::lock(&self.queue);
        while self.standing.load(Acquire) == PAUSED {
            queue = self.moved.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn set(&self, standing: u8) {
        let _queue = panic::lock(&self.queue);
        self.standing.store(standing, Release);
        self.moved.notify_all();
    }

    fn is_sealed(&self) -> bool {
        self.standing.load(Acquire) == SEALED
    }
}

impl Broker {
    /// The state of a namespace that may be changed.
    pub(super) fn admit<'a>(
        &self,
        namespace: &'a Namespace,
    ) -> Result<MutexGuard<'a, State>, Over> {
        loop {
            let state = namespace.lock();
            match self.gate.standing.load(Relaxed) {
                OPEN if state.standing == Standing::Good => return Ok(state),
                PAUSED => {
                    drop(state);
                    self.gate.wait();
                }
                _ => return Err(Over),
            }
        }
    }

    /// Leave to make a namespace, as long as it is kept.
    pub(super) fn leave_to_make(&self) -> Result<RwLockReadGuard<'_, ()>, Over> {
        let making = self.gate.making.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.gate.is_sealed() { Err(Over) } else { Ok(making) }
    }

    /// Changes nothing any more, from when this returns: somebody else may own what is here.
    pub fn seal(&self) {
        self.pause().seal();
    }

    /// Changes nothing as long as the pause is kept: what is in the journals is all that anybody was
    /// told. Whoever comes waits, his thread with him; so who keeps it must not wait for a task.
    /// No snapshot may be in the making ([`compactions`](Self::compactions)) if others are to read
    /// the journals.
    pub fn pause(&self) -> Pause<'_> {
        let making = self.gate.making.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let namespaces = self.registry.all();
        self.gate.set(PAUSED);
        for namespace in namespaces {
            // Whoever is within has read the standing before.
            drop(namespace.lock());
        }
        self.numbers.freeze(true);
        Pause { broker: self, _making: making }
    }
}

impl Broker {
    /// Tells the daemon before, as long as it is there and listens. Nobody depends on it: it has all
    /// its clients go over in any case.
    pub fn spread(&self, news: impl FnOnce() -> News) {
        if let Some(to) = self.news.get().filter(|to| !to.is_closed()) {
            let _ = to.try_send(news());
        }
    }
}

/// How much a daemon keeps, and the next one must find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub namespaces: usize,
    pub sessions: usize,
}

/// See [`Broker::pause`].
pub(crate) struct Pause<'a> {
    broker: &'a Broker,
    _making: RwLockWriteGuard<'a, ()>,
}

impl Pause<'_> {
    /// What another daemon must find: so many namespaces, and sessions in them.
    ///
    /// # Errors
    /// If it wouldn't: somebody took a journal away, which has not been written anew yet.
    pub fn kept(&self) -> Result<Holdings, String> {
        let broker = self.broker;
        if let Some(directory) = &broker.settings.journal {
            directory.look().map_err(|error| format!("{}: {error}", directory.path().display()))?;
        }
        let mut kept = Holdings::default();
        for namespace in &broker.registry.namespaces {
            let state = namespace.lock();
            if state.standing != Standing::Good {
                continue;
            }
            if state.store.as_ref().is_none_or(Journal::is_lost) {
                let address = &namespace.address;
                return Err(format!("the journal of {address} was taken away, and isn't anew yet"));
            }
            kept.namespaces += 1;
            kept.sessions += state.members.len();
        }
        Ok(kept)
    }

    /// It never ends: what is here is somebody else's.
    pub fn seal(self) {
        // First: who opens a session tries again as long as a namespace is over and the daemon isn't.
        self.broker.closing.store(true, Relaxed);
        self.broker.gate.set(SEALED);
        if let Some(directory) = &self.broker.settings.journal {
            directory.unlock();
        }
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.broker.gate.is_sealed() {
            self.broker.numbers.freeze(false);
            self.broker.gate.set(OPEN);
        }
    }
}
