//! Barrier.

use std::{sync::Arc, time::Duration};

use syncd_proto::v1::{
    self, BarrierAbort, BarrierReset, BarrierWait, client_message::Request, server_message::Message,
};

use crate::{
    BarrierError, SessionError, Token,
    binding::{Binding, ObjectReply},
    call::{Call, Input, Step, Steps, call, done},
    client::Shared,
    error::SessionLost,
    object::{Attachable, Kind, Object, micros, sealed},
    owner,
    session::{CallError, protocol::Undo},
};

/// A barrier between processes: a fixed number of parties wait for each other, again and again.
/// A party's death, time-out or failed action breaks it for all, until a reset.
///
/// Clones are the same barrier.
#[derive(Clone, Debug)]
pub struct Barrier(pub(crate) Arc<Object>);

/// A party's place among the parties that passed a barrier together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    index: u32,
}

impl BarrierWaitResult {
    /// The party's index in order of arrival, from 0.
    pub fn index(self) -> u32 {
        self.index
    }

    /// Whether this party arrived first; true for exactly one party.
    pub fn is_leader(self) -> bool {
        self.index == 0
    }
}

/// A barrier's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarrierState {
    /// How many parties wait.
    pub waiting: u32,
    /// Whether the barrier is broken: every wait fails until a reset.
    pub broken: bool,
}

impl From<v1::State> for BarrierState {
    fn from(state: v1::State) -> Self {
        Self { waiting: state.value, broken: state.broken }
    }
}

impl Barrier {
    /// Waits until all parties have arrived.
    ///
    /// # Errors
    /// [`Broken`](BarrierError::Broken), or any [`SessionError`].
    ///
    /// # Cancel safety
    /// Dropping the future withdraws this party; the others wait on.
    pub async fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(owner::current(), None, false).run().await.map(|arrival| arrival.result)
    }

    /// Waits until all parties have arrived, for at most `timeout`.
    ///
    /// # Errors
    /// [`TimedOut`](BarrierError::TimedOut), which breaks the barrier; or as [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(owner::current(), Some(timeout), false)
            .run()
            .await
            .map(|arrival| arrival.result)
    }

    /// As [`wait`](Self::wait) or, with a time-out, [`wait_timeout`](Self::wait_timeout). The last
    /// party to arrive runs its `action` before any party passes; a panic in it breaks the barrier.
    ///
    /// # Errors
    /// As [`wait_timeout`](Self::wait_timeout).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait); but dropping the future when this party has to run the action
    /// breaks the barrier.
    pub async fn wait_with(
        &self,
        timeout: Option<Duration>,
        action: impl FnOnce(),
    ) -> Result<BarrierWaitResult, BarrierError> {
        let mut arrival = self.arrive(owner::current(), timeout, true).run().await?;
        if let Some(turn) = arrival.turn.take() {
            action();
            turn.done().run().await?;
        }
        Ok(arrival.result)
    }

    /// Empties the barrier and mends it; parties that wait get [`Broken`](BarrierError::Broken).
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// The barrier may or may not be reset.
    pub async fn reset(&self) -> Result<(), SessionError> {
        self.reset_it().run().await
    }

    /// Breaks the barrier for parties that wait now or arrive before a reset.
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// The barrier may or may not be broken.
    pub async fn abort(&self) -> Result<(), SessionError> {
        self.abort_it().run().await
    }

    /// How many parties wait, and whether the barrier is broken.
    ///
    /// # Errors
    /// Any [`SessionError`].
    pub async fn state(&self) -> Result<BarrierState, SessionError> {
        self.0.query().run().await.map(BarrierState::from)
    }

    /// The object's name; empty for an anonymous object.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The token by which another process attaches to the object.
    pub fn token(&self) -> Token {
        self.0.token()
    }

    pub(crate) fn arrive(
        &self,
        owner: u64,
        timeout: Option<Duration>,
        has_action: bool,
    ) -> impl Call<Done = Result<Arrival, BarrierError>> + '_ {
        let timeout_us = micros(timeout);
        let wait = self.0.request(true, move |handle| {
            let wait = BarrierWait { handle, owner, timeout_us, has_action };
            (Request::BarrierWait(wait), Some(Undo::Party { handle, owner }))
        });
        call(wait, timeout, move |passed: Result<ObjectReply, CallError>| match passed? {
            (binding, Message::BarrierPassed(passed)) => {
                let client = self.0.client.clone();
                let turn = || Turn { client, binding, owner, over: false };
                let result = BarrierWaitResult { index: passed.index };
                Ok(Arrival { result, turn: passed.run_action.then(turn) })
            }
            _ => Err(CallError::from(SessionLost::nonsense()).into()),
        })
    }

    pub(crate) fn reset_it(&self) -> impl Call<Done = Result<(), SessionError>> + '_ {
        let reset = |handle| (Request::BarrierReset(BarrierReset { handle }), None);
        let reset = self.0.request(true, reset);
        call(reset, None, done)
    }

    pub(crate) fn abort_it(&self) -> impl Call<Done = Result<(), SessionError>> + '_ {
        let abort = |handle| (Request::BarrierAbort(BarrierAbort { handle }), None);
        let abort = self.0.request(true, abort);
        call(abort, None, done)
    }
}

/// The result of a party's wait when all have arrived.
pub(crate) struct Arrival {
    pub(crate) result: BarrierWaitResult,
    /// Set if this party has to run its action before the others pass.
    pub(crate) turn: Option<Turn>,
}

/// A party's turn to run the action. Dropping it unreported breaks the barrier.
pub(crate) struct Turn {
    client: Arc<Shared>,
    binding: Arc<Binding>,
    owner: u64,
    over: bool,
}

impl Turn {
    pub(crate) fn done(self) -> impl Call<Done = Result<(), BarrierError>> {
        call(Report(self), None, done)
    }

    fn report(&self, ok: bool) -> Request {
        let (handle, owner) = (self.binding.handle, self.owner);
        Request::BarrierAction(v1::BarrierAction { handle, owner, ok })
    }
}

/// Reports that the action succeeded.
struct Report(Turn);

impl Steps for Report {
    type Output = ();

    fn client(&self) -> &Arc<Shared> {
        &self.0.client
    }

    fn next(&mut self, input: Result<Input, CallError>) -> Result<Step<()>, CallError> {
        let Input::Begin = input? else { return Ok(Step::Done(())) };
        let (session, request) = (self.0.binding.session.clone(), self.0.report(true));
        Ok(Step::Request { session, request, undo: None })
    }

    fn on_sent(&mut self) {
        self.0.over = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.binding.session.post(self.report(false));
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
