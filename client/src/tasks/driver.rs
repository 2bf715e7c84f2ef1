//! One session, and the futures that wait for its replies. One of them is the leader: when polled,
//! it reads and writes for the session. No wake-up is lost, for these reasons:
//!
//! - The connection only ever sees the waker of a [`LeaderWaker`]: any future may drive the
//!   connection, for example to send, without replacing the leader's waker.
//! - The leader is set before it drives the connection. Data that arrived before is found by that
//!   drive; data that arrives later wakes the leader.
//! - If another future reads the leader's reply, it wakes the leader as any other waiter.
//! - A leader that leaves, with its reply or dropped, wakes one of the waiters. If that waiter is
//!   dropped instead of polled, its own departure wakes another.
//! - A future may be kept without being polled; as leader it would starve the others. So an
//!   [`Attendant`], which is a task and always polled when woken, takes the lead as soon as a
//!   second future waits, or when something couldn't be sent at once. Futures of one task share
//!   its wake-ups and take the lead from each other.

use std::{
    collections::BTreeMap,
    future::Future,
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use syncd_proto::{
    Endpoint,
    socket::{self, Socket},
};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    runtime::Handle,
    time::{Sleep, sleep_until},
};

use super::{leader::LeaderWaker, waiting::Attendant};
use crate::{
    error::SessionLost,
    fork::Owned,
    session::{
        Facts, LinkError, is_back,
        protocol::{Event, Protocol},
        transport::Transport,
    },
    start::Again,
};

pub(super) struct Inner {
    pub(super) facts: Arc<Facts>,
    pub(super) endpoint: Endpoint,
    /// How long the session waits for a new daemon.
    pub(super) patience: Duration,
    pub(super) runtime: Handle,
    pub(super) leader_waker: Arc<LeaderWaker>,
    /// `leader_waker` as a [`Waker`], for the connection.
    pub(super) waker: Waker,
    pub(super) state: Mutex<State>,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>;

pub(super) struct State {
    pub(super) protocol: Protocol,
    pub(super) connection: Option<Connection>,
    /// Starts the daemon again when it is gone.
    pub(super) again: Option<Again>,
    pub(super) connecting: Option<Connecting>,
    /// Why the connection that should open the session failed.
    pub(super) failed: Option<LinkError>,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
    pub(super) leader: Option<u64>,
    /// The leader is being polled now, so it need not be woken.
    pub(super) leading: bool,
    /// The waiters other than the leader, by request id or by an id from `draw_id`.
    pub(super) waiting: BTreeMap<u64, Waker>,
    /// There is an attendant.
    pub(super) attended: bool,
    /// The wakers to wake when the mutex is unlocked.
    pub(super) wake: Vec<Waker>,
    /// Whether to spawn an attendant when the mutex is unlocked.
    pub(super) attend: bool,
}

pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) socket: Owned<Socket>,
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn with<R>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        let wake = mem::take(&mut state.wake);
        let attend = mem::take(&mut state.attend) && !mem::replace(&mut state.attended, true);
        let attendant = attend.then(|| state.protocol.draw_id());
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        if let Some(id) = attendant {
            // The runtime of the session's first task may have shut down.
            let runtime = Handle::try_current().unwrap_or_else(|_| self.runtime.clone());
            runtime.spawn(Attendant { inner: self.clone(), id, over: false });
        }
        result
    }

    /// Leads if no other future does; else registers as a waiter.
    pub(super) fn attend(self: &Arc<Self>, state: &mut State, id: u64, cx: &mut Context<'_>) {
        let leads = state.leader.is_none_or(|leader| leader == id);
        if leads || self.leader_waker.is(cx.waker()) {
            return self.lead(state, id, cx);
        }
        match state.waiting.get_mut(&id) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => drop(state.waiting.insert(id, cx.waker().clone())),
        }
        state.attend = true;
        let timer = state.timer.as_ref().map(|timer| timer.deadline().into_std());
        let is_sooner =
            state.protocol.poll_timeout().is_some_and(|at| timer.is_none_or(|t| at < t));
        if is_sooner || state.protocol.has_transmit() {
            // The leader sends what is queued by the time it is polled, in one write.
            state.wake.extend(self.leader_waker.get());
        }
    }

    /// Becomes the leader, in the place of any other; connects, sends, reads and wakes waiters.
    pub(super) fn lead(self: &Arc<Self>, state: &mut State, id: u64, cx: &mut Context<'_>) {
        if state.leader != Some(id) {
            state.waiting.remove(&id);
            // A timer belongs to the runtime of the leader that set it.
            state.timer = None;
            if let Some(deposed) = state.leader.replace(id)
                && let Some(waker) = self.leader_waker.set(None)
            {
                state.waiting.insert(deposed, waker);
            }
        }
        if !self.leader_waker.is(cx.waker()) {
            self.leader_waker.set(Some(cx.waker().clone()));
        }
        state.leading = true;
        let mut driver = Context::from_waker(&self.waker);
        loop {
            let now = Instant::now();
            if state.failed.is_none() && state.protocol.poll_connect(now) {
                state.connecting = Some(self.connecting());
            }
            while let Some(connecting) = &mut state.connecting
                && let Poll::Ready(connected) = connecting.as_mut().poll(&mut driver)
            {
                let is_back = state.connect(now, connected);
                state.connecting = is_back.then(|| self.connecting());
            }
            self.drive(state, false);
            if state.protocol.lost().is_some() {
                break;
            }
            match state.protocol.poll_timeout() {
                None => {
                    state.timer = None;
                    break;
                }
                Some(at) if at <= Instant::now() => {
                    if state.failed.is_some() {
                        break;
                    }
                }
                Some(at) => {
                    let timer = state.timer.get_or_insert_with(|| Box::pin(sleep_until(at.into())));
                    if timer.deadline() != at.into() {
                        timer.as_mut().reset(at.into());
                    }
                    if timer.as_mut().poll(&mut driver).is_pending() {
                        break;
                    }
                }
            }
        }
        state.leading = false;
    }

    fn connecting(&self) -> Connecting {
        let endpoint = self.endpoint.clone();
        Box::pin(async move { socket::connect(&endpoint).await })
    }

    /// Removes a future that no longer waits. If it led, wakes a waiter to lead.
    pub(super) fn leave(&self, state: &mut State, id: u64) {
        state.waiting.remove(&id);
        if state.leader == Some(id) {
            state.leader = None;
            state.timer = None;
            self.leader_waker.set(None);
        }
        if state.leader.is_none() {
            state.wake.extend(state.waiting.values().next().cloned());
            state.attend |= state.protocol.opened().is_some() && state.is_unsent();
        }
    }

    /// Does everything that can be done without waiting, except connecting; `look` reads the socket
    /// even if the reactor hasn't reported it readable.
    pub(super) fn drive(&self, state: &mut State, look: bool) {
        let now = Instant::now();
        state.protocol.handle_timeout(now);
        if let Err(error) = state.exchange(&self.waker, look) {
            state.disconnect(now, error);
            if !state.leading {
                // Only the leader connects.
                state.wake.extend(self.leader_waker.get());
            }
        }
        while let Some(event) = state.protocol.poll_event() {
            match event {
                Event::Reply(id) => match state.waiting.remove(&id) {
                    Some(waker) => state.wake.push(waker),
                    // The socket was read empty here, so it won't wake the leader.
                    None if state.leader == Some(id) && !state.leading => {
                        state.wake.extend(self.leader_waker.get());
                    }
                    None => {}
                },
                Event::Room | Event::Up | Event::Lost => {
                    state.wake.extend(state.waiting.values().cloned());
                    state.wake.extend(self.leader_waker.get());
                }
            }
        }
        if state.protocol.lost().is_some() {
            (state.connection, state.connecting, state.timer) = (None, None, None);
            self.facts.note(&state.protocol);
        } else if self.facts.id() == 0 {
            self.facts.note(&state.protocol);
        }
        state.attend |= !state.leading
            && state.leader.is_none()
            && state.protocol.opened().is_some()
            && state.is_unsent();
    }

    /// Ends the session and all waits.
    pub(super) fn finish(self: &Arc<Self>) {
        self.with(|state| {
            state.protocol.handle_abort(SessionLost::closed());
            self.drive(state, false);
        });
    }
}

