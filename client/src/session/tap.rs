//! A socket that no reactor watches: the threads that wait look after it. Never here: which of
//! them does.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Release},
    task::Poll,
};

use syncd_proto::socket::{Direct, Socket};
use tokio::io::ReadBuf;

pub(super) struct Tap {
    socket: Direct,
    /// To be read: something came, or might have.
    look: AtomicBool,
}

impl Tap {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket: socket.into_direct(), look: AtomicBool::new(true) }
    }

    /// Has it read when it is next asked for bytes; otherwise it holds that there are none.
    pub(super) fn look(&self) {
        self.look.store(true, Release);
    }

    pub(super) fn poll_read(&self, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.look.swap(false, AcqRel) {
            return Poll::Pending;
        }
        or_pending(self.socket.try_read(buf))
    }

    pub(super) fn poll_write(&self, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        or_pending(self.socket.try_write(bufs))
    }
}

fn or_pending<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
