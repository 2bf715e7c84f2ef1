//! The shell for threads. One of the waiting threads is the leader: it sleeps at the socket and
//! reads for all; the others sleep until it wakes them. A leader that has its reply wakes another
//! waiter to lead. Everything else happens under the session's mutex: a thread writes what it
//! queues, and any thread may read.
//!
//! What can't be written at once, because the socket is full or there is no connection, is left to
//! the leader, or if no thread waits to a thread started for that.

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

/// How late a signal may be noticed that arrives between the check for signals and poll(2).
const LOOK: Duration = Duration::from_millis(500);

/// The same while there is no connection, when the thread wakes often in any case.
const LOOK_AWAY: Duration = Duration::from_millis(20);

pub(super) struct Inner {
    pub(super) facts: Arc<Facts>,
    pub(super) endpoint: Endpoint,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    pub(super) protocol: Protocol,
    pub(super) connection: Option<Connection>,
    /// Starts the daemon again when it is gone.
    pub(super) again: Option<Again>,
    /// Why the connection that should open the session failed.
    pub(super) failed: Option<LinkError>,
    /// The socket may be readable.
    pub(super) readable: bool,
    /// The waiting threads, by request id or by an id from `draw_id`.
    pub(super) waiters: BTreeMap<u64, Arc<Parker>>,
    pub(super) leader: Option<u64>,
    /// A thread was started that sends what is queued.
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

    /// Waits until `until` returns a value. It is called after each turn, with the time, and at
    /// `end` at the latest.
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
                // Another thread leads while the handler runs; the handler may wait here, too.
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
            // Wakers hold the state's mutex, and this thread has seen everything up to here.
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

    /// Removes a waiter. If it led, wakes another to lead.
    pub(super) fn leave(self: &Arc<Self>, state: &mut State, ticket: u64) {
        state.waiters.remove(&ticket);
        if state.leader == Some(ticket) {
            state.leader = None;
        }
        if state.leader.is_none() {
            match state.waiters.values().next() {
                Some(next) => next.wake(),
                None => self.flush_in_background(state),
            }
        }
    }

    /// Sends what is queued, or starts a thread for it if no waiter will.
    pub(super) fn send(self: &Arc<Self>, state: &mut State) {
        self.turn(state, Instant::now());
        if state.leader.is_none() && state.waiters.is_empty() {
            self.flush_in_background(state);
        }
    }

    /// Starts a thread that sends what is queued, if there is anything.
    fn flush_in_background(self: &Arc<Self>, state: &mut State) {
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
        // If the thread can't be started, the next call sends it.
        let thread = thread::Builder::new().name("syncd-flush".to_owned());
        state.flushing = thread.spawn(flush).is_ok();
    }

    /// Does everything that can be done without waiting, and wakes the waiters concerned.
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
            // The leader sleeps at the former socket, or without waiting for room.
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

    /// Starts a thread that delivers the goodbye of a dropped session to the next daemon, which
    /// otherwise would keep the session's holds for as long as this process lives. Returns false if
    /// the session doesn't outlive its daemon, or the thread can't be started.
    pub(super) fn say_goodbye_in_background(self: &Arc<Self>, goodbye: u64) -> bool {
        let inner = self.clone();
        let say = move || {
            let state = inner.lock();
            let _ = inner.wait(state, goodbye, None, &mut NoSignals, |state, _| {
                state.is_delivered(goodbye).then_some(())
            });
            inner.finish();
        };
        let outlives = self.lock().protocol.outlives_daemon();
        let thread = thread::Builder::new().name("syncd-goodbye".to_owned());
        outlives && thread.spawn(say).is_ok()
    }

    /// Ends the session and all waits.
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
        // A short read emptied the socket: another read would find nothing.
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

    /// Whether the goodbye is delivered.
    pub(super) fn is_delivered(&mut self, goodbye: u64) -> bool {
        let is_unsent = self.is_unsent();
        self.protocol.is_delivered(goodbye, is_unsent)
    }

    /// Whether a queued request hasn't reached the socket.
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
