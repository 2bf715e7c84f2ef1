//! A Unix socket without a reactor, for threads that poll it themselves.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};
use tokio::io::ReadBuf;

use super::{
    Peer,
    unix::{check_server, read, write},
};
use crate::Endpoint;

/// A connected, non-blocking stream.
#[derive(Debug)]
pub struct Direct(pub(super) UnixStream);

impl Direct {
    /// As [`connect`](super::connect), but never waits.
    ///
    /// # Errors
    /// `WouldBlock` if the daemon's queue of connections is full: try again soon. Else those of
    /// [`connect`](super::connect).
    pub fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        endpoint.verify_directory()?;
        let socket = socket()?;
        net::connect(&socket, &SocketAddrUnix::new(endpoint.as_path())?)?;
        let (socket, peer) = with_peer(socket)?;
        check_server(endpoint, peer)?;
        Ok(Self(UnixStream::from(socket)))
    }

    /// Reads available bytes. No bytes: end of stream.
    ///
    /// # Errors
    /// `WouldBlock` if there are none; others as recv(2).
    pub fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        read(self.as_fd(), buf).map(drop)
    }

    /// Writes as much as fits into the kernel's buffer, and returns the number of bytes.
    ///
    /// # Errors
    /// `WouldBlock` if the buffer is full; others as sendmsg(2).
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(write(self.as_fd(), bufs)?)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn with_peer(socket: OwnedFd) -> io::Result<(OwnedFd, Peer)> {
    let peer = super::unix::peer(socket.as_fd())?;
    Ok((socket, peer))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn with_peer(socket: OwnedFd) -> io::Result<(OwnedFd, Peer)> {
    let stream = interprocess::os::unix::uds_local_socket::Stream::from(socket);
    let stream = interprocess::local_socket::Stream::from(stream);
    let peer = super::peer(&stream)?;
    let interprocess::local_socket::Stream::UdSocket(stream) = stream;
    Ok((OwnedFd::from(stream), peer))
}

#[cfg(not(target_vendor = "apple"))]
pub(super) fn socket() -> rustix::io::Result<OwnedFd> {
    use net::SocketFlags;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(target_vendor = "apple")]
pub(super) fn socket() -> rustix::io::Result<OwnedFd> {
    let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::ioctl_fioclex(&socket)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    net::sockopt::set_socket_nosigpipe(&socket, true)?;
    Ok(socket)
}

impl From<Direct> for UnixStream {
    fn from(direct: Direct) -> Self {
        direct.0
    }
}

impl AsFd for Direct {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_told_from_a_closed_listener() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let connect = || Direct::connect(&endpoint).map_err(|error| error.kind());
        assert_eq!(connect().unwrap_err(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(endpoint.as_path()).unwrap();
        net::listen(&listener, 1).unwrap();
        let mut clients = Vec::new();
        let full = loop {
            match connect() {
                Ok(client) => clients.push(client),
                Err(error) => break error,
            }
        };
        if cfg!(target_os = "linux") {
            assert_eq!(full, io::ErrorKind::WouldBlock);
        }
        listener.accept().unwrap();
        clients.push(connect().unwrap());
        drop(listener);
        assert_eq!(connect().unwrap_err(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn reads_and_writes_never_wait() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let (ours, theirs) = (Direct(ours), Direct(theirs));
        let mut bytes = [0; 16];
        let mut buf = ReadBuf::new(&mut bytes);
        assert_eq!(ours.try_read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let sent = theirs.try_write(&[IoSlice::new(b"two "), IoSlice::new(b"pieces")]).unwrap();
        assert_eq!(sent, 10);
        ours.try_read(&mut buf).unwrap();
        assert_eq!(buf.filled(), b"two pieces");
        let full = loop {
            if let Err(error) = ours.try_write(&[IoSlice::new(&[0; 4096])]) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert!(ours.try_write(&[IoSlice::new(b"gone")]).is_err());
    }
}
