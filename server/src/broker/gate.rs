//! The gate before all namespaces: open; paused, while another daemon reads the journals; or sealed
//! for good.

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
    /// Read-locked while a namespace is made.
    making: RwLock<()>,
}

impl Gate {
    /// Waits until the gate isn't paused.
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
    /// Locks a namespace, once it may be changed. Blocks during a pause.
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

    /// A permit to make a namespace.
    pub(super) fn permit_making(&self) -> Result<RwLockReadGuard<'_, ()>, Over> {
        let making = self.gate.making.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.gate.is_sealed() { Err(Over) } else { Ok(making) }
    }

    /// Closes the gate for good: when this returns, nothing is changed any more. Another daemon may
    /// own the place.
    pub fn seal(&self) {
        self.pause().seal();
    }

    /// Pauses the daemon until the result is dropped: nothing is changed, and the journals contain
    /// everything that clients were told. Callers block their threads, so the holder of the pause
    /// must not wait for a task. Before another daemon reads the journals, take the permit of
    /// [`compactions`](Self::compactions), so that no snapshot is being made.
    pub fn pause(&self) -> Pause<'_> {
        let making = self.gate.making.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let namespaces = self.registry.all();
        self.gate.set(PAUSED);
        for namespace in namespaces {
            // Waits for a caller that entered before the pause.
            drop(namespace.lock());
        }
        self.numbers.freeze(true);
        Pause { broker: self, _making: making }
    }
}

impl Broker {
    /// Sends news to the replaced daemon, while it listens. Losing some does no harm: it hands all
    /// its clients over in any case.
    pub fn spread(&self, news: impl FnOnce() -> News) {
        if let Some(to) = self.news.get().filter(|to| !to.is_closed()) {
            let _ = to.try_send(news());
        }
    }
}

/// The numbers of namespaces and sessions in the journals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub namespaces: usize,
    pub sessions: usize,
}

/// A pause of the daemon; see [`Broker::pause`].
pub(crate) struct Pause<'a> {
    broker: &'a Broker,
    _making: RwLockWriteGuard<'a, ()>,
}

impl Pause<'_> {
    /// How many namespaces and sessions another daemon must find in the journals.
    ///
    /// # Errors
    /// If a journal was removed or cut, and hasn't been written anew yet.
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
                return Err(format!(
                    "the journal of {address} was removed, and hasn't been written anew yet"
                ));
            }
            kept.namespaces += 1;
            kept.sessions += state.members.len();
        }
        Ok(kept)
    }

    /// Turns the pause into a seal: another daemon owns the place.
    pub fn seal(self) {
        // First: opening a session is retried while a namespace is over and the daemon isn't closing.
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
