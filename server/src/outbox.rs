//! What others have for a session until its stream fetches it, and the session's entry in the
//! registry. Never here: what a session has said, or the stream itself.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use syncd_core::{Message, SessionId};
use tracing::info;

use crate::{connection::Connection, namespace::Namespace, peer::PeerUse};

/// The most messages that wait for a stream: a reader further behind is dropped, not buffered.
/// Above what a session's waiting requests can be answered with at once.
pub(crate) const MAX_UNSENT: usize = 262_144;

/// A session as the daemon knows it, from its opening to its end, connected or not.
pub(crate) struct Session {
    pub id: SessionId,
    pub namespace: Arc<Namespace>,
    pub peer: PeerUse,
    /// What its process shows to resume it.
    pub secret: [u8; 16],
    pub label: Arc<str>,
    pub outbox: Outbox,
}

impl Session {
    /// `cause`: `None` after a Goodbye.
    pub fn log_end(&self, cause: Option<&str>) {
        info!(
            namespace = %self.namespace.address,
            session = self.id.0,
            pid = self.peer.pid,
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
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    /// The number of the last stream that was attached.
    stream: AtomicU64,
    /// There is something that the stream hasn't seen.
    news: AtomicBool,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Message>,
    waker: Option<Waker>,
    attached: bool,
    ended: bool,
    connection: Weak<Connection>,
}

/// What became of a pushed message.
pub(crate) enum Pushed {
    Kept,
    Wake(Waker),
    Full,
}

/// How a stream stands to its outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Attached,
    /// Another stream has taken over.
    Superseded,
    /// The session is over, and what is queued is its last.
    Ended,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics here")
    }

    /// Attaches a stream in place of the one before, which is told. Returns its number.
    pub fn attach(&self, connection: &Arc<Connection>) -> u64 {
        let (stream, waker) = {
            let mut state = self.lock();
            state.queue.clear();
            state.attached = true;
            state.connection = Arc::downgrade(connection);
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
            state.queue = VecDeque::new();
        }
        current
    }

    /// No other stream has taken over.
    pub fn is_current(&self, stream: u64) -> bool {
        self.stream.load(Relaxed) == stream
    }

    pub fn push(&self, message: Message) -> Pushed {
        let mut state = self.lock();
        if !state.attached {
            return Pushed::Kept;
        }
        if state.queue.len() >= MAX_UNSENT {
            return Pushed::Full;
        }
        state.queue.push_back(message);
        self.news.store(true, Relaxed);
        state.waker.take().map_or(Pushed::Kept, Pushed::Wake)
    }

    /// Moves what has come to the end of the stream's `queue`.
    pub fn collect(&self, stream: u64, queue: &mut VecDeque<Message>) -> Standing {
        if !self.is_current(stream) {
            return Standing::Superseded;
        }
        if !self.news.load(Relaxed) {
            return Standing::Attached;
        }
        let mut state = self.lock();
        self.news.store(state.ended, Relaxed);
        if queue.is_empty() {
            mem::swap(queue, &mut state.queue);
        } else {
            queue.append(&mut state.queue);
        }
        if state.ended && queue.is_empty() { Standing::Ended } else { Standing::Attached }
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

    /// The session is over.
    pub fn end(&self) {
        self.lock().ended = true;
        self.wake();
    }

    /// Has the stream look around.
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

    /// The reader is too slow: what it has missed is thrown away and its connection cut, since
    /// a stream that isn't read can't be ended otherwise.
    pub fn overrun(&self) {
        let connection = {
            let mut state = self.lock();
            state.queue = VecDeque::new();
            mem::take(&mut state.connection)
        };
        if let Some(connection) = connection.upgrade() {
            connection.cut();
        }
    }
}
