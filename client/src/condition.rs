//! Condition.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use syncd_proto::v1::{ErrorCode, Notify, Wait, client_message::Request, server_message::Message};

use crate::{
    ConditionError, Hold, Lock, LockGuard, RLock, Token,
    binding::{BindObject, Binding},
    call::{Call, Input, Step, Steps, call},
    client::Shared,
    error::SessionLost,
    object::{Attachable, Kind, Object, micros, sealed},
    session::CallError,
};

/// A condition variable between processes, guarded by a [`Lock`] or an [`RLock`].
///
/// A notify moves the oldest waiters to the lock's queue, so that they wake one by one, as each
/// gets the lock. If a notified waiter has died or given up, the notify passes to the next.
///
/// Clones are the same condition.
#[derive(Clone, Debug)]
pub struct Condition(pub(crate) Arc<Object>);

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// The condition was notified, or the event was set.
    Notified,
    /// The time-out expired.
    TimedOut,
}

impl WaitOutcome {
    /// Whether the time-out expired.
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
    /// Releases the lock (all levels of an RLock), waits for a notify, and acquires the lock again
    /// at the same depth. Release and wait are atomic; the call takes one round trip.
    ///
    /// # Errors
    /// [`NotOwner`](ConditionError::NotOwner) if the guard is of another lock, or void. If the
    /// session is lost during the wait, the lock is not held and the guard is void.
    ///
    /// # Cancel safety
    /// Dropping the future after its request was sent gives up the lock, too: the guard is void,
    /// and dropping it does nothing. If the waiter was notified, the notify passes to the next.
    /// Dropping the future before that changes nothing.
    pub async fn wait(&self, guard: &mut LockGuard) -> Result<(), ConditionError> {
        self.wait_by(guard, None).run().await.map(drop)
    }

    /// As [`wait`](Self::wait), but waits at most `timeout` for the notify. The lock is acquired
    /// again in either case, which may take longer.
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
        self.wait_by(guard, Some(timeout)).run().await
    }

    /// Waits while `blocked` returns true. It is called with the lock held.
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

    /// Waits until `ready` returns true, for at most `timeout`. It is called with the lock held,
    /// and once more when the time-out has expired.
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

    /// Notifies at most `n` waiters, oldest first, and returns how many. The guard proves that the
    /// lock is held.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// The waiters may or may not be notified.
    pub async fn notify(&self, guard: &LockGuard, n: u32) -> Result<u32, ConditionError> {
        if n == 0 {
            return Ok(0);
        }
        self.notify_by(guard, n).run().await
    }

    /// Notifies the oldest waiter, and returns whether there was one.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_one(&self, guard: &LockGuard) -> Result<bool, ConditionError> {
        Ok(self.notify_by(guard, 1).run().await? > 0)
    }

    /// Notifies all waiters, and returns how many.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_all(&self, guard: &LockGuard) -> Result<u32, ConditionError> {
        self.notify_by(guard, 0).run().await
    }

    /// The object's name; empty for an anonymous object.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The token by which another process attaches to the object.
    pub fn token(&self) -> Token {
        self.0.token()
    }

    pub(crate) fn wait_by<'a>(
        &'a self,
        guard: &'a mut LockGuard,
        timeout: Option<Duration>,
    ) -> impl Call<Done = Result<WaitOutcome, ConditionError>> + 'a {
        let steps = ConditionWait {
            bind: BindObject::new(&self.0),
            hold: &mut guard.0,
            timeout_us: micros(timeout),
            suspended: None,
            asked: false,
        };
        // No client deadline: the time-out bounds the wait for the notify, not the acquire after.
        call(steps, None, |notified: Result<bool, CallError>| {
            Ok(if notified? { WaitOutcome::Notified } else { WaitOutcome::TimedOut })
        })
    }

    pub(crate) fn notify_by<'a>(
        &'a self,
        guard: &'a LockGuard,
        n: u32,
    ) -> impl Call<Done = Result<u32, ConditionError>> + 'a {
        let bind = BindObject::new(&self.0);
        let steps = ConditionNotify { bind, hold: &guard.0, n, asked: false };
        call(steps, None, |notified: Result<u32, CallError>| Ok(notified?))
    }
}

/// Checks that the guard's hold belongs to the session of the condition's binding.
fn check(hold: &Hold, binding: &Binding) -> Result<(), CallError> {
    if hold.is_held() && Arc::ptr_eq(&binding.session, hold.session()) {
        return Ok(());
    }
    Err(CallError::refused(
        ErrorCode::NotOwner,
        "the guard is void: the condition's lock must be acquired again",
    ))
}

/// The steps of a wait. The hold is suspended when the request is sent, and resumed by the reply.
struct ConditionWait<'a> {
    bind: BindObject<'a>,
    hold: &'a mut Hold,
    timeout_us: Option<u64>,
    /// The fencing token of the suspended hold.
    suspended: Option<u64>,
    asked: bool,
}

impl Steps for ConditionWait<'_> {
    type Output = bool;

    fn client(&self) -> &Arc<Shared> {
        self.bind.client()
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<bool>, CallError> {
        if !self.asked {
            return Ok(match self.bind.next(input)? {
                Step::Done(binding) => {
                    check(self.hold, &binding)?;
                    self.asked = true;
                    let (handle, owner) = (binding.handle, self.hold.owner());
                    let wait = Wait { handle, owner, timeout_us: self.timeout_us };
                    Step::Request {
                        session: binding.session.clone(),
                        request: Request::Wait(wait),
                        undo: Some(self.hold.undo()),
                    }
                }
                other => other.unfinished(),
            });
        }
        match input {
            Ok(Input::Reply(Message::Woken(woken))) => {
                self.hold.resume(woken.granted.unwrap_or_default());
                Ok(Step::Done(woken.notified))
            }
            Err(CallError::Refused(error)) => {
                use ErrorCode::{Cancelled, NotOwner, Poisoned};
                // After these errors the lock isn't held; after any other the wait never began.
                if let Some(token) = self.suspended
                    && !matches!(error.code(), Cancelled | NotOwner | Poisoned)
                {
                    self.hold.undo_suspend(token);
                }
                Err(CallError::Refused(error))
            }
            Err(error) => Err(error),
            Ok(_) => Err(SessionLost::nonsense().into()),
        }
    }

    fn on_sent(&mut self) {
        if self.asked {
            self.suspended = Some(self.hold.suspend());
        }
    }
}

struct ConditionNotify<'a> {
    bind: BindObject<'a>,
    hold: &'a Hold,
    n: u32,
    asked: bool,
}

impl Steps for ConditionNotify<'_> {
    type Output = u32;

    fn client(&self) -> &Arc<Shared> {
        self.bind.client()
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<u32>, CallError> {
        if self.asked {
            return match input? {
                Input::Reply(Message::Done(done)) => Ok(Step::Done(done.count)),
                _ => Ok(Step::Done(0)),
            };
        }
        Ok(match self.bind.next(input)? {
            Step::Done(binding) => {
                check(self.hold, &binding)?;
                self.asked = true;
                let (handle, owner, n) = (binding.handle, self.hold.owner(), self.n);
                let request = Request::Notify(Notify { handle, owner, n });
                Step::Request { session: binding.session.clone(), request, undo: None }
            }
            other => other.unfinished(),
        })
    }
}

impl Attachable for Condition {}
impl sealed::Attachable for Condition {
    const KIND: Kind = Kind::Condition;
    fn from_object(object: Arc<Object>) -> Self {
        Self(object)
    }
}
