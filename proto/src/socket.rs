//! The byte stream between client and daemon: one listener and one connector for Unix sockets and
//! named pipes, and who is at the other end.

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
    /// When this end was made, since the machine's start.
    #[cfg(target_os = "linux")]
    accepted: std::time::Duration,
}

/// The process at the other end, as the kernel saw it when the connection was made. What a
/// platform doesn't tell is `None`; and so is the number of a process that has none here, being
/// in another process namespace that isn't beneath this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: Option<u32>,
    /// Effective user id; none on Windows.
    pub uid: Option<u32>,
    /// Effective group id; none on Windows.
    pub gid: Option<u32>,
}

/// Connects to the daemon at `endpoint`, and checks that it is no stranger: the other end must
/// run as this user, as root, or as the owner of the socket's directory.
///
/// Waits, without a bound of its own, while more clients connect than the daemon accepts.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` if nobody listens there; `PermissionDenied` if somebody
/// does who must not be trusted, or if the directory fails [`Endpoint::verify_directory`].
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

/// Whether somebody listens at `endpoint`, be it with a full queue. Nothing is said, and nothing
/// waited for.
///
/// # Errors
/// As [`connect`], but for who it is.
pub fn probe(endpoint: &Endpoint) -> io::Result<()> {
    #[cfg(unix)]
    return unix::probe(endpoint.as_path());
    #[cfg(windows)]
    {
        // ERROR_PIPE_BUSY: all of its instances have a client.
        const BUSY: Option<i32> = Some(231);
        match std::fs::File::open(endpoint.as_path()) {
            Err(error) if error.raw_os_error() != BUSY => Err(error),
            _ => Ok(()),
        }
    }
}

/// Accepts connections at an [`Endpoint`]. The socket file stays when this is dropped: by then it
/// may be somebody else's, which only who guards the place can tell.
#[derive(Debug)]
pub struct Listener(local::Listener);

impl Listener {
    /// Listens at `endpoint`, its socket file with the permissions `mode` (0o600 for a user's
    /// own daemon). On Windows the pipe is for its owner and the system alone, whatever `mode`.
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
            // Protected; all access for the owner and for the system, nobody else.
            let owner_only = widestring::u16cstr!("D:P(A;;GA;;;OW)(A;;GA;;;SY)");
            options.security_descriptor(SecurityDescriptor::deserialize(owner_only)?)
        };
        options.create_tokio().map(Self)
    }

    /// As [`bind`](Self::bind), with a socket file that `prepare` has before anybody can connect to it.
    /// (Until then they are refused, as where nobody listens.)
    ///
    /// # Errors
    /// Those of `prepare`, too: the file stays.
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

    /// Takes over a listening socket that somebody else has bound, as in systemd's socket
    /// activation.
    ///
    /// # Errors
    /// If the descriptor is no listening stream socket that can be polled.
    #[cfg(unix)]
    pub fn from_fd(fd: std::os::fd::OwnedFd) -> io::Result<Self> {
        use interprocess::os::unix::uds_local_socket::tokio as uds;
        uds::Listener::try_from(fd).map(|listener| Self(listener.into()))
    }

    /// Has this process be the one that those who connect see at the other end, who may be another
    /// than who bound the socket.
    ///
    /// # Errors
    /// As listen(2).
    #[cfg(unix)]
    pub fn claim(&self) -> io::Result<()> {
        // As long a queue as there may be.
        Ok(rustix::net::listen(self, -1)?)
    }

    /// The next connection.
    ///
    /// # Errors
    /// By what they mean for the next one; the listener can be used on after each.
    ///
    /// # Cancel safety
    /// Nothing is lost by dropping the future.
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

    /// Who is at the other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Reads what is there now, whether or not the reactor has noticed. No bytes: the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there, or on a platform that can't tell.
    pub fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        #[cfg(unix)]
        return self.stream.try_read(buf).map(drop);
        #[cfg(windows)]
        {
            let _ = buf;
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    /// The first byte that is there to be read, when there is one; `None`: the end. It stays there.
    ///
    /// # Errors
    /// As recv(2).
    #[cfg(unix)]
    pub async fn peek(&self) -> io::Result<Option<u8>> {
        self.stream.peek().await
    }

    /// Takes it from the reactor.
    #[cfg(unix)]
    pub fn into_direct(self) -> Direct {
        self.stream.into_direct()
    }

    /// A descriptor that polls readable when the process at the other end has exited.
    ///
    /// From Linux 6.5 on the kernel names the very process that connected. Before, it is found by
    /// its number, and somebody else's is refused as far as can be told: a process that has
    /// exited, that began after the connection was accepted, or whose socket nobody holds any more. What is
    /// left: a number that was given anew between the connection and its acceptance, while a
    /// child of the first process keeps the socket.
    ///
    /// # Errors
    /// If that process is gone already, or the kernel is older than 5.3.
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
