//! A socket that is read to its end even if writes to it fail.
//!
//! A client that closes or dies may leave replies unread, so that writes to it fail. HTTP/2 would
//! then end the connection without reading the rest. But requests that the client has written count
//! (R64), so write errors are hidden from HTTP/2.

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

/// How much is read of a connection that is cut, in bytes. More than a socket's buffer, and limited,
/// so that a living client that goes on writing can't keep the connection open.
const LAST_WORDS: usize = 4 << 20;

pub(super) struct LastWords {
    socket: Socket,
    connection: Arc<Connection>,
    /// The other end doesn't read any more: writes are discarded.
    is_deaf: bool,
    /// How many bytes may still be read once the connection is cut.
    left: usize,
}

impl LastWords {
    pub fn of(socket: Socket, connection: Arc<Connection>) -> Self {
        Self { socket, connection, is_deaf: false, left: LAST_WORDS }
    }

    /// The result of a write; success if the other end doesn't read any more.
    fn written(&mut self, written: Poll<io::Result<usize>>, all: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) if is_gone(&error) => self.is_deaf = true,
            Poll::Pending if self.connection.is_cut() => self.is_deaf = true,
            written => return written,
        }
        Poll::Ready(Ok(all))
    }

    /// Reads what has arrived, without waiting; reports the end when there is nothing.
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
            // The client closed without reading everything: an ordinary end.
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
