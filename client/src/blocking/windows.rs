//! How a thread waits on Windows, where a named pipe can't be polled: the session's socket has a
//! runtime of its own, which the leader runs while it waits.

use std::{
    cell::RefCell,
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire, Ordering::Release},
    },
    task::{Context, Poll},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use syncd_proto::{Endpoint, socket};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    runtime::{Builder, Runtime},
    sync::Notify,
    task::yield_now,
    time::{sleep, sleep_until, timeout_at},
};

/// How long connecting may take if there is no other limit.
const CONNECT: Duration = Duration::from_secs(5);

/// How often the leader checks for room in a full socket.
const FULL: Duration = Duration::from_millis(1);

/// A session's socket.
pub(super) struct Socket {
    runtime: Runtime,
    pipe: Mutex<Pipe>,
}

struct Pipe {
    stream: socket::Socket,
    /// Bytes that were read while waiting.
    read: Vec<u8>,
    /// The end of the stream, or its error.
    end: Option<io::Result<()>>,
}

impl Socket {
    pub(super) fn connect(endpoint: &Endpoint, end: Option<Instant>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let end = end.unwrap_or_else(|| Instant::now() + CONNECT);
        let connected = async { timeout_at(end.into(), socket::connect(endpoint)).await };
        let stream = runtime.block_on(connected).map_err(|_| io::ErrorKind::TimedOut)??;
        let pipe = Pipe { stream, read: Vec::new(), end: None };
        Ok(Self { runtime, pipe: Mutex::new(pipe) })
    }

    pub(super) fn read(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.runtime.block_on(async {
            // Lets the runtime collect completed I/O.
            yield_now().await;
            std::future::poll_fn(|cx| {
                let mut pipe = self.lock();
                let _ = pipe.fill(cx);
                Poll::Ready(pipe.take(buf))
            })
            .await
        })
    }

    pub(super) fn write(&self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.runtime.block_on(async {
            yield_now().await;
            std::future::poll_fn(|cx| {
                Poll::Ready(Pin::new(&mut self.lock().stream).poll_write(cx, bytes))
            })
            .await
        })
    }

    /// Named pipes can't be duplicated for [`wait_for_end`].
    pub(super) fn duplicate(&self) -> Option<Infallible> {
        None
    }

    /// Waits until something was read; if the socket is `full`, only for [`FULL`].
    async fn readable(&self, full: bool) -> bool {
        let read = std::future::poll_fn(|cx| self.lock().fill(cx));
        if !full {
            read.await;
            return true;
        }
        tokio::select! {
            () = read => true,
            () = sleep(FULL) => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pipe {
    /// Ready when [`take`](Self::take) has bytes or the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.read.is_empty() || self.end.is_some() {
            return Poll::Ready(());
        }
        let mut bytes = [0; 1 << 14];
        let mut buf = ReadBuf::new(&mut bytes);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                self.read.extend_from_slice(buf.filled());
            }
            Poll::Ready(end) => self.end = Some(end),
        }
        Poll::Ready(())
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return self.end.take().map_or(Poll::Pending, Poll::Ready);
        }
        let length = buf.remaining().min(self.read.len());
        buf.put_slice(&self.read[..length]);
        self.read.drain(..length);
        Poll::Ready(Ok(()))
    }
}

/// Never called: [`Socket::duplicate`] returns None.
pub(super) fn wait_for_end(socket: &Infallible, _: Duration) {
    match *socket {}
}

/// Sleeps. Windows has no signals.
pub(super) fn pause(limit: Duration) -> bool {
    thread::sleep(limit);
    false
}

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const WOKEN: u8 = 2;

/// How one thread sleeps and is woken. Wake-ups may be spurious.
pub(super) struct Parker {
    state: AtomicU8,
    thread: Thread,
    notify: Notify,
}

/// What ended a sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slept {
    /// The socket is readable, or has ended.
    pub(super) readable: bool,
    /// A signal handler has run: never on Windows.
    pub(super) interrupted: bool,
}

thread_local! {
    static PARKER: RefCell<Option<Arc<Parker>>> = const { RefCell::new(None) };
}

impl Parker {
    pub(super) fn of_this_thread() -> Arc<Self> {
        PARKER.with_borrow_mut(|parker| {
            let new = || {
                let (state, thread) = (AtomicU8::new(AWAKE), thread::current());
                Arc::new(Self { state, thread, notify: Notify::new() })
            };
            parker.get_or_insert_with(new).clone()
        })
    }

    /// Forgets earlier wake-ups: a wake-up after this ends the next sleep.
    pub(super) fn reset(&self) {
        self.state.store(AWAKE, Release);
    }

    pub(super) fn wake(&self) {
        if self.state.swap(WOKEN, AcqRel) == ASLEEP {
            self.thread.unpark();
            self.notify.notify_one();
        }
    }

    /// Sleeps until woken, or `end`; with a socket, also until it is readable, or for [`FULL`] if
    /// the flag says that it is full.
    pub(super) fn park(&self, socket: Option<(&Socket, bool)>, end: Option<Instant>) -> Slept {
        if self.state.compare_exchange(AWAKE, ASLEEP, AcqRel, Acquire).is_err() {
            return Slept::default();
        }
        let readable = match (socket, end) {
            (None, None) => {
                thread::park();
                false
            }
            (None, Some(end)) => {
                thread::park_timeout(end.saturating_duration_since(Instant::now()));
                false
            }
            (Some((socket, full)), end) => socket.runtime.block_on(async {
                let late = async {
                    match end {
                        Some(end) => sleep_until(end.into()).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    readable = socket.readable(full) => readable,
                    () = self.notify.notified() => false,
                    () = late => false,
                }
            }),
        };
        self.state.store(AWAKE, Release);
        Slept { readable, interrupted: false }
    }
}
