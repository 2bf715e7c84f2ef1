//! A socket that is read to its end, whatever becomes of what is written to it.
//!
//! A client that says its last and closes, or dies, may leave replies unread. Writing to it fails
//! then, and HTTP/2 ends a connection whose writes fail, with all that it has not yet read. But
//! what the client wrote, it said: its releases count.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use syncd_proto::socket::Socket;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;
use crate::journal::failpoint;

/// How much is read of a connection that is cut, in bytes: more than a socket holds, so that who
/// lives and goes on writing doesn't keep it.
const LAST_WORDS: usize = 4 << 20;

pub(super) struct LastWords {
    socket: Socket,
    connection: Arc<Connection>,
    /// Nobody reads what is written.
    is_deaf: bool,
    /// What may still be read once it is cut, in bytes.
    left: usize,
}

impl LastWords {
    pub fn of(socket: Socket, connection: Arc<Connection>) -> Self {
        Self { socket, connection, is_deaf: false, left: LAST_WORDS }
    }

    /// What was written, or as if all had been once the other end doesn't read any more.
    fn written(&mut self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) if is_gone(&error) => self.is_deaf = true,
            Poll::Pending if self.connection.is_cut() => self.is_deaf = true,
            written => return written,
        }
        Poll::Ready(Ok(all))
    }

    /// Reads what is there now, and then the end.
    fn read_rest(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let most = self.left.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        let read = match self.socket.try_read(&mut part) {
            Ok(()) => part.filled().len(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        buf.advance(read);
        self.left -= read;
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl AsyncRead for LastWords {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = match self.connection.is_cut() {
            true => Poll::Ready(self.read_rest(buf)),
            false => Pin::new(&mut self.socket).poll_read(cx, buf),
        };
        match read {
            // It closed without having read all: the end, as any other.
            Poll::Ready(Err(error)) if is_gone(&error) => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

impl AsyncWrite for LastWords {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_deaf {
            return Poll::Ready(Ok(all));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        if written.is_ready() {
            failpoint("connection.written");
        }
        self.written(written, all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
