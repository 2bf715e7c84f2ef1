//! Condition. Never here: the wire's way of waiting, which is in [`Hold`](crate::Hold).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use syncd_proto::v1::{Notify, Wait, client_message::Request, server_message::Message};

use crate::{
    ConditionError, Lock, LockGuard, RLock, Token,
    object::{Attachable, Kind, Object, micros, sealed},
};

/// A condition variable between processes, guarded by a [`Lock`] or an [`RLock`].
///
/// Each notify wakes exactly those that waited, oldest first: they queue up for the lock, and
/// there is no herd. A notify that reaches a waiter that died or gave up passes on to the next.
///
/// Clones are the same condition.
#[derive(Clone, Debug)]
pub struct Condition(pub(crate) Arc<Object>);

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Somebody notified, or the event was set.
    Notified,
    /// The time is over.
    TimedOut,
}

impl WaitOutcome {
    /// Whether the time was over.
    pub fn timed_out(self) -> bool {
        self == Self::TimedOut
    }
}

/// A lock that can guard a condition: [`Lock`] or [`RLock`].
pub trait AnyLock: sealed::Attachable {
    #[doc(hidden)]
    fn object(&self) -> &Arc<Object>;
}

impl AnyLock for Lock {
    fn object(&self) -> &Arc<Object> {
        &self.0.object
    }
}

impl AnyLock for RLock {
    fn object(&self) -> &Arc<Object> {
        &self.0.object
    }
}

impl Condition {
    /// Releases the lock (fully, however deep), waits for a notify, and takes the lock again:
    /// one step each way, in one round trip.
    ///
    /// # Errors
    /// [`NotOwner`](ConditionError::NotOwner) if the guard isn't of the condition's lock, or is
    /// void. If the session is lost in the wait, the lock is not held and the guard is void.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the lock as well: the guard is void from then on, and
    /// dropping it does nothing. A notify that was its own passes on to the next.
    pub async fn wait(&self, guard: &mut LockGuard) -> Result<(), ConditionError> {
        self.wait_for_notify(guard, None).await.map(drop)
    }

    /// As [`wait`](Self::wait), but waits for the notify not longer than so. The lock is held
    /// again in either case, and taking it again may take longer.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_timeout(
        &self,
        guard: &mut LockGuard,
        timeout: Duration,
    ) -> Result<WaitOutcome, ConditionError> {
        self.wait_for_notify(guard, Some(timeout)).await
    }

    /// Waits while `blocked` says so; it is asked with the lock held.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_while(
        &self,
        guard: &mut LockGuard,
        mut blocked: impl FnMut() -> bool,
    ) -> Result<(), ConditionError> {
        while blocked() {
            self.wait(guard).await?;
        }
        Ok(())
    }

    /// Waits until `ready` says so, but not longer than `timeout`; it is asked with the lock
    /// held, and once more when the time is over.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_for(
        &self,
        guard: &mut LockGuard,
        mut ready: impl FnMut() -> bool,
        timeout: Duration,
    ) -> Result<WaitOutcome, ConditionError> {
        let start = Instant::now();
        while !ready() {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(WaitOutcome::TimedOut);
            }
            self.wait_timeout(guard, left).await?;
        }
        Ok(WaitOutcome::Notified)
    }

    /// Wakes the `n` oldest waiters, and tells how many there were. The guard proves that the
    /// lock is held.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// They may or may not be notified.
    pub async fn notify(&self, guard: &LockGuard, n: u32) -> Result<u32, ConditionError> {
        if n == 0 {
            return Ok(0);
        }
        self.notify_some(guard, n).await
    }

    /// Wakes the oldest waiter; tells whether there was one.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_one(&self, guard: &LockGuard) -> Result<bool, ConditionError> {
        Ok(self.notify_some(guard, 1).await? > 0)
    }

    /// Wakes all who wait, and tells how many there were.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_all(&self, guard: &LockGuard) -> Result<u32, ConditionError> {
        self.notify_some(guard, 0).await
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What another process attaches by.
    pub fn token(&self) -> Token {
        self.0.token()
    }

    async fn wait_for_notify(
        &self,
        guard: &mut LockGuard,
        timeout: Option<Duration>,
    ) -> Result<WaitOutcome, ConditionError> {
        let handle = self.handle_with(guard).await?;
        let (owner, timeout_us) = (guard.0.owner(), micros(timeout));
        let notified = guard.0.lend(Request::Wait(Wait { handle, owner, timeout_us })).await?;
        Ok(if notified { WaitOutcome::Notified } else { WaitOutcome::TimedOut })
    }

    async fn notify_some(&self, guard: &LockGuard, n: u32) -> Result<u32, ConditionError> {
        let handle = self.handle_with(guard).await?;
        let owner = guard.0.owner();
        let notify = Request::Notify(Notify { handle, owner, n });
        match guard.0.session().call(notify, None).await? {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        }
    }

    /// The handle in the guard's session, or nowhere: another session doesn't hold the lock.
    async fn handle_with(&self, guard: &LockGuard) -> Result<u32, ConditionError> {
        let binding = self.0.binding().await?;
        if !guard.0.is_held() || !Arc::ptr_eq(&binding.session, guard.0.session()) {
            let text = "the guard is void: the condition's lock must be acquired again";
            return Err(ConditionError::NotOwner(text.to_owned()));
        }
        Ok(binding.handle)
    }
}

impl Attachable for Condition {}
impl sealed::Attachable for Condition {
    const KIND: Kind = Kind::Condition;
    fn from_object(object: Arc<Object>) -> Self {
        Self(object)
    }
}
