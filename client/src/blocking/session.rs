//! The shell for threads. One of the threads that wait leads: it sleeps at the socket and reads
//! for all; the others sleep until it wakes them. Whoever has what it waits for leaves, and if it
//! led it wakes another one, which leads then. Everything else happens under the session's mutex:
//! what a thread queues it also writes, and anybody may read.
//!
//! What can't be written at once, since the socket is full or there is no connection, is left to
//! the leader; and if nobody waits, to a thread that is started for it and ends with it.

use std::{
    collections::BTreeMap,
    mem::{self, ManuallyDrop},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use syncd_proto::{
    Endpoint,
    v1::{Open, client_message::Request, server_message::Message},
};
use tokio::io::ReadBuf;

use super::{NoSignals, OnSignal, Parker, Socket};
use crate::{
    error::{SessionError, SessionLost},
    session::{
        CallError, Facts, LinkError, OpenError, answer,
        protocol::{Event, Protocol, Undo},
        transport::Transport,
    },
};

/// How late a signal may be noticed that comes in the instant between the last look for signals
/// and the sleep.
const LOOK: Duration = Duration::from_millis(500);

/// For how long what couldn't be sent at once is waited for: by a dropped guard that found too
/// much before it, and at the session's end.
const FLUSH: Duration = Duration::from_secs(1);

/// For how long the answer to a goodbye is waited for.
const GOODBYE: Duration = Duration::from_secs(5);

/// The session, as long as anybody has it.
pub(crate) struct Session {
    facts: Arc<Facts>,
    /// A forked child leaves it as it is: its mutex may be locked.
    inner: ManuallyDrop<Arc<Inner>>,
}

struct Inner {
    facts: Arc<Facts>,
    endpoint: Endpoint,
    state: Mutex<State>,
}

struct State {
    protocol: Protocol,
    connection: Option<Connection>,
    /// Why the connection failed that was to open the session.
    failed: Option<LinkError>,
    /// The socket is to be read.
    readable: bool,
    /// By what they wait for: a request, or a number drawn for the purpose.
    waiters: BTreeMap<u64, Arc<Parker>>,
    leader: Option<u64>,
    /// A thread is on its way that sends what is queued.
    flushing: bool,
}

struct Connection {
    transport: Transport,
    socket: Arc<Socket>,
}

/// A wait was given up for a signal.
struct Interrupted;

impl Session {
    /// Opens a session, unless `end` comes before.
    pub(super) fn open(
        endpoint: &Endpoint,
        open: Open,
        end: Instant,
        on_signal: OnSignal<'_>,
    ) -> Result<Self, OpenError> {
        let mut protocol = Protocol::new(Instant::now(), open);
        let ticket = protocol.draw_id();
        let facts = Arc::new(Facts::new());
        let state = State {
            protocol,
            connection: None,
            failed: None,
            readable: false,
            waiters: BTreeMap::new(),
            leader: None,
            flushing: false,
        };
        let (endpoint, state) = (endpoint.clone(), Mutex::new(state));
        let inner = Arc::new(Inner { facts: facts.clone(), endpoint, state });
        let session = Self { facts, inner: ManuallyDrop::new(inner) };
        let state = session.inner.lock();
        let opened = session.inner.wait(state, ticket, Some(end), on_signal, |state, now| {
            if let Some(error) = state.failed.take() {
                return Some(Err(OpenError::Link(error)));
            }
            if let Some(error) = state.protocol.refused() {
                return Some(Err(OpenError::Refused(Box::new(error.clone()))));
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

    /// Sends a request to which no reply is wanted, before it returns if the socket has room.
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
            let _ = self.inner.wait(state, id, Some(end), &mut NoSignals, |state, now| {
                (!state.is_unsent() || now >= end).then_some(())
            });
        } else {
            drop(state);
        }
        self.inner.finish();
        // SAFETY: it is used no more.
        unsafe { ManuallyDrop::drop(&mut self.inner) };
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Session").field(&self.facts.id()).finish()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is so. `until` is asked after each turn, with the time; `end` is
    /// when it is to be asked at the latest.
    fn wait<'s, T>(
        self: &'s Arc<Self>,
        mut state: MutexGuard<'s, State>,
        ticket: u64,
        end: Option<Instant>,
        on_signal: OnSignal<'_>,
        mut until: impl FnMut(&mut State, Instant) -> Option<T>,
    ) -> Result<T, Interrupted> {
        let parker = Parker::of_this_thread();
        let signals_matter = on_signal.matter();
        let mut interrupted = false;
        loop {
            parker.reset();
            let now = Instant::now();
            self.turn(&mut state, now);
            if let Some(done) = until(&mut state, now) {
                self.leave(&mut state, ticket);
                return Ok(done);
            }
            if interrupted {
                // Somebody else leads meanwhile; and the handler may come here, too.
                self.leave(&mut state, ticket);
                drop(state);
                if on_signal.handle() {
                    return Err(Interrupted);
                }
                interrupted = false;
                state = self.lock();
                continue;
            }
            state.waiters.entry(ticket).or_insert_with(|| parker.clone());
            let leads = *state.leader.get_or_insert(ticket) == ticket;
            let mut wake_at = end;
            let mut socket = None;
            if leads {
                wake_at = earlier(wake_at, state.protocol.poll_timeout());
                let connection = state.connection.as_ref();
                socket = connection.map(|c| (c.socket.clone(), c.transport.is_full()));
            }
            let look = signals_matter.then(|| now + LOOK);
            let wake_at = earlier(wake_at, look);
            drop(state);
            let watched = socket.as_ref().map(|(socket, full)| (&**socket, *full));
            let slept = parker.park(watched, wake_at);
            interrupted = signals_matter
                && (slept.interrupted || look.is_some_and(|look| Instant::now() >= look));
            state = self.lock();
            state.readable |= slept.readable;
        }
    }

    /// This one waits no more. If it led, another one is to.
    fn leave(self: &Arc<Self>, state: &mut State, ticket: u64) {
        state.waiters.remove(&ticket);
        if state.leader == Some(ticket) {
            state.leader = None;
        }
        if state.leader.is_none() {
            match state.waiters.values().next() {
                Some(next) => next.wake(),
                None => self.flush_behind(state),
            }
        }
    }

    /// Sends what was queued, or sees to it that somebody does.
    fn send(self: &Arc<Self>, state: &mut State) {
        self.turn(state, Instant::now());
        if state.leader.is_none() && state.waiters.is_empty() {
            self.flush_behind(state);
        }
    }

    /// Nobody waits who would send what is left: a thread of its own does.
    fn flush_behind(self: &Arc<Self>, state: &mut State) {
        if state.flushing || !state.is_unsent() || state.protocol.opened().is_none() {
            return;
        }
        let inner = self.clone();
        let flush = move || {
            let mut state = inner.lock();
            let ticket = state.protocol.draw_id();
            let _ = inner.wait(state, ticket, None, &mut NoSignals, |state, _| {
                let is_sent = !state.is_unsent();
                state.flushing = !is_sent;
                is_sent.then_some(())
            });
        };
        // Without a thread, the next call sends it.
        let thread = thread::Builder::new().name("syncd-flush".to_owned());
        state.flushing = thread.spawn(flush).is_ok();
    }

    /// Does all that can be done without waiting, and wakes those whom it concerns.
    fn turn(&self, state: &mut State, now: Instant) {
        let before = state.connection.as_ref().map(|connection| Arc::as_ptr(&connection.socket));
        state.protocol.handle_timeout(now);
        loop {
            if state.failed.is_none() && state.protocol.poll_connect(now) {
                match connect(&self.endpoint, state.protocol.poll_timeout()) {
                    Ok(connection) => {
                        state.connection = Some(connection);
                        state.protocol.handle_connected();
                    }
                    Err(error) => state.disconnect(now, error),
                }
            }
            match state.exchange() {
                Ok(()) => break,
                Err(error) => state.disconnect(now, error),
            }
        }
        while let Some(event) = state.protocol.poll_event() {
            match event {
                Event::Reply(id) => state.waiters.get(&id).into_iter().for_each(|p| p.wake()),
                Event::Room | Event::Up | Event::Lost => {
                    state.waiters.values().for_each(|parker| parker.wake());
                }
            }
        }
        if state.protocol.lost().is_some() {
            state.connection = None;
            self.facts.note(&state.protocol);
        } else if self.facts.id() == 0 {
            self.facts.note(&state.protocol);
        }
        let after = state.connection.as_ref();
        let is_full = after.is_some_and(|connection| connection.transport.is_full());
        if is_full || before != after.map(|connection| Arc::as_ptr(&connection.socket)) {
            // It sleeps at another socket, or doesn't wait for room.
            let leader = state.leader.and_then(|leader| state.waiters.get(&leader));
            leader.into_iter().for_each(|parker| parker.wake());
        }
    }

    /// It is over, for whoever still waits.
    fn finish(&self) {
        let mut state = self.lock();
        state.protocol.handle_abort(SessionLost::closed());
        self.turn(&mut state, Instant::now());
    }
}

impl State {
    fn exchange(&mut self) -> Result<(), LinkError> {
        let readable = mem::take(&mut self.readable);
        let Some(Connection { transport, socket }) = &mut self.connection else { return Ok(()) };
        // Less than there was room for is all that there was: another read would find nothing.
        let mut is_empty = false;
        let read = |buf: &mut ReadBuf<'_>| {
            if is_empty {
                return Poll::Pending;
            }
            let read = socket.read(buf);
            is_empty = buf.remaining() > 0;
            read
        };
        transport.exchange(&mut self.protocol, readable, read, |bytes| socket.write(bytes))
    }

    fn disconnect(&mut self, now: Instant, error: LinkError) {
        self.connection = None;
        self.protocol.handle_disconnected(now, error.end());
        if self.protocol.opened().is_none() {
            self.failed = Some(error);
        }
    }

    /// Something queued has not reached the socket.
    fn is_unsent(&self) -> bool {
        let unsent = |connection: &Connection| connection.transport.is_unsent();
        self.protocol.is_unsent() || self.connection.as_ref().is_some_and(unsent)
    }
}

fn connect(endpoint: &Endpoint, end: Option<Instant>) -> Result<Connection, LinkError> {
    let socket = Arc::new(Socket::connect(endpoint, end)?);
    Ok(Connection { transport: Transport::new()?, socket })
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
