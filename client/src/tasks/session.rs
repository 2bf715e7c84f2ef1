//! One session, and the futures that wait at it. Who waits alone leads: polled, it reads and
//! writes for the session. No wake-up is lost, for these reasons:
//!
//! - The connection only ever sees the waker of a [`LeaderWaker`]: anybody may drive it, say to
//!   send, without taking the leader's wake-ups away.
//! - A leader is set before it drives the connection. What became readable before is found by
//!   that; what does after, wakes it.
//! - Somebody else who reads the leader's own reply wakes it as any other.
//! - Who stops leading, having its reply or having been dropped, wakes one of those who wait. If
//!   that one is dropped instead of being polled, its own departure wakes another.
//! - A future may be kept and not polled. If it led, others would starve. So an [`Attendant`]
//!   takes the lead as soon as a second one waits, or when something couldn't be sent at once:
//!   it is a task, and always polled when it is woken. Futures of one task share its wake-ups,
//!   and simply take the lead from each other.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    io,
    mem::{self, ManuallyDrop},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use syncd_proto::{
    Endpoint,
    socket::{self, Socket},
    v1::{Open, client_message::Request, server_message::Message},
};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    runtime::Handle,
    time::{Sleep, sleep_until, timeout, timeout_at},
};

use super::{FLUSH, leader::LeaderWaker};
use crate::{
    error::SessionLost,
    fork::Owned,
    session::{
        CallError, Facts, LinkError, OpenError, answer,
        protocol::{Event, Protocol, Undo},
        transport::Transport,
    },
};

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
    runtime: Handle,
    leader_waker: Arc<LeaderWaker>,
    /// The same, as the connection sees it.
    waker: Waker,
    state: Mutex<State>,
}

struct State {
    protocol: Protocol,
    connection: Option<Connection>,
    connecting: Option<Pin<Box<dyn Future<Output = io::Result<Socket>> + Send>>>,
    /// Why the connection failed that was to open the session.
    failed: Option<LinkError>,
    timer: Option<Pin<Box<Sleep>>>,
    leader: Option<u64>,
    /// The leader is being polled at this moment: it need not be woken.
    leading: bool,
    /// Those who wait and don't lead, by request or by a number drawn for the purpose.
    waiting: BTreeMap<u64, Waker>,
    /// There is an attendant.
    attended: bool,
    /// What to do when the mutex is free again.
    wake: Vec<Waker>,
    attend: bool,
}

struct Connection {
    transport: Transport,
    socket: Owned<Socket>,
}

