//! A session of tasks: requests, flush, close and loss. [`driver`](super::driver) decides which
//! future reads.

use std::{
    collections::BTreeMap,
    mem::ManuallyDrop,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use syncd_proto::v1::{client_message::Request, server_message::Message};
use tokio::{
    runtime::Handle,
    time::{timeout, timeout_at},
};

use super::{
    FLUSH,
    driver::{Inner, State},
    leader::LeaderWaker,
    waiting::Waiting,
};
use crate::{
    error::SessionLost,
    session::{
        CallError, Facts, LinkError, OpenError, Opening, answer,
        protocol::{Protocol, Undo},
    },
};

/// How long to wait for the reply to a goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// A handle of the session; dropping it closes the session.
pub(crate) struct Session {
    facts: Arc<Facts>,
    /// Never dropped in a forked child, where its mutex may be locked.
    inner: ManuallyDrop<Arc<Inner>>,
}

impl Session {
    pub(super) async fn open(opening: Opening<'_>) -> Result<Self, OpenError> {
        let facts = Arc::new(Facts::new());
        let leader_waker = LeaderWaker::new();
        let state = State {
            protocol: opening.protocol(),
            connection: None,
            again: opening.again,
            connecting: None,
            failed: None,
            timer: None,
            leader: None,
            leading: false,
            waiting: BTreeMap::new(),
            attended: false,
            wake: Vec::new(),
            attend: false,
        };
        let inner = Arc::new(Inner {
            facts: facts.clone(),
            endpoint: opening.endpoint.clone(),
            patience: opening.patience,
            runtime: Handle::current(),
            waker: leader_waker.clone().into(),
            leader_waker,
            state: Mutex::new(state),
        });
        let session = Self { facts, inner: ManuallyDrop::new(inner) };
        let opened = session.wait(|state| {
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
            state.protocol.is_up().then_some(Ok(()))
        });
        opened.await.map(|()| session)
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Sends a request when first polled, and waits for its reply. `sent` is called when the
    /// request is queued. Dropping the future withdraws the request.
    pub(crate) async fn call(
        &self,
        request: Request,
        undo: Option<Undo>,
        deadline: Option<Instant>,
        sent: impl FnOnce() + Send,
    ) -> Result<Message, CallError> {
        if !self.facts.is_ours() {
            return Err(SessionLost::forked().into());
        }
        let id = loop {
            {
                let mut state = self.inner.lock();
                if state.protocol.poll_room() {
                    break state.protocol.handle_request(request, undo, deadline);
                }
            }
            let room = self.wait(|state| state.protocol.poll_room().then_some(()));
            match deadline {
                None => room.await,
                Some(deadline) => {
                    let room = timeout_at(deadline.into(), room).await;
                    room.map_err(|_| CallError::overdue())?;
                }
            }
        };
        sent();
        let mut waiting = Waiting { inner: &self.inner, id, withdraw: true };
        let reply = waiting.until(|state| state.protocol.poll_reply(id)).await;
        waiting.withdraw = false;
        let reply = answer(reply);
        self.facts.tell(&reply);
        reply
    }

    /// As [`post`](Self::post), but waits until there is room in the queue.
    pub(crate) async fn post_when_there_is_room(&self, request: Request) -> Result<(), CallError> {
        if !self.facts.is_ours() {
            return Err(SessionLost::forked().into());
        }
        if !self.inner.lock().protocol.poll_room() {
            self.wait(|state| state.protocol.poll_room().then_some(())).await;
        }
        if let Some(why) = self.inner.lock().protocol.lost().cloned() {
            return Err(why.into());
        }
        self.post(request);
        Ok(())
    }

    /// Sends a request that has no reply: before returning, if the socket has room.
    pub(crate) fn post(&self, request: Request) {
        self.inner.with(|state| {
            state.protocol.handle_post(request);
            self.inner.drive(state, false);
        });
    }

    /// Reads what has arrived, even if the reactor hasn't noticed, and calls `look`.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&mut Protocol) -> T) -> T {
        self.inner.with(|state| {
            self.inner.drive(state, true);
            look(&mut state.protocol)
        })
    }

    /// Waits until the session is lost.
    pub(crate) async fn lost(&self) -> SessionLost {
        if !self.facts.is_ours() {
            return SessionLost::forked();
        }
        self.wait(|state| state.protocol.lost().cloned()).await
    }

    /// Waits until everything queued is in the socket, or the session is lost.
    pub(crate) async fn flush(&self) {
        if self.facts.is_ours() {
            self.wait(|state| (!state.is_unsent()).then_some(())).await;
        }
    }

    /// Sends a goodbye, and waits up to 5 s for its reply.
    pub(crate) async fn close(&self) {
        if self.facts.is_usable() {
            let id = self.inner.lock().protocol.handle_close();
            let mut waiting = Waiting { inner: &self.inner, id, withdraw: false };
            let reply = waiting.until(|state| state.protocol.poll_reply(id));
            let _ = timeout(GOODBYE, reply).await;
            drop(waiting);
            self.inner.finish();
        }
    }

    async fn wait<T>(&self, until: impl FnMut(&mut State) -> Option<T> + Send) -> T {
        let id = self.inner.lock().protocol.draw_id();
        Waiting { inner: &self.inner, id, withdraw: false }.until(until).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.facts.is_ours() {
            return;
        }
        // SAFETY: `inner` isn't used after this.
        let inner = unsafe { ManuallyDrop::take(&mut self.inner) };
        let goodbye = inner.with(|state| {
            let opened = state.protocol.opened().filter(|_| state.protocol.lost().is_none())?;
            // If the goodbye isn't delivered, the next daemon keeps the session's holds for as long
            // as this process lives.
            let limit = if opened.outlives_daemon { inner.patience } else { FLUSH };
            let id = state.protocol.handle_close();
            inner.drive(state, false);
            (!state.is_delivered(id)).then_some((id, limit))
        });
        let Some((id, limit)) = goodbye else { return inner.finish() };
        let runtime = Handle::try_current().unwrap_or_else(|_| inner.runtime.clone());
        runtime.spawn(async move {
            let mut waiting = Waiting { inner: &inner, id, withdraw: false };
            let delivered = waiting.until(|state| state.is_delivered(id).then_some(()));
            let _ = timeout(limit, delivered).await;
            drop(waiting);
            inner.finish();
        });
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.facts.id()).finish()
    }
}
