//! Barrier. Never here: who runs the action of those who have one; the daemon chooses.

use std::{sync::Arc, time::Duration};

use syncd_proto::v1::{
    self, BarrierAbort, BarrierReset, BarrierWait, client_message::Request, server_message::Message,
};

use crate::{
    BarrierError, SessionError, Token,
    error::SessionLost,
    object::{Attachable, Binding, Kind, Object, micros, sealed},
    owner,
    session::CallError,
};

/// A barrier between processes: so many parties wait for each other, again and again. A party's
/// death, time-out or failed action breaks it for all, until a reset.
///
/// Clones are the same barrier.
#[derive(Clone, Debug)]
pub struct Barrier(pub(crate) Arc<Object>);

/// A party's place among those who passed a barrier together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    index: u32,
}

impl BarrierWaitResult {
    /// From 0, in the order of arrival.
    pub fn index(self) -> u32 {
        self.index
    }

    /// True of one party: the first to come.
    pub fn is_leader(self) -> bool {
        self.index == 0
    }
}

/// What a barrier is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarrierState {
    /// How many parties have come, and wait.
    pub waiting: u32,
    /// Whether everybody is turned away until a reset.
    pub broken: bool,
}

impl Barrier {
    /// Waits until all parties have come.
    ///
    /// # Errors
    /// [`Broken`](BarrierError::Broken), or as for any call.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws this party; the others wait on.
    pub async fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(None, false).await.map(|arrival| arrival.result)
    }

    /// Waits until all parties have come, but not longer than so.
    ///
    /// # Errors
    /// [`TimedOut`](BarrierError::TimedOut), and then the barrier is broken; or as
    /// [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(Some(timeout), false).await.map(|arrival| arrival.result)
    }

    /// As [`wait`](Self::wait) or, with a time-out, [`wait_timeout`](Self::wait_timeout); and if
    /// this party is the last to come, runs `action` before anybody passes. If that panics, the
    /// barrier is broken.
    ///
    /// # Errors
    /// As [`wait_timeout`](Self::wait_timeout).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait); but dropped when it was this party's turn to run the action, it
    /// breaks the barrier.
    pub async fn wait_with(
        &self,
        timeout: Option<Duration>,
        action: impl FnOnce(),
    ) -> Result<BarrierWaitResult, BarrierError> {
        let mut arrival = self.arrive(timeout, true).await?;
        if let Some(turn) = arrival.turn.take() {
            action();
            turn.done().await?;
        }
        Ok(arrival.result)
    }

    /// Makes it empty and whole again; who waits gets [`Broken`](BarrierError::Broken).
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// It may or may not be reset.
    pub async fn reset(&self) -> Result<(), SessionError> {
        self.0.call(true, 0, |handle| Request::BarrierReset(BarrierReset { handle })).await?;
        Ok(())
    }

    /// Breaks it, for all who wait and all who come before a reset.
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// It may or may not be broken.
    pub async fn abort(&self) -> Result<(), SessionError> {
        self.0.call(true, 0, |handle| Request::BarrierAbort(BarrierAbort { handle })).await?;
        Ok(())
    }

    /// How many have come, and whether it is broken.
    ///
    /// # Errors
    /// As for any call.
    pub async fn state(&self) -> Result<BarrierState, SessionError> {
        let v1::State { value, broken, .. } = self.0.query().await?;
        Ok(BarrierState { waiting: value, broken })
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What another process attaches by.
    pub fn token(&self) -> Token {
        self.0.token()
    }

    pub(crate) async fn arrive(
        &self,
        timeout: Option<Duration>,
        has_action: bool,
    ) -> Result<Arrival, BarrierError> {
        let (owner, timeout_us) = (owner::current(), micros(timeout));
        let wait =
            |handle| Request::BarrierWait(BarrierWait { handle, owner, timeout_us, has_action });
        match self.0.call(true, owner, wait).await? {
            (binding, Message::BarrierPassed(passed)) => Ok(Arrival {
                result: BarrierWaitResult { index: passed.index },
                turn: passed.run_action.then(|| Turn { binding, owner, over: false }),
            }),
            _ => Err(CallError::from(SessionLost::nonsense()).into()),
        }
    }
}

/// What a party gets when all have come.
pub(crate) struct Arrival {
    pub(crate) result: BarrierWaitResult,
    /// The action is to be run before the others pass.
    pub(crate) turn: Option<Turn>,
}

/// A party's turn to run the action. Dropped, it breaks the barrier.
pub(crate) struct Turn {
    binding: Arc<Binding>,
    owner: u64,
    over: bool,
}

impl Turn {
    pub(crate) async fn done(mut self) -> Result<(), BarrierError> {
        self.over = true;
        let report = self.report(true);
        self.binding.session.call(report, None).await?;
        Ok(())
    }

    fn report(&self, ok: bool) -> Request {
        let (handle, owner) = (self.binding.handle, self.owner);
        Request::BarrierAction(v1::BarrierAction { handle, owner, ok })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.binding.session.send(self.report(false));
        }
    }
}

impl Attachable for Barrier {}
impl sealed::Attachable for Barrier {
    const KIND: Kind = Kind::Barrier;
    fn from_object(object: Arc<Object>) -> Self {
        Self(object)
    }
}
