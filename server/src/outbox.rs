//! The queue of messages from other tasks for a session's stream, bounded in bytes; and the
//! session's entry in the registry.

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

/// The bytes that each session may have unsent even if its user's quota is used up, so that
/// sessions that don't read can't push out one that does.
pub(crate) const FLOOR: usize = 64 << 10;
/// The most messages that are moved to a stream at once; there they no longer count in the quota.
const BATCH: usize = 256;

/// A session as the daemon knows it, from its opening to its end, connected or not.
pub(crate) struct Session {
    pub id: SessionId,
    pub namespace: Arc<Namespace>,
    pub client: ClientUse,
    /// The client must show it to resume the session.
    pub secret: [u8; 16],
    pub label: Arc<str>,
    pub outbox: Outbox,
    /// How many references the namespace counts for it.
    pub references: AtomicUsize,
    /// The highest number of the client's attempts to connect.
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

    /// Attaches a stream, which supersedes the one before. Returns its number.
    pub fn attach(&self, connection: &Arc<Connection>) -> u64 {
        *panic::lock(&self.connection) = Arc::downgrade(connection);
        self.outbox.attach()
    }

    /// Whether no later attempt to connect came before this one. Call it under the namespace's lock,
    /// which guards changes of the stream.
    pub fn is_latest(&self, attempt: u64) -> bool {
        self.attempt.fetch_max(attempt, Relaxed) <= attempt
    }

    /// The connection of its stream.
    pub fn connection(&self) -> Option<Arc<Connection>> {
        panic::lock(&self.connection).upgrade()
    }

    /// Ends its stream and its connection, because the daemon exits. False if it has none.
    pub fn let_go(&self) -> bool {
        let connection = self.connection();
        self.outbox.wake();
        if let Some(connection) = &connection {
            connection.drain();
        }
        connection.is_some()
    }

    /// Logs its end; `cause` is `None` after a Goodbye.
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

/// Messages for a session's stream, in order. While no stream is attached none are kept: the core
/// keeps them for a resume.
///
/// Messages are pushed and streams change under the namespace's lock, so its holder reads the two
/// atomics exactly; a stream, which doesn't hold it, checks them again in [`park`](Self::park).
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// The number of the last stream that was attached.
    stream: AtomicU64,
    /// Something has changed since the stream last collected.
    news: AtomicBool,
    /// The most bytes in the queue.
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
    /// Its namespace failed: there is no last message.
    Failed,
}

/// The outcome of a push.
pub(crate) enum Pushed {
    Kept,
    /// There is no stream: the core keeps the message for the next one.
    Absent,
    Wake(Waker),
    /// There is no room: the message is dropped.
    Full,
}

/// The state of a stream, as its outbox sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Attached,
    /// The pending request is finished.
    Ready,
    /// Another stream has taken over.
    Superseded,
    /// The session has ended, and the queue has its last messages.
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

    /// Detaches a stream; false if it was no longer attached.
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

    /// Whether no other stream has taken over.
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

    /// Moves new messages, up to [`BATCH`], to the end of the stream's `queue`.
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

    /// Whether no message waits: what is pushed is collected next.
    pub fn is_empty(&self) -> bool {
        !self.news.load(Relaxed) || self.lock().queue.is_empty()
    }

    /// Registers `waker` for the next change. False if there already is one.
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

    /// The session's pending request is finished.
    pub fn ready(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.ready = true;
        self.news.store(true, Relaxed);
        state.waker.take()
    }

    /// The session has ended.
    pub fn end(&self, end: End) -> Option<Waker> {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        self.news.store(true, Relaxed);
        state.waker.take()
    }

    /// Whether the session's last message was pushed.
    pub fn is_over(&self) -> bool {
        self.lock().end.is_some()
    }

    /// Wakes the stream's task, so that it sees that the daemon exits.
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

    /// Drops all waiting messages, before the session is disconnected.
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

/// The memory that a waiting message takes, in bytes.
fn size_of_message(message: &Message) -> usize {
    size_of::<(Message, usize)>() - size_of::<Message>() + message.weight()
}
