//! What others have for a session until its stream fetches it, bounded in bytes; and the session's
//! entry in the registry.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use syncd_core::{Message, SessionId};
use tracing::info;

use crate::{
    clients::ClientUse, connection::Connection, namespace::Namespace, panic, registry::User,
};

/// What each session may have unsent whatever its user has: so a user's total is used up by those
/// sessions that don't read, and not at the cost of one that does.
pub(crate) const FLOOR: usize = 64 << 10;
/// So many messages at most are moved to a stream at once; they no longer count.
const BATCH: usize = 256;

/// A session as the daemon knows it, from its opening to its end, connected or not.
pub(crate) struct Session {
    pub id: SessionId,
    pub namespace: Arc<Namespace>,
    pub client: ClientUse,
    /// What its process shows to resume it.
    pub secret: [u8; 16],
    pub label: Arc<str>,
    pub outbox: Outbox,
    /// How many objects it is attached to, as its namespace counts it.
    pub references: AtomicUsize,
    /// The highest number that its process gave an attempt to connect.
    attempt: AtomicU64,
    connection: Mutex<Weak<Connection>>,
}

impl Session {
    pub fn new(
        id: SessionId,
        namespace: Arc<Namespace>,
        client: ClientUse,
        user: Arc<User>,
        secret: [u8; 16],
        label: Arc<str>,
        limit: usize,
    ) -> Self {
        Self {
            id,
            namespace,
            client,
            secret,
            label,
            outbox: Outbox::new(user, limit),
            references: AtomicUsize::new(0),
            attempt: AtomicU64::new(0),
            connection: Mutex::default(),
        }
    }

    /// Attaches a stream in place of the one before, which is told. Returns its number.
    pub fn attach(&self, connection: &Arc<Connection>) -> u64 {
        *panic::lock(&self.connection) = Arc::downgrade(connection);
        self.outbox.attach()
    }

    /// Whether no later attempt to connect has come before this one. To be called within the
    /// namespace's lock, in which streams change.
    pub fn is_latest(&self, attempt: u64) -> bool {
        self.attempt.fetch_max(attempt, Relaxed) <= attempt
    }

    /// The connection that its stream came by.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        panic::lock(&self.connection).upgrade()
    }

    /// Has its stream and its connection end, the daemon being about to leave. False: it has none.
    pub fn let_go(&self) -> bool {
        let connection = self.connection();
        self.outbox.wake();
        if let Some(connection) = &connection {
            connection.drain();
        }
        connection.is_some()
    }

    /// `cause`: `None` after a Goodbye.
    pub fn log_end(&self, cause: Option<&str>) {
        info!(
            namespace = %self.namespace.address,
            session = self.id.0,
            pid = self.client.peer.pid,
            command = &*self.label,
            "session ended: {}",
            cause.unwrap_or("goodbye"),
        );
    }
}

/// Messages for a session's stream, in order. While no stream is attached nothing is kept: the
/// core has it all for a resume.
///
/// Messages come and streams change under the namespace's lock, so whoever holds that sees the
/// two atomics as they are; a stream that doesn't, looks again in [`park`](Self::park).
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// The number of the last stream that was attached.
    stream: AtomicU64,
    /// There is something that the stream hasn't seen.
    news: AtomicBool,
    /// Bytes that may wait here.
    limit: usize,
    user: Arc<User>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Message, usize)>,
    bytes: usize,
    waker: Option<Waker>,
    attached: bool,
    ready: bool,
    end: Option<End>,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its last message says how.
    Told,
    /// Its namespace failed, and the core can't tell it anything any more.
    Failed,
}

/// What became of a pushed message.
pub(crate) enum Pushed {
    Kept,
    /// There is no stream: the core has it for the next one.
    Absent,
    Wake(Waker),
    /// There is no room for it, and it is gone.
    Full,
}

/// How a stream stands to its outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Attached,
    /// The request that was under way is over.
    Ready,
    /// Another stream has taken over.
    Superseded,
    /// The session is over, and what is queued is its last.
    Ended(End),
}