impl State {
    /// Handles the result of a connection attempt. True if it failed, but a daemon listens now: the
    /// caller should connect at once.
    fn connect(&mut self, now: Instant, connected: io::Result<Socket>) -> bool {
        let connected = connected.map_err(LinkError::from).and_then(|socket| {
            Ok(Connection { transport: Transport::new()?, socket: Owned::new(socket) })
        });
        match connected {
            Ok(connection) => {
                self.again.iter_mut().for_each(Again::found);
                self.connection = Some(connection);
                self.protocol.handle_connected();
                false
            }
            Err(mut error) => {
                let is_back = is_back(&self.protocol, self.again.as_mut(), now, &mut error);
                if !is_back {
                    self.disconnect(now, error);
                }
                is_back
            }
        }
    }

    fn exchange(&mut self, waker: &Waker, look: bool) -> Result<(), LinkError> {
        let Some(Connection { transport, socket }) = &mut self.connection else { return Ok(()) };
        let socket = std::cell::RefCell::new(&mut **socket);
        let mut look = look;
        let read = |buf: &mut ReadBuf<'_>| {
            let mut socket = socket.borrow_mut();
            if mem::take(&mut look) {
                match socket.try_read(buf) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return Poll::Ready(read),
                }
            }
            Pin::new(&mut **socket).poll_read(&mut Context::from_waker(waker), buf)
        };
        let write = |bytes: &[u8]| {
            let mut socket = socket.borrow_mut();
            Pin::new(&mut **socket).poll_write(&mut Context::from_waker(waker), bytes)
        };
        transport.exchange(&mut self.protocol, true, read, write)
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
