//! Event.

use std::{sync::Arc, time::Duration};

use syncd_proto::v1::{
    ErrorCode, EventClear, EventSet, EventWait, client_message::Request, server_message::Message,
};

use crate::{
    SessionError, Token, WaitOutcome,
    binding::ObjectReply,
    call::{Call, call, done},
    object::{Attachable, Kind, Object, micros, sealed},
    owner,
    session::{CallError, protocol::Undo},
};

/// A flag that processes can set, clear and wait for.
///
/// Clones are the same event.
#[derive(Clone, Debug)]
pub struct Event(pub(crate) Arc<Object>);

impl Event {
    /// Sets the event, wakes all waiters, and returns how many. It stays set until cleared.
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// The event may or may not be set.
    pub async fn set(&self) -> Result<u32, SessionError> {
        self.set_it().run().await
    }

    /// Clears the event: later waits block until it is set again.
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// The event may or may not be cleared.
    pub async fn clear(&self) -> Result<(), SessionError> {
        self.clear_it().run().await
    }

    /// Whether the event is set.
    ///
    /// # Errors
    /// Any [`SessionError`].
    pub async fn is_set(&self) -> Result<bool, SessionError> {
        Ok(self.0.query().run().await?.value != 0)
    }

    /// Waits until the event is set.
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait(&self) -> Result<(), SessionError> {
        self.wait_by(owner::current(), None).run().await.map(drop)
    }

    /// Waits until the event is set, for at most `timeout`.
    ///
    /// # Errors
    /// Any [`SessionError`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<WaitOutcome, SessionError> {
        self.wait_by(owner::current(), Some(timeout)).run().await
    }

    pub(crate) fn set_it(&self) -> impl Call<Done = Result<u32, SessionError>> + '_ {
        let set = self.0.request(true, |handle| (Request::EventSet(EventSet { handle }), None));
        call(set, None, |done: Result<ObjectReply, CallError>| match done?.1 {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        })
    }

    pub(crate) fn clear_it(&self) -> impl Call<Done = Result<(), SessionError>> + '_ {
        let clear = |handle| (Request::EventClear(EventClear { handle }), None);
        let clear = self.0.request(true, clear);
        call(clear, None, done)
    }

    pub(crate) fn wait_by(
        &self,
        owner: u64,
        timeout: Option<Duration>,
    ) -> impl Call<Done = Result<WaitOutcome, SessionError>> + '_ {
        let timeout_us = micros(timeout);
        let wait = self.0.request(true, move |handle| {
            (Request::EventWait(EventWait { handle, owner, timeout_us }), Some(Undo::Wait))
        });
        call(wait, timeout, |set: Result<ObjectReply, CallError>| match set {
            Ok(_) => Ok(WaitOutcome::Notified),
            Err(CallError::Refused(error)) if error.code() == ErrorCode::TimedOut => {
                Ok(WaitOutcome::TimedOut)
            }
            Err(error) => Err(error.into()),
        })
    }

    /// The object's name; empty for an anonymous object.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The token by which another process attaches to the object.
    pub fn token(&self) -> Token {
        self.0.token()
    }
}

impl Attachable for Event {}
impl sealed::Attachable for Event {
    const KIND: Kind = Kind::Event;
    fn from_object(object: Arc<Object>) -> Self {
        Self(object)
    }
}
