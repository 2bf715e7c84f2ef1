//! Condition. Never here: the wire's way of waiting, which is in [`Hold`](crate::Hold).

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
    /// Dropping the future once it has waited gives up the lock as well: the guard is void from
    /// then on, and dropping it does nothing. A notify that was its own passes on to the next.
    /// Dropped before its request was sent, it changes nothing, and the guard is good.
    pub async fn wait(&self, guard: &mut LockGuard) -> Result<(), ConditionError> {
        self.wait_by(guard, None).run().await.map(drop)
    }

    /// As [`wait`](Self::wait), but waits for the notify for at most `timeout`. The lock is held
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
        self.wait_by(guard, Some(timeout)).run().await
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
        self.notify_by(guard, n).run().await
    }

    /// Wakes the oldest waiter; tells whether there was one.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_one(&self, guard: &LockGuard) -> Result<bool, ConditionError> {
        Ok(self.notify_by(guard, 1).run().await? > 0)
    }

    /// Wakes all who wait, and tells how many there were.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`notify`](Self::notify).
    pub async fn notify_all(&self, guard: &LockGuard) -> Result<u32, ConditionError> {
        self.notify_by(guard, 0).run().await
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What another process attaches by.
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
            lent: None,
            asked: false,
        };
        // The daemon's time-out ends the wait for the notify, and not the way back into the lock.
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

/// Whether the guard is good for a condition's binding: another session doesn't hold the lock.
fn check(hold: &Hold, binding: &Binding) -> Result<(), CallError> {
    if hold.is_held() && Arc::ptr_eq(&binding.session, hold.session()) {
        return Ok(());
    }
    Err(CallError::refused(
        ErrorCode::NotOwner,
        "the guard is void: the condition's lock must be acquired again",
    ))
}

/// The lock is let go of when the request is sent, and held again at its end.
struct ConditionWait<'a> {
    bind: BindObject<'a>,
    hold: &'a mut Hold,
    timeout_us: Option<u64>,
    /// The lock's token, while it is let go of.
    lent: Option<u64>,
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
                other => other.without_end(),
            });
        }
        match input {
            Ok(Input::Reply(Message::Woken(woken))) => {
                self.hold.regain(woken.granted.unwrap_or_default());
                Ok(Step::Done(woken.notified))
            }
            Err(CallError::Refused(error)) => {
                use ErrorCode::{Cancelled, NotOwner, Poisoned};
                // Refused at once, it is held as before; these ends come without the lock.
                if let Some(lent) = self.lent
                    && !matches!(error.code(), Cancelled | NotOwner | Poisoned)
                {
                    self.hold.keep(lent);
                }
                Err(CallError::Refused(error))
            }
            Err(error) => Err(error),
            Ok(_) => Err(SessionLost::nonsense().into()),
        }
    }

    fn on_sent(&mut self) {
        if self.asked {
            self.lent = Some(self.hold.lend());
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
            other => other.without_end(),
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
