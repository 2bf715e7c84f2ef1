//! A link's socket, as its HTTP/2 connection sees it: watched by a runtime's reactor, or read by
//! the threads of a blocking client. Never here: frames, or who waits.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use syncd_proto::socket::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[cfg(unix)]
use super::tap::Tap;

/// Shared by the connection, which reads and writes, and the link.
#[derive(Clone)]
pub(super) struct Outlet(Arc<Mutex<Inner>>);

struct Inner {
    side: Side,
    /// The socket took less than it was given.
    full: bool,
    /// To be read once although nobody said that there is something to read.
    look: bool,
}

enum Side {
    Watched(Socket),
    #[cfg(unix)]
    Tapped(Arc<Tap>),
    #[cfg(unix)]
    /// From the one to the other; nobody ever sees this.
    Changing,
}

impl Outlet {
    pub(super) fn new(socket: Socket) -> Self {
        let inner = Inner { side: Side::Watched(socket), full: false, look: false };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// From now on threads read it.
    #[cfg(unix)]
    pub(super) fn make_tapped(&self) {
        let mut inner = self.lock();
        inner.side = match std::mem::replace(&mut inner.side, Side::Changing) {
            Side::Watched(socket) => Side::Tapped(Arc::new(Tap::new(socket))),
            side => side,
        };
    }

    /// What a thread reads it by, unless a reactor watches it.
    #[cfg(unix)]
    pub(super) fn tap(&self) -> Option<Arc<Tap>> {
        match &self.lock().side {
            Side::Tapped(tap) => Some(tap.clone()),
            Side::Watched(_) | Side::Changing => None,
        }
    }

    /// Whether the socket took less than it was given.
    pub(super) fn is_full(&self) -> bool {
        self.lock().full
    }

    /// Has it read once although nobody said that there is something to read.
    pub(super) fn look(&self) {
        let mut inner = self.lock();
        match &inner.side {
            #[cfg(unix)]
            Side::Tapped(tap) => tap.look(),
            _ => inner.look = true,
        }
    }

    /// The socket's descriptor; -1 where there are none.
    #[cfg(unix)]
    pub(super) fn descriptor(&self) -> i32 {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        match &self.lock().side {
            Side::Watched(socket) => socket.as_fd().as_raw_fd(),
            Side::Tapped(tap) => tap.as_fd().as_raw_fd(),
            Side::Changing => -1,
        }
    }

    #[cfg(windows)]
    pub(super) fn descriptor(&self) -> i32 {
        -1
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Outlet {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        let look = std::mem::take(&mut inner.look);
        match &mut inner.side {
            Side::Watched(socket) if look => match socket.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Pin::new(socket).poll_read(cx, buf)
                }
                read => Poll::Ready(read),
            },
            Side::Watched(socket) => Pin::new(socket).poll_read(cx, buf),
            #[cfg(unix)]
            Side::Tapped(tap) => tap.poll_read(buf),
            #[cfg(unix)]
            Side::Changing => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let written = match &mut inner.side {
            Side::Watched(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            #[cfg(unix)]
            Side::Tapped(tap) => tap.poll_write(bufs),
            #[cfg(unix)]
            Side::Changing => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        inner.full = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.lock().side {
            Side::Watched(socket) => Pin::new(socket).poll_shutdown(cx),
            #[cfg(unix)]
            // It ends with the link.
            Side::Tapped(_) | Side::Changing => Poll::Ready(Ok(())),
        }
    }
}