impl Session {
    pub(super) async fn open(endpoint: &Endpoint, open: Open) -> Result<Self, OpenError> {
        let facts = Arc::new(Facts::new());
        let leader_waker = LeaderWaker::new();
        let state = State {
            protocol: Protocol::new(Instant::now(), open),
            connection: None,
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
            endpoint: endpoint.clone(),
            runtime: Handle::current(),
            waker: leader_waker.clone().into(),
            leader_waker,
            state: Mutex::new(state),
        });
        let session = Self { facts, inner: ManuallyDrop::new(inner) };
        let opened = session.wait(|state| {
            if let Some(error) = state.failed.take() {
                return Some(Err(OpenError::Link(error)));
            }
            if let Some(error) = state.protocol.refused() {
                return Some(Err(OpenError::Refused(Box::new(error.clone()))));
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

    /// Sends a request when first polled, and waits for its answer. `sent` is called when the
    /// protocol has it. Dropping the future withdraws it.
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

    /// As [`post`](Self::post), but waits first while too much is queued.
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

    /// Sends a request to which no reply is wanted, before it returns if the socket has room.
    pub(crate) fn post(&self, request: Request) {
        self.inner.with(|state| {
            state.protocol.handle_post(request);
            self.inner.drive(state, false);
        });
    }

    /// Reads what came, whether or not the reactor has noticed, and looks.
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

    /// Waits until all that was queued is in the socket, or the session is lost.
    pub(crate) async fn flush(&self) {
        if self.facts.is_ours() {
            self.wait(|state| (!state.is_unsent()).then_some(())).await;
        }
    }

    /// Says goodbye, and waits a while for the daemon to have heard it.
    pub(crate) async fn close(&self) {
        if self.facts.is_usable() {
            let id = self.inner.lock().protocol.handle_close();
            let mut waiting = Waiting { inner: &self.inner, id, withdraw: false };
            let heard = waiting.until(|state| state.protocol.poll_reply(id));
            let _ = timeout(GOODBYE, heard).await;
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
        // SAFETY: it is used no more.
        let inner = unsafe { ManuallyDrop::take(&mut self.inner) };
        let is_unsent = inner.with(|state| {
            if state.protocol.opened().is_some() && state.protocol.lost().is_none() {
                state.protocol.handle_close();
                inner.drive(state, false);
            }
            state.protocol.opened().is_some() && state.is_unsent()
        });
        if !is_unsent {
            return inner.finish();
        }
        let runtime = Handle::try_current().unwrap_or_else(|_| inner.runtime.clone());
        runtime.spawn(async move {
            let id = inner.lock().protocol.draw_id();
            let mut waiting = Waiting { inner: &inner, id, withdraw: false };
            let sent = waiting.until(|state| (!state.is_unsent()).then_some(()));
            let _ = timeout(FLUSH, sent).await;
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

/// One who waits. When it goes, it waits no more; and withdraws its request, if that is still to
/// be answered.
struct Waiting<'a> {
    inner: &'a Arc<Inner>,
    id: u64,
    withdraw: bool,
}

impl Waiting<'_> {
    async fn until<T>(&mut self, mut until: impl FnMut(&mut State) -> Option<T> + Send) -> T {
        let (inner, id) = (self.inner, self.id);
        poll_fn(move |cx| {
            if !inner.facts.is_ours() {
                // In a forked child, of a runtime that is no more: nobody polls it in earnest.
                return Poll::Pending;
            }
            inner.with(|state| {
                if let Some(done) = until(state) {
                    return Poll::Ready(done);
                }
                inner.attend(state, id, cx);
                until(state).map_or(Poll::Pending, Poll::Ready)
            })
        })
        .await
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.inner.facts.is_ours() {
            self.inner.with(|state| {
                if self.withdraw {
                    state.protocol.handle_withdraw(self.id);
                    self.inner.drive(state, false);
                }
                self.inner.leave(state, self.id);
            });
        }
    }
}

/// Leads as long as anybody waits, or anything is to be sent.
struct Attendant {
    inner: Arc<Inner>,
    id: u64,
    over: bool,
}

impl Future for Attendant {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { inner, id, over } = &mut *self;
        inner.with(|state| {
            inner.lead(state, *id, cx);
            if !state.waiting.is_empty() || state.is_unsent() {
                return Poll::Pending;
            }
            inner.leave(state, *id);
            // Under the mutex: who comes to wait from now on finds that it is gone.
            state.attended = false;
            *over = true;
            Poll::Ready(())
        })
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        if !self.over && self.inner.facts.is_ours() {
            self.inner.with(|state| {
                state.attended = false;
                self.inner.leave(state, self.id);
                // Its runtime ends: another one would end with it.
                state.attend = false;
            });
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        let wake = mem::take(&mut state.wake);
        let attend = mem::take(&mut state.attend) && !mem::replace(&mut state.attended, true);
        let attendant = attend.then(|| state.protocol.draw_id());
        drop(state);
        wake.into_iter().for_each(Waker::wake);
        if let Some(id) = attendant {
            // The runtime of the session's first task may be gone by now.
            let runtime = Handle::try_current().unwrap_or_else(|_| self.runtime.clone());
            runtime.spawn(Attendant { inner: self.clone(), id, over: false });
        }
        result
    }

    /// Leads, if nobody else does, or else waits.
    fn attend(self: &Arc<Self>, state: &mut State, id: u64, cx: &mut Context<'_>) {
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
            // The leader sends what is queued, together with what else will be by then.
            state.wake.extend(self.leader_waker.get());
        }
    }

    /// Takes the lead from whoever has it; connects, sends, reads and hands out.
    fn lead(self: &Arc<Self>, state: &mut State, id: u64, cx: &mut Context<'_>) {
        if state.leader != Some(id) {
            state.waiting.remove(&id);
            // A timer is of the runtime of the one who set it.
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
                let endpoint = self.endpoint.clone();
                let connecting = async move { socket::connect(&endpoint).await };
                state.connecting = Some(Box::pin(connecting));
            }
            if let Some(connecting) = &mut state.connecting
                && let Poll::Ready(connected) = connecting.as_mut().poll(&mut driver)
            {
                state.connecting = None;
                state.connect(now, connected);
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

    /// Gives up waiting, or having waited.
    fn leave(&self, state: &mut State, id: u64) {
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

    /// Does all that can be done without waiting, but for a new connection.
    fn drive(&self, state: &mut State, look: bool) {
        let now = Instant::now();
        state.protocol.handle_timeout(now);
        if let Err(error) = state.exchange(&self.waker, look) {
            state.disconnect(now, error);
            if !state.leading {
                // The leader alone connects.
                state.wake.extend(self.leader_waker.get());
            }
        }
        while let Some(event) = state.protocol.poll_event() {
            match event {
                Event::Reply(id) => match state.waiting.remove(&id) {
                    Some(waker) => state.wake.push(waker),
                    // Whoever reads this has emptied the socket, which will wake nobody.
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

    /// It is over, for whoever still waits.
    fn finish(self: &Arc<Self>) {
        self.with(|state| {
            state.protocol.handle_abort(SessionLost::closed());
            self.drive(state, false);
        });
    }
}

impl State {
    fn connect(&mut self, now: Instant, connected: io::Result<Socket>) {
        let connected = connected.map_err(LinkError::from).and_then(|socket| {
            Ok(Connection { transport: Transport::new()?, socket: Owned::new(socket) })
        });
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.protocol.handle_connected();
            }
            Err(error) => self.disconnect(now, error),
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
