//! A session of threads: requests, flush, close and loss. [`leader`](super::leader) decides which
//! thread reads.

use std::{
    collections::BTreeMap,
    mem::ManuallyDrop,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use syncd_proto::v1::{client_message::Request, server_message::Message};

use super::{
    NoSignals, OnSignal, Socket,
    leader::{Inner, Interrupted, State},
};
use crate::{
    error::{SessionError, SessionLost},
    session::{
        CallError, Facts, LinkError, OpenError, Opening, answer,
        protocol::{Protocol, Undo},
    },
};

/// How long a dropped guard waits for room in the queue, and a dropped session until its unsent
/// requests are in the socket.
const FLUSH: Duration = Duration::from_secs(1);

/// How long to wait for the reply to a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// A handle of the session; dropping it closes the session.
pub(crate) struct Session {
    facts: Arc<Facts>,
    /// Never dropped in a forked child, where its mutex may be locked.
    inner: ManuallyDrop<Arc<Inner>>,
}

impl Session {
    /// Opens a session by `end`.
    pub(super) fn open(
        opening: Opening<'_>,
        end: Instant,
        on_signal: OnSignal<'_>,
    ) -> Result<Self, OpenError> {
        let mut protocol = opening.protocol();
        let ticket = protocol.draw_id();
        let facts = Arc::new(Facts::new());
        let state = State {
            protocol,
            connection: None,
            again: opening.again,
            failed: None,
            readable: false,
            waiters: BTreeMap::new(),
            leader: None,
            flushing: false,
        };
        let (endpoint, state) = (opening.endpoint.clone(), Mutex::new(state));
        let inner = Arc::new(Inner { facts: facts.clone(), endpoint, state });
        let session = Self { facts, inner: ManuallyDrop::new(inner) };
        let state = session.inner.lock();
        let opened = session.inner.wait(state, ticket, Some(end), on_signal, |state, now| {
            // A refusal first: the daemon ends the stream after it, which is an error, too.
            if let Some(error) = state.protocol.refused() {
                return Some(Err(OpenError::Refused(Box::new(error.clone()))));
            }
            if let Some(error) = state.failed.take() {
                return Some(Err(OpenError::Link(error)));
            }
            if let Some(why) = state.protocol.lost() {
                return Some(Err(OpenError::Link(LinkError::Protocol(why.to_string()))));
            }
            let is_up = state.protocol.is_up();
            is_up.then_some(Ok(())).or((now >= end).then_some(Err(OpenError::Overdue)))
        });
        opened.unwrap_or(Err(OpenError::Interrupted)).map(|()| session)
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Sends a request and waits for its reply. `sent` is called when the request is queued.
    pub(crate) fn call(
        &self,
        request: Request,
        undo: Option<Undo>,
        deadline: Option<Instant>,
        sent: impl FnOnce(),
        on_signal: OnSignal<'_>,
    ) -> Result<Message, CallError> {
        if !self.facts.is_ours() {
            return Err(SessionLost::forked().into());
        }
        let mut state = self.room(deadline, on_signal)?;
        let id = state.protocol.handle_request(request, undo, deadline);
        sent();
        let reply = self
            .inner
            .wait(state, id, deadline, on_signal, |state, _| state.protocol.poll_reply(id));
        let Ok(reply) = reply else {
            let mut state = self.inner.lock();
            state.protocol.handle_withdraw(id);
            self.inner.send(&mut state);
            return Err(SessionError::Interrupted.into());
        };
        let reply = answer(reply);
        self.facts.tell(&reply);
        reply
    }

    /// Waits until there is room for a request, and returns the locked state.
    fn room(
        &self,
        deadline: Option<Instant>,
        on_signal: OnSignal<'_>,
    ) -> Result<MutexGuard<'_, State>, CallError> {
        loop {
            let mut state = self.inner.lock();
            if state.protocol.poll_room() {
                return Ok(state);
            }
            let ticket = state.protocol.draw_id();
            let room = self.inner.wait(state, ticket, deadline, on_signal, |state, now| {
                let is_late = deadline.is_some_and(|deadline| now >= deadline);
                state.protocol.poll_room().then_some(true).or(is_late.then_some(false))
            });
            match room {
                Ok(true) => {}
                Ok(false) => return Err(CallError::overdue()),
                Err(Interrupted) => return Err(SessionError::Interrupted.into()),
            }
        }
    }

    /// As [`post`](Self::post), but waits until there is room in the queue.
    pub(crate) fn post_when_there_is_room(
        &self,
        request: Request,
        on_signal: OnSignal<'_>,
    ) -> Result<(), CallError> {
        if !self.facts.is_ours() {
            return Err(SessionLost::forked().into());
        }
        let mut state = self.room(None, on_signal)?;
        if let Some(why) = state.protocol.lost().cloned() {
            return Err(why.into());
        }
        state.protocol.handle_post(request);
        self.inner.send(&mut state);
        Ok(())
    }

    /// Sends a request that has no reply: before returning, if the socket has room.
    pub(crate) fn post(&self, request: Request) {
        let mut state = self.inner.lock();
        state.protocol.handle_post(request);
        self.inner.send(&mut state);
        if !state.protocol.poll_room() {
            let ticket = state.protocol.draw_id();
            let end = Instant::now() + FLUSH;
            let _ = self.inner.wait(state, ticket, Some(end), &mut NoSignals, |state, now| {
                (state.protocol.poll_room() || now >= end).then_some(())
            });
        }
    }

    /// Reads what has arrived, without waiting, and calls `look`.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Protocol) -> T) -> T {
        let mut state = self.inner.lock();
        state.readable = true;
        self.inner.turn(&mut state, Instant::now());
        look(&mut state.protocol)
    }

    /// Waits until everything queued is in the socket, or the session is lost; returns false if
    /// `end` passed first.
    pub(crate) fn flush(&self, end: Instant, on_signal: OnSignal<'_>) -> Result<bool, CallError> {
        if !self.facts.is_ours() {
            return Ok(true);
        }
        let mut state = self.inner.lock();
        let ticket = state.protocol.draw_id();
        let sent = self.inner.wait(state, ticket, Some(end), on_signal, |state, now| {
            (!state.is_unsent()).then_some(true).or((now >= end).then_some(false))
        });
        sent.map_err(|Interrupted| SessionError::Interrupted.into())
    }

    /// Waits until the session is lost.
    pub(super) fn lost(&self, on_signal: OnSignal<'_>) -> Result<SessionLost, SessionError> {
        if !self.facts.is_ours() {
            return Ok(SessionLost::forked());
        }
        let mut state = self.inner.lock();
        let ticket = state.protocol.draw_id();
        let lost = self
            .inner
            .wait(state, ticket, None, on_signal, |state, _| state.protocol.lost().cloned());
        lost.map_err(|Interrupted| SessionError::Interrupted)
    }

    /// Sends a goodbye, and waits up to 5 s for its reply.
    pub(super) fn close(&self, on_signal: OnSignal<'_>) {
        if !self.facts.is_usable() {
            return;
        }
        let mut state = self.inner.lock();
        let id = state.protocol.handle_close();
        let end = Instant::now() + GOODBYE;
        let _ = self.inner.wait(state, id, Some(end), on_signal, |state, now| {
            (state.protocol.poll_reply(id).is_some() || now >= end).then_some(())
        });
        self.inner.finish();
    }

    /// The current socket, to watch for its end.
    pub(super) fn socket(&self) -> Option<Arc<Socket>> {
        let state = self.inner.lock();
        state.connection.as_ref().map(|connection| connection.socket.clone())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.facts.is_ours() {
            return;
        }
        let mut state = self.inner.lock();
        if state.protocol.opened().is_some() && state.protocol.lost().is_none() {
            let id = state.protocol.handle_close();
            let end = Instant::now() + FLUSH;
            let delivered = self.inner.wait(state, id, Some(end), &mut NoSignals, |state, now| {
                state.is_delivered(id).then_some(true).or((now >= end).then_some(false))
            });
            if matches!(delivered, Ok(true)) || !self.inner.say_goodbye_in_background(id) {
                self.inner.finish();
            }
        } else {
            drop(state);
            self.inner.finish();
        }
        // SAFETY: `inner` isn't used after this.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.facts.id()).finish()
    }
}