impl Outbox {
    fn new(user: Arc<User>, limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            stream: AtomicU64::new(0),
            news: AtomicBool::new(false),
            limit,
            user,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        panic::lock(&self.state)
    }

    fn attach(&self) -> u64 {
        let (stream, waker) = {
            let mut state = self.lock();
            self.clear(&mut state);
            state.attached = true;
            (self.stream.fetch_add(1, Relaxed) + 1, state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        stream
    }

    /// Detaches the stream; false if it was no longer the one.
    pub fn detach(&self, stream: u64) -> bool {
        let mut state = self.lock();
        let current = state.attached && self.is_current(stream);
        if current {
            state.attached = false;
            state.waker = None;
            self.clear(&mut state);
        }
        current
    }

    fn clear(&self, state: &mut State) {
        self.user.unsent.give_back(mem::take(&mut state.bytes));
        state.queue = VecDeque::new();
    }

    /// No other stream has taken over.
    pub fn is_current(&self, stream: u64) -> bool {
        self.stream.load(Relaxed) == stream
    }

    pub fn push(&self, message: Message) -> Pushed {
        let mut state = self.lock();
        if !state.attached {
            return Pushed::Absent;
        }
        let size = size_of_message(&message);
        let bytes = state.bytes + size;
        if bytes > self.limit || !self.user.unsent.take_unless_full(size, bytes <= FLOOR) {
            return Pushed::Full;
        }
        state.bytes = bytes;
        state.queue.push_back((message, size));
        self.news.store(true, Relaxed);
        state.waker.take().map_or(Pushed::Kept, Pushed::Wake)
    }

    /// Moves what has come to the end of the stream's `queue`, or the first part of it.
    pub fn collect(&self, stream: u64, queue: &mut VecDeque<Message>) -> Standing {
        if !self.is_current(stream) {
            return Standing::Superseded;
        }
        if !self.news.load(Relaxed) {
            return Standing::Attached;
        }
        let mut state = self.lock();
        let count = state.queue.len().min(BATCH);
        let mut moved = 0;
        queue.extend(state.queue.drain(..count).map(|(message, size)| {
            moved += size;
            message
        }));
        state.bytes -= moved;
        self.user.unsent.give_back(moved);
        if state.queue.is_empty() {
            state.queue = VecDeque::new();
        }
        self.news.store(state.end.is_some() || !state.queue.is_empty(), Relaxed);
        let end = state.end;
        match end {
            Some(end) if queue.is_empty() => Standing::Ended(end),
            _ if mem::take(&mut state.ready) => Standing::Ready,
            _ => Standing::Attached,
        }
    }

    /// What is pushed comes next: nothing waits before it.
    pub fn is_empty(&self) -> bool {
        !self.news.load(Relaxed) || self.lock().queue.is_empty()
    }

    /// Has `waker` woken when there is news. False if there is some already.
    pub fn park(&self, stream: u64, waker: &Waker) -> bool {
        let mut state = self.lock();
        if self.news.load(Relaxed) || !self.is_current(stream) {
            return false;
        }
        if !state.waker.as_ref().is_some_and(|parked| parked.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        true
    }

    /// The session's request that was under way is over.
    pub fn ready(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.ready = true;
        self.news.store(true, Relaxed);
        state.waker.take()
    }

    /// The session is over.
    pub fn end(&self, end: End) -> Option<Waker> {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        self.news.store(true, Relaxed);
        state.waker.take()
    }

    /// Its last message has been pushed.
    pub fn is_over(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Wakes the stream's task, to see that the daemon leaves.
    pub fn wake(&self) {
        let waker = {
            let mut state = self.lock();
            self.news.store(true, Relaxed);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Throws away what waits: its reader is to be cut.
    pub fn discard(&self) {
        self.clear(&mut self.lock());
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.user.unsent.give_back(state.bytes);
    }
}

/// What a message keeps while it waits, in bytes.
fn size_of_message(message: &Message) -> usize {
    size_of::<(Message, usize)>() - size_of::<Message>() + message.weight()
}
