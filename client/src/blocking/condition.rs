//! Blocking Condition, Event and Barrier.

use std::time::{Duration, Instant};

use super::{Lock, LockGuard, OwnedLockGuard, RLock, forward, object, wait};
use crate::{
    BarrierError, BarrierState, BarrierWaitResult, ConditionError, SessionError, WaitOutcome,
    owner::thread,
};

/// As [`crate::Condition`].
#[derive(Clone, Debug)]
pub struct Condition(pub(super) crate::Condition);

/// As [`crate::Event`].
#[derive(Clone, Debug)]
pub struct Event(pub(super) crate::Event);

/// As [`crate::Barrier`].
#[derive(Clone, Debug)]
pub struct Barrier(pub(super) crate::Barrier);

/// A lock that can guard a condition: [`Lock`] or [`RLock`].
pub trait AnyLock: crate::Attachable {
    #[doc(hidden)]
    type Inner: crate::AnyLock;
    #[doc(hidden)]
    fn inner(&self) -> &Self::Inner;
}

impl AnyLock for Lock {
    type Inner = crate::Lock;
    fn inner(&self) -> &crate::Lock {
        &self.0
    }
}

impl AnyLock for RLock {
    type Inner = crate::RLock;
    fn inner(&self) -> &crate::RLock {
        &self.0
    }
}

/// A lock's guard: [`LockGuard`] or [`OwnedLockGuard`].
pub trait AnyGuard: sealed::Guard {}

mod sealed {
    pub trait Guard {
        fn guard(&self) -> &crate::LockGuard;
        fn guard_mut(&mut self) -> &mut crate::LockGuard;
    }
}

macro_rules! any_guard {
    ($($Guard:ident),+) => {$(
        impl AnyGuard for $Guard {}
        impl sealed::Guard for $Guard {
            fn guard(&self) -> &crate::LockGuard {
                &self.0
            }
            fn guard_mut(&mut self) -> &mut crate::LockGuard {
                &mut self.0
            }
        }
    )+};
}

any_guard!(LockGuard, OwnedLockGuard);

object!(Condition);
object!(Event);
object!(Barrier);

impl Condition {
    /// As [`crate::Condition::wait`].
    ///
    /// # Errors
    /// The same.
    pub fn wait(&self, guard: &mut impl AnyGuard) -> Result<(), ConditionError> {
        wait(self.0.wait_by(guard.guard_mut(), None)).map(drop)
    }

    /// As [`crate::Condition::wait_timeout`].
    ///
    /// # Errors
    /// The same.
    pub fn wait_timeout(
        &self,
        guard: &mut impl AnyGuard,
        timeout: Duration,
    ) -> Result<WaitOutcome, ConditionError> {
        wait(self.0.wait_by(guard.guard_mut(), Some(timeout)))
    }

    /// As [`crate::Condition::wait_while`].
    ///
    /// # Errors
    /// The same.
    pub fn wait_while(
        &self,
        guard: &mut impl AnyGuard,
        mut blocked: impl FnMut() -> bool,
    ) -> Result<(), ConditionError> {
        while blocked() {
            self.wait(guard)?;
        }
        Ok(())
    }

    /// As [`crate::Condition::wait_for`].
    ///
    /// # Errors
    /// The same.
    pub fn wait_for(
        &self,
        guard: &mut impl AnyGuard,
        mut ready: impl FnMut() -> bool,
        timeout: Duration,
    ) -> Result<WaitOutcome, ConditionError> {
        let start = Instant::now();
        while !ready() {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(WaitOutcome::TimedOut);
            }
            self.wait_timeout(guard, left)?;
        }
        Ok(WaitOutcome::Notified)
    }

    /// As [`crate::Condition::notify`].
    ///
    /// # Errors
    /// The same.
    pub fn notify(&self, guard: &impl AnyGuard, n: u32) -> Result<u32, ConditionError> {
        match n {
            0 => Ok(0),
            n => wait(self.0.notify_by(guard.guard(), n)),
        }
    }

    /// As [`crate::Condition::notify_one`].
    ///
    /// # Errors
    /// The same.
    pub fn notify_one(&self, guard: &impl AnyGuard) -> Result<bool, ConditionError> {
        Ok(wait(self.0.notify_by(guard.guard(), 1))? > 0)
    }

    /// As [`crate::Condition::notify_all`].
    ///
    /// # Errors
    /// The same.
    pub fn notify_all(&self, guard: &impl AnyGuard) -> Result<u32, ConditionError> {
        wait(self.0.notify_by(guard.guard(), 0))
    }
}

forward! { Event:
    fn set(&self) -> Result<u32, SessionError> {
        wait(self.0.set_it())
    }
    fn clear(&self) -> Result<(), SessionError> {
        wait(self.0.clear_it())
    }
    fn is_set(&self) -> Result<bool, SessionError> {
        Ok(wait(self.0.0.query())?.value != 0)
    }
    fn wait(&self) -> Result<(), SessionError> {
        wait(self.0.wait_by(thread(), None)).map(drop)
    }
    fn wait_timeout(&self, timeout: Duration) -> Result<WaitOutcome, SessionError> {
        wait(self.0.wait_by(thread(), Some(timeout)))
    }
}

forward! { Barrier:
    fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        wait(self.0.arrive(thread(), None, false)).map(|arrival| arrival.result)
    }
    fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        wait(self.0.arrive(thread(), Some(timeout), false)).map(|arrival| arrival.result)
    }
    fn reset(&self) -> Result<(), SessionError> {
        wait(self.0.reset_it())
    }
    fn abort(&self) -> Result<(), SessionError> {
        wait(self.0.abort_it())
    }
    fn state(&self) -> Result<BarrierState, SessionError> {
        wait(self.0.0.query()).map(BarrierState::from)
    }
}

impl Barrier {
    /// As [`crate::Barrier::wait_with`].
    ///
    /// # Errors
    /// The same.
    pub fn wait_with(
        &self,
        timeout: Option<Duration>,
        action: impl FnOnce(),
    ) -> Result<BarrierWaitResult, BarrierError> {
        let mut arrival = wait(self.0.arrive(thread(), timeout, true))?;
        if let Some(turn) = arrival.turn.take() {
            action();
            wait(turn.done())?;
        }
        Ok(arrival.result)
    }
}
