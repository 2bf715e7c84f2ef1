//! Event. Never here: the wire's other waits.

use std::{sync::Arc, time::Duration};

use syncd_proto::v1::{
    ErrorCode, EventClear, EventSet, EventWait, client_message::Request, server_message::Message,
};

use crate::{
    SessionError, Token, WaitOutcome,
    object::{Attachable, Kind, Object, micros, sealed},
    owner,
    session::CallError,
};

/// A flag between processes that one can wait for.
///
/// Clones are the same event.
#[derive(Clone, Debug)]
pub struct Event(pub(crate) Arc<Object>);

impl Event {
    /// Sets it, and wakes all who wait; tells how many. It stays set.
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// It may or may not be set.
    pub async fn set(&self) -> Result<u32, SessionError> {
        match self.0.call(true, 0, |handle| Request::EventSet(EventSet { handle })).await?.1 {
            Message::Done(done) => Ok(done.count),
            _ => Ok(0),
        }
    }

    /// Clears it: who waits from now on does wait.
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// It may or may not be cleared.
    pub async fn clear(&self) -> Result<(), SessionError> {
        self.0.call(true, 0, |handle| Request::EventClear(EventClear { handle })).await?;
        Ok(())
    }

    /// Whether it is set.
    ///
    /// # Errors
    /// As for any call.
    pub async fn is_set(&self) -> Result<bool, SessionError> {
        Ok(self.0.query().await?.value != 0)
    }

    /// Waits until it is set.
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait(&self) -> Result<(), SessionError> {
        self.wait_until(None).await.map(drop)
    }

    /// Waits until it is set, but not longer than so.
    ///
    /// # Errors
    /// As for any call.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_timeout(&self, timeout: Duration) -> Result<WaitOutcome, SessionError> {
        self.wait_until(Some(timeout)).await
    }

    async fn wait_until(&self, timeout: Option<Duration>) -> Result<WaitOutcome, SessionError> {
        let (owner, timeout_us) = (owner::current(), micros(timeout));
        let wait = |handle| Request::EventWait(EventWait { handle, owner, timeout_us });
        match self.0.call(true, owner, wait).await {
            Ok(_) => Ok(WaitOutcome::Notified),
            Err(CallError::Refused(error)) if error.code() == ErrorCode::TimedOut => {
                Ok(WaitOutcome::TimedOut)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Its name; empty if it has none.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// What another process attaches by.
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
