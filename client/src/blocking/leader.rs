//! The shell for threads. One of the threads that wait leads: it sleeps at the socket and reads
//! for all; the others sleep until it wakes them. Whoever has what it waits for leaves, and if it
//! led it wakes another one, which leads then. Everything else happens under the session's mutex:
//! what a thread queues it also writes, and anybody may read.
//!
//! What can't be written at once, since the socket is full or there is no connection, is left to
//! the leader; and if nobody waits, to a thread that is started for it and ends with it.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    thread,
    time::{Duration, Instant},
};

use syncd_proto::Endpoint;
use tokio::io::ReadBuf;

use super::{NoSignals, OnSignal, Parker, Socket};
use crate::{
    error::SessionLost,
    session::{
        Facts, LinkError, is_back,
        protocol::{Event, Protocol},
        transport::Transport,
    },
    start::Again,
};

/// How late a signal may be noticed that comes in the instant between the last look for signals
/// and the sleep.
const LOOK: Duration = Duration::from_millis(500);

/// The same of one who tries to get a connection, which is awake more often.
const LOOK_AWAY: Duration = Duration::from_millis(20);

pub(super) struct Inner {
    pub(super) facts: Arc<Facts>,
    pub(super) endpoint: Endpoint,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) protocol: Protocol,
    pub(super) connection: Option<Connection>,
    /// Has the daemon started again when it is gone.
    pub(super) again: Option<Again>,
    /// Why the connection failed that was to open the session.
    pub(super) failed: Option<LinkError>,
    /// The socket is to be read.
    pub(super) readable: bool,
    /// By what they wait for: a request, or a number drawn for the purpose.
    pub(super) waiters: BTreeMap<u64, Arc<Parker>>,
    pub(super) leader: Option<u64>,
    /// A thread is on its way that sends what is queued.
    pub(super) flushing: bool,
}

pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) socket: Arc<Socket>,
}

/// A wait was given up for a signal.
pub(super) struct Interrupted;

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is so. `until` is asked after each turn, with the time; `end` is
    /// when it is to be asked at the latest.
    pub(super) fn wait<'s, T>(
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
        let mut looked = Instant::now();
        loop {
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
                (interrupted, looked) = (false, Instant::now());
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
            let often = if state.protocol.is_up() { LOOK } else { LOOK_AWAY };
            let look = signals_matter.then(|| looked + often);
            let wake_at = earlier(wake_at, look);
            // Whoever wakes it holds the state. What it was woken for so far, also by its own
            // turn, it has seen.
            parker.reset();
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
    pub(super) fn leave(self: &Arc<Self>, state: &mut State, ticket: u64) {
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
    pub(super) fn send(self: &Arc<Self>, state: &mut State) {
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
    pub(super) fn turn(&self, state: &mut State, now: Instant) {
        let before = state.connection.as_ref().map(|connection| Arc::as_ptr(&connection.socket));
        state.protocol.handle_timeout(now);
        loop {
            if state.failed.is_none() && state.protocol.poll_connect(now) {
                match self.connect(state, now) {
                    Ok(connection) => {
                        state.again.iter_mut().for_each(Again::found);
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

    fn connect(&self, state: &mut State, now: Instant) -> Result<Connection, LinkError> {
        let mut error = match connect(&self.endpoint, state.protocol.poll_timeout()) {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        match is_back(&state.protocol, state.again.as_mut(), now, &mut error) {
            true => connect(&self.endpoint, state.protocol.poll_timeout()),
            false => Err(error),
        }
    }

    /// Nobody has the session any more, and its daemon hasn't heard of that, being gone: the next
    /// one would keep all that it held for as long as this process lives. False: nothing is to
    /// be done about it.
    pub(super) fn say_goodbye_behind(self: &Arc<Self>, goodbye: u64) -> bool {
        let inner = self.clone();
        let say = move || {
            let state = inner.lock();
            let _ = inner.wait(state, goodbye, None, &mut NoSignals, |state, _| {
                state.is_heard_out(goodbye).then_some(())
            });
            inner.finish();
        };
        let outlives = self.lock().protocol.outlives_daemon();
        let thread = thread::Builder::new().name("syncd-goodbye".to_owned());
        outlives && thread.spawn(say).is_ok()
    }

    /// It is over, for whoever still waits.
    pub(super) fn finish(&self) {
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
        let is_open = self.protocol.opened().is_some();
        self.protocol.handle_disconnected(now, error.end(is_open));
        if !is_open {
            self.failed = Some(error);
        }
    }

    /// The daemon has a goodbye.
    pub(super) fn is_heard_out(&mut self, goodbye: u64) -> bool {
        let is_unsent = self.is_unsent();
        self.protocol.is_heard_out(goodbye, is_unsent)
    }

    /// Something queued has not reached the socket.
    pub(super) fn is_unsent(&self) -> bool {
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
