//! The byte stream between client and daemon: a listener and a connector for Unix sockets and named
//! pipes, and the identity of the peer.

use std::{
    io,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use interprocess::local_socket::{
    ConnectOptions, GenericFilePath, ListenerOptions, Name, ToFsName as _, tokio as local,
    traits::tokio::Listener as _,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Endpoint;

mod accept;
#[cfg(unix)]
mod direct;
#[cfg(unix)]
mod unix;
pub use accept::AcceptError;
#[cfg(unix)]
pub use direct::Direct;
#[cfg(windows)]
use local::Stream;
#[cfg(unix)]
use unix::Stream;

/// A connected stream.
#[derive(Debug)]
pub struct Socket {
    stream: Stream,
    peer: Peer,
    /// When this end was made, since boot.
    #[cfg(target_os = "linux")]
    accepted: std::time::Duration,
}

/// The process at the other end, as the kernel saw it when the connection was made. A field that the
/// platform doesn't report is `None`; and so is the PID of a process in another process namespace
/// that isn't beneath this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: Option<u32>,
    /// Effective user id; `None` on Windows.
    pub uid: Option<u32>,
    /// Effective group id; `None` on Windows.
    pub gid: Option<u32>,
}

/// Connects to the daemon at `endpoint`, and checks that it can be trusted: it must run as this
/// user, as root, or as the owner of the socket's directory.
///
/// Waits, without a time limit, while the daemon's queue of connections is full. Cancel safe.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if no process listens there; `PermissionDenied` if it runs as a
/// user that can't be trusted, or if the directory fails [`Endpoint::verify_directory`].
pub async fn connect(endpoint: &Endpoint) -> io::Result<Socket> {
    endpoint.verify_directory()?;
    let options = ConnectOptions::new().name(name(endpoint)?);
    #[cfg(windows)]
    let stream = options.connect_tokio().await?;
    #[cfg(unix)]
    let stream = loop {
        let stream = options.connect_tokio().await?;
        if unix::is_connected(&stream) {
            break stream;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    };
    let socket = Socket::new(stream)?;
    #[cfg(unix)]
    unix::check_server(endpoint, socket.peer)?;
    Ok(socket)
}

/// Checks that a process listens at `endpoint`, even with a full queue. Sends nothing, and never
/// waits; doesn't check which user it runs as.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if no process listens there; others as connect(2).
pub fn probe(endpoint: &Endpoint) -> io::Result<()> {
    #[cfg(unix)]
    return unix::probe(endpoint.as_path());
    #[cfg(windows)]
    {
        // ERROR_PIPE_BUSY: all of the pipe's instances have a client.
        const BUSY: Option<i32> = Some(231);
        match std::fs::File::open(endpoint.as_path()) {
            Err(error) if error.raw_os_error() != BUSY => Err(error),
            _ => Ok(()),
        }
    }
}

/// Accepts connections at an [`Endpoint`]. Dropping it leaves the socket file, which may be another
/// daemon's by then.
#[derive(Debug)]
pub struct Listener(local::Listener);

impl Listener {
    /// Listens at `endpoint`. The socket file has the permissions `mode` (0o600 for a user's own
    /// daemon). On Windows only the owner and the system can use the pipe, whatever `mode` is.
    ///
    /// # Errors
    /// `AddrInUse` if there is a socket file already, live or stale.
    pub fn bind(endpoint: &Endpoint, mode: u32) -> io::Result<Self> {
        let options = ListenerOptions::new().name(name(endpoint)?).reclaim_name(false);
        #[cfg(unix)]
        let options = {
            use interprocess::os::unix::local_socket::ListenerOptionsExt as _;
            options.mode(mode as libc::mode_t)
        };
        #[cfg(windows)]
        let options = {
            use interprocess::os::windows::{
                local_socket::ListenerOptionsExt as _, security_descriptor::SecurityDescriptor,
            };
            let _ = mode;
            // Protected; all access for the owner and the system, none for others.
            let owner_only = widestring::u16cstr!("D:P(A;;GA;;;OW)(A;;GA;;;SY)");
            options.security_descriptor(SecurityDescriptor::deserialize(owner_only)?)
        };
        options.create_tokio().map(Self)
    }

    /// As [`bind`](Self::bind), but calls `prepare` after making the socket file and before
    /// listening: until then connections are refused.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), and those of `prepare`, after which the file stays.
    #[cfg(unix)]
    pub fn bind_prepared<T>(
        endpoint: &Endpoint,
        prepare: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<(Self, T)> {
        let socket = direct::socket()?;
        rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(endpoint.as_path())?)?;
        let prepared = prepare()?;
        rustix::net::listen(&socket, -1)?;
        Ok((Self::from_fd(socket)?, prepared))
    }

    /// Takes over a listening socket that another process has bound, as in systemd's socket
    /// activation.
    ///
    /// # Errors
    /// If the descriptor isn't a listening stream socket that can be polled.
    #[cfg(unix)]
    pub fn from_fd(fd: std::os::fd::OwnedFd) -> io::Result<Self> {
        use interprocess::os::unix::uds_local_socket::tokio as uds;
        uds::Listener::try_from(fd).map(|listener| Self(listener.into()))
    }

    /// Makes this process the peer that connecting clients see (SO_PEERCRED), if another process has
    /// bound the socket.
    ///
    /// # Errors
    /// As listen(2).
    #[cfg(unix)]
    pub fn claim(&self) -> io::Result<()> {
        // -1: the longest queue that the system allows.
        Ok(rustix::net::listen(self, -1)?)
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// See [`AcceptError`]. The listener can be used after any of them.
    ///
    /// # Cancel safety
    /// Cancel safe: dropping the future loses no connection.
    pub async fn accept(&self) -> Result<Socket, AcceptError> {
        let stream = self.0.accept().await.map_err(AcceptError::of_listener)?;
        Socket::new(stream).map_err(AcceptError::of_peer)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn peer(stream: &local::Stream) -> io::Result<Peer> {
    let local::Stream::UdSocket(stream) = stream;
    unix::peer(std::os::fd::AsFd::as_fd(stream))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn peer(stream: &impl interprocess::local_socket::traits::StreamCommon) -> io::Result<Peer> {
    let credentials = stream.peer_creds()?;
    Ok(Peer {
        pid: credentials.pid().and_then(|pid| u32::try_from(pid).ok()),
        #[cfg(unix)]
        uid: credentials.euid(),
        #[cfg(unix)]
        gid: credentials.egid(),
        #[cfg(windows)]
        uid: None,
        #[cfg(windows)]
        gid: None,
    })
}

fn name(endpoint: &Endpoint) -> io::Result<Name<'_>> {
    endpoint.as_path().to_fs_name::<GenericFilePath>()
}

impl Socket {
    fn new(stream: local::Stream) -> io::Result<Self> {
        let peer = peer(&stream)?;
        #[cfg(unix)]
        let stream = Stream::new(stream)?;
        Ok(Self {
            stream,
            peer,
            #[cfg(target_os = "linux")]
            accepted: unix::since_boot(),
        })
    }

    /// The process at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Reads available bytes, whether or not the reactor has noticed them. No bytes: end of stream.
    ///
    /// # Errors
    /// `WouldBlock` if there are none, and always on Windows; others as recv(2).
    pub fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        #[cfg(unix)]
        return self.stream.try_read(buf).map(drop);
        #[cfg(windows)]
        {
            let _ = buf;
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// Waits for the next byte, and returns it without consuming it; `None` at the end of the
    /// stream. Cancel safe.
    ///
    /// # Errors
    /// As recv(2).
    #[cfg(unix)]
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        self.stream.peek().await
    }

    /// Removes the socket from the reactor.
    #[cfg(unix)]
    pub fn into_direct(self) -> Direct {
        self.stream.into_direct()
    }

    /// A pidfd of the process at the other end: it polls readable once the process has exited.
    ///
    /// Since Linux 6.5 the kernel identifies the process that connected (SO_PEERPIDFD). Before, it
    /// is found by its PID, and refused if it has exited, was started after the connection was
    /// accepted, or the peer's socket is closed. One case remains: the PID was reused between
    /// connect and accept, while a child of the first process keeps the socket.
    ///
    /// # Errors
    /// If the process has exited, or the kernel is older than 5.3.
    #[cfg(target_os = "linux")]
    pub fn peer_pidfd(&self) -> io::Result<std::os::fd::OwnedFd> {
        unix::peer_pidfd(std::os::fd::AsFd::as_fd(self), self.peer.pid, self.accepted)
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        let local::Listener::UdSocket(listener) = &self.0;
        listener.as_fd()
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(all(test, unix))]
mod tests;
