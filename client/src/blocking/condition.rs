//! Blocking Condition, Event and Barrier. Never here: what they do, which is the async ones'
//! matter; but predicates and actions run here, outside of any runtime.

use std::time::{Duration, Instant};

use super::{Lock, LockGuard, OwnedLockGuard, RLock, forward, object};
use crate::{
    BarrierError, BarrierState, BarrierWaitResult, ConditionError, SessionError, WaitOutcome,
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

/// The guard of a lock: [`LockGuard`] or [`OwnedLockGuard`].
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

object!(Condition, .0);
object!(Event, .0);
object!(Barrier, .0);

impl Condition {
    /// As [`crate::Condition::wait`].
    ///
    /// # Errors
    /// The same.
    pub fn wait(&self, guard: &mut impl AnyGuard) -> Result<(), ConditionError> {
        self.client().block_on(self.0.wait(guard.guard_mut()))
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
        self.client().block_on(self.0.wait_timeout(guard.guard_mut(), timeout))
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
        self.client().block_on(self.0.notify(guard.guard(), n))
    }

    /// As [`crate::Condition::notify_one`].
    ///
    /// # Errors
    /// The same.
    pub fn notify_one(&self, guard: &impl AnyGuard) -> Result<bool, ConditionError> {
        self.client().block_on(self.0.notify_one(guard.guard()))
    }

    /// As [`crate::Condition::notify_all`].
    ///
    /// # Errors
    /// The same.
    pub fn notify_all(&self, guard: &impl AnyGuard) -> Result<u32, ConditionError> {
        self.client().block_on(self.0.notify_all(guard.guard()))
    }
}

forward! { Event:
    fn set(&self) -> Result<u32, SessionError>;
    fn clear(&self) -> Result<(), SessionError>;
    fn is_set(&self) -> Result<bool, SessionError>;
    fn wait(&self) -> Result<(), SessionError>;
    fn wait_timeout(&self, timeout: Duration) -> Result<WaitOutcome, SessionError>;
}

forward! { Barrier:
    fn wait(&self) -> Result<BarrierWaitResult, BarrierError>;
    fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError>;
    fn reset(&self) -> Result<(), SessionError>;
    fn abort(&self) -> Result<(), SessionError>;
    fn state(&self) -> Result<BarrierState, SessionError>;
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
        let mut arrival = self.client().block_on(self.0.arrive(timeout, true))?;
        if let Some(turn) = arrival.turn.take() {
            action();
            self.client().block_on(turn.done())?;
        }
        Ok(arrival.result)
    }
}
