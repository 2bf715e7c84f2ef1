//! What an asyncio task holds, and who keeps it: the hold itself, a wait that has its guard
//! meanwhile, calls that need it to stay.

use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::prelude::*;
use syncd_client::{LockGuard, raw};

use super::lock;
use crate::failure::abandonment;

/// Something held. When it goes, it is released.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncHold {
    generation: u32,
    held: Arc<Mutex<Held>>,
}

struct Held {
    guard: Option<LockGuard>,
    /// How many calls need it still: it is released after the last of them.
    needed: u32,
    /// Whether a wait has the guard.
    is_lent: bool,
    is_over: bool,
}

impl AsyncHold {
    pub fn new(guard: LockGuard) -> Self {
        let held = Held { guard: Some(guard), needed: 0, is_lent: false, is_over: false };
        Self { generation: raw::generation(), held: Arc::new(Mutex::new(held)) }
    }

    /// Lends its guard, if it has it, for as long as a wait goes on.
    pub fn lend(&self) -> Option<Loan> {
        let mut held = self.held()?;
        let guard = held.guard.take()?;
        held.is_lent = true;
        drop(held);
        Some(Loan { guard: Some(guard), to: self.held.clone() })
    }

    /// Keeps it from being released until the need is dropped.
    pub fn need(&self) -> Need {
        lock(&self.held).needed += 1;
        Need(self.held.clone())
    }

    /// None in a forked child of the process whose hold it is: there the mutex may be locked.
    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        (self.generation == raw::generation()).then(|| lock(&self.held))
    }
}

#[pymethods]
impl AsyncHold {
    /// Releases it; tells whether it was still held. Sends at once, and doesn't wait.
    fn release(&self) -> bool {
        let Some(mut held) = self.held() else { return false };
        if held.needed > 0 || held.is_lent {
            held.is_over = true;
            return held.guard.as_ref().is_some_and(|guard| guard.is_valid());
        }
        let guard = held.guard.take();
        drop(held);
        guard.is_some_and(|guard| guard.is_valid())
    }

    /// Whether it is a forked child's parent's.
    #[getter]
    fn is_inherited(&self) -> bool {
        self.generation != raw::generation()
    }

    /// Whether it is still held.
    #[getter]
    fn is_valid(&self) -> bool {
        let held = self.held();
        held.is_some_and(|held| held.guard.as_ref().is_some_and(|guard| guard.is_valid()))
    }

    #[getter]
    fn fencing_token(&self) -> Option<u64> {
        self.held()?.guard.as_ref().map(|guard| guard.fencing_token().get())
    }

    #[getter]
    fn abandoned<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let held = self.held();
        let left = held.and_then(|held| held.guard.as_ref()?.abandoned().cloned());
        left.map(|left| abandonment(py, &left)).transpose()
    }
}

/// A call's need of a hold, for as long as it runs.
pub(crate) struct Need(Arc<Mutex<Held>>);

impl Drop for Need {
    fn drop(&mut self) {
        let mut held = lock(&self.0);
        held.needed -= 1;
        let over = held.needed == 0 && held.is_over;
        let guard = if over { held.guard.take() } else { None };
        drop(held);
        drop(guard);
    }
}

/// A guard that is lent to a wait, and comes back with its end.
pub(crate) struct Loan {
    guard: Option<LockGuard>,
    to: Arc<Mutex<Held>>,
}

impl Loan {
    pub fn guard(&mut self) -> Option<&mut LockGuard> {
        self.guard.as_mut()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut held = lock(&self.to);
        held.is_lent = false;
        if !held.is_over {
            held.guard = self.guard.take();
        }
    }
}
