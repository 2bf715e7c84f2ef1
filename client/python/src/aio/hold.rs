//! The hold of an asyncio task. A condition wait borrows its guard; calls such as notify keep it
//! from being released.

use std::sync::{Arc, Mutex, MutexGuard};

use pyo3::prelude::*;
use syncd_client::{LockGuard, raw};

use super::lock;
use crate::failure::abandonment;

/// A held lock or permit. Dropping it releases it.
#[pyclass(frozen, module = "syncd._native")]
pub(crate) struct AsyncHold {
    generation: u32,
    held: Arc<Mutex<Held>>,
}

struct Held {
    guard: Option<LockGuard>,
    /// How many calls keep the hold: a release takes effect after the last of them.
    needed: u32,
    /// Whether a condition wait has the guard.
    is_lent: bool,
    /// Whether `release` was called.
    is_over: bool,
}

impl AsyncHold {
    pub fn new(guard: LockGuard) -> Self {
        let held = Held { guard: Some(guard), needed: 0, is_lent: false, is_over: false };
        Self { generation: raw::generation(), held: Arc::new(Mutex::new(held)) }
    }

    /// Lends the guard to a condition wait. None if it is lent or released.
    pub fn lend(&self) -> Option<Loan> {
        let mut held = self.held()?;
        let guard = held.guard.take()?;
        held.is_lent = true;
        drop(held);
        Some(Loan { guard: Some(guard), to: self.held.clone() })
    }

    /// Keeps the hold from being released until the returned value is dropped.
    pub fn need(&self) -> Need {
        lock(&self.held).needed += 1;
        Need(self.held.clone())
    }

    /// Locks the hold. None in a forked child, where the mutex may be locked for ever.
    fn held(&self) -> Option<MutexGuard<'_, Held>> {
        (self.generation == raw::generation()).then(|| lock(&self.held))
    }
}

#[pymethods]
impl AsyncHold {
    /// Sends the release, without waiting; returns whether the hold was still valid.
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

    /// Whether the hold belongs to the parent of this forked child.
    #[getter]
    fn is_inherited(&self) -> bool {
        self.generation != raw::generation()
    }

    /// Whether the hold is still valid.
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

/// Keeps a hold from being released while a call runs.
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

/// A guard lent to a condition wait; dropping this returns it.
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
