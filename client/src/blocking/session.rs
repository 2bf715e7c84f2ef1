//! A session of threads, as its calls see it: what is asked of it, and what becomes of it. Who
//! reads, and when, is in [`leader`](super::leader).

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

/// For how long what couldn't be sent at once is waited for: by a dropped guard that found too
/// much before it, and at the session's end.
const FLUSH: Duration = Duration::from_secs(1);

/// How long to wait for the answer to a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// The session, as long as anybody has it.
pub(crate) struct Session {
    facts: Arc<Facts>,
    /// A forked child leaves it as it is: its mutex may be locked.
    inner: ManuallyDrop<Arc<Inner>>,
}

impl Session {
    /// Opens a session, unless `end` comes before.
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
            // The daemon's answer first: after a refusal it ends the stream.
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

    /// Sends a request and waits for its answer. `sent` is called when the protocol has it.
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

    /// The state, when there is room for a request.
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

    /// As [`post`](Self::post), but waits first while too much is queued.
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

    /// Sends a request that has no reply; before it returns, if the socket has room.
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

    /// Reads what came, without waiting, and looks.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Protocol) -> T) -> T {
        let mut state = self.inner.lock();
        state.readable = true;
        self.inner.turn(&mut state, Instant::now());
        look(&mut state.protocol)
    }

    /// Waits until all that was queued is in the socket, or the session is lost; tells whether it
    /// came to that by `end`.
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

    /// Says goodbye, and waits a while for the daemon to have heard it.
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

    /// The socket of the moment, to be watched for its end.
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
            let is_heard = self.inner.wait(state, id, Some(end), &mut NoSignals, |state, now| {
                state.is_heard_out(id).then_some(true).or((now >= end).then_some(false))
            });
            if matches!(is_heard, Ok(true)) || !self.inner.say_goodbye_behind(id) {
                self.inner.finish();
            }
        } else {
            drop(state);
            self.inner.finish();
        }
        // SAFETY: it is used no more.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.facts.id()).finish()
    }
}
