//! The Unix parts of [`Socket`](super::Socket): a stream that is registered only for reading, and
//! the identity of the peer.

use std::{
    io,
    io::IoSlice,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use interprocess::local_socket::tokio as local;
use rustix::{
    io::retry_on_intr,
    net::{self, RecvFlags, SendAncillaryBuffer, SendFlags},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use super::{Peer, direct::Direct};
use crate::Endpoint;

/// A stream registered for reading. One registered also for writing would be woken each time that
/// the peer reads: a needless context switch per message. So a duplicate (one descriptor can be
/// registered only once) is registered for writing while the kernel's buffer is full.
#[derive(Debug)]
pub(super) struct Stream {
    socket: AsyncFd<UnixStream>,
    full: Option<AsyncFd<UnixStream>>,
}

#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::empty();

fn register(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: a UnixStream has the same descriptor as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Reads available bytes, and returns their number.
pub(super) fn read(socket: BorrowedFd<'_>, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
    // SAFETY: recv has written, and so initialised, the first `read` bytes.
    let read = unsafe {
        let space = buf.unfilled_mut();
        let read = retry_on_intr(|| {
            net::recv(socket, &mut *space, RecvFlags::empty()).map(|(_, read)| read)
        })?;
        buf.assume_init(read);
        read
    };
    buf.advance(read);
    Ok(read)
}

/// Writes as much as fits into the kernel's buffer, and returns the number of bytes.
pub(super) fn write(socket: BorrowedFd<'_>, bufs: &[IoSlice<'_>]) -> rustix::io::Result<usize> {
    retry_on_intr(|| match bufs {
        [buf] => net::send(socket, buf, SEND),
        _ => net::sendmsg(socket, bufs, &mut SendAncillaryBuffer::default(), SEND),
    })
}

impl Stream {
    pub(super) fn new(stream: local::Stream) -> io::Result<Self> {
        let local::Stream::UdSocket(stream) = stream;
        let socket = UnixStream::from(OwnedFd::try_from(stream)?);
        Ok(Self { socket: register(socket, Interest::READABLE)?, full: None })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }

    pub(super) fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        read(self.as_fd(), buf)
    }

    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        loop {
            let mut guard = self.socket.readable().await?;
            let mut first = [0];
            let peeked = retry_on_intr(|| net::recv(self.as_fd(), &mut first, RecvFlags::PEEK));
            match peeked {
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Ok((read, _)) => return Ok((read > 0).then_some(first[0])),
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn into_direct(self) -> Direct {
        Direct(self.socket.into_inner())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            match write(self.as_fd(), bufs) {
                Err(rustix::io::Errno::AGAIN) => {}
                sent => {
                    self.full = None;
                    return Poll::Ready(sent.map_err(io::Error::from));
                }
            }
            let full = match &self.full {
                Some(full) => full,
                None => {
                    let duplicate = self.socket.get_ref().try_clone()?;
                    self.full.insert(register(duplicate, Interest::WRITABLE)?)
                }
            };
            ready!(full.poll_write_ready(cx))?.clear_ready();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let wanted = buf.remaining();
            match self.try_read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                Ok(read) => {
                    // A short read has emptied the socket: the next read waits at once.
                    if 0 < read && read < wanted {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.socket.get_ref().shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// Whether a non-blocking connect has succeeded. If the listener's queue was full, a Unix socket
/// isn't connecting in the background, unlike others: connect(2) must be called again, although the
/// socket polls writable.
pub(super) fn is_connected(stream: &local::Stream) -> bool {
    let local::Stream::UdSocket(stream) = stream;
    rustix::net::getpeername(stream).is_ok()
}

/// The process at the other end, by SO_PEERCRED (unix(7)). The kernel's PID 0 means a process that
/// has none in this process namespace.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut found = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: libc::gid_t::MAX };
    let mut len = size_of_val(&found) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes; any bytes are a valid ucred.
    let got = unsafe {
        let socket = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let out = (&raw mut found).cast();
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, out, &raw mut len)
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = u32::try_from(found.pid).ok().filter(|&pid| pid != 0);
    // The ids are -1 if the kernel doesn't know the peer.
    let is_known = |id: u32| (id != u32::MAX).then_some(id);
    Ok(Peer { pid, uid: is_known(found.uid), gid: is_known(found.gid) })
}

pub(super) fn probe(path: &Path) -> io::Result<()> {
    let socket = net::socket(net::AddressFamily::UNIX, net::SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    match net::connect(&socket, &net::SocketAddrUnix::new(path)?) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Checks that the daemon at the other end runs as a trusted user: this one, root, or the owner of
/// the socket's directory, who decides what listens there, if no other user could have put the
/// directory there. Another user's socket in a directory such as /tmp is refused.
pub(super) fn check_server(endpoint: &Endpoint, server: Peer) -> io::Result<()> {
    let ours = rustix::process::geteuid().as_raw();
    let trusted = match server.uid {
        Some(uid) if uid == ours || uid == 0 => true,
        Some(uid) => !endpoint.is_of_user() && endpoint.keeper().is_ok_and(|keeper| keeper == uid),
        None => false,
    };
    if trusted {
        return Ok(());
    }
    let who = server.uid.map_or("an unknown user".to_owned(), |uid| format!("user {uid}"));
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "the daemon at {endpoint} runs as {who}, who is neither you, root nor the owner of its directory"
        ),
    ))
}

/// A pidfd of the process that connected: by SO_PEERPIDFD (Linux 6.5), else by its PID.
#[cfg(target_os = "linux")]
pub(super) fn peer_pidfd(
    socket: BorrowedFd<'_>,
    pid: Option<u32>,
    accepted: Duration,
) -> io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};

    const SO_PEERPIDFD: libc::c_int = 77;
    let mut fd: libc::c_int = -1;
    let mut len = size_of_val(&fd) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, a descriptor, into `fd`.
    let got = unsafe {
        let out = (&raw mut fd).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_PEERPIDFD, out, &raw mut len)
    };
    if got == 0 {
        // SAFETY: it is a new descriptor, owned by this function.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOPROTOOPT) {
        return Err(error);
    }
    pidfd_by_number(socket, pid.ok_or(io::ErrorKind::NotFound)?, accepted)
}

/// A pidfd of the process with this PID, unless it is certain that another one connected.
#[cfg(target_os = "linux")]
fn pidfd_by_number(socket: BorrowedFd<'_>, pid: u32, accepted: Duration) -> io::Result<OwnedFd> {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Pid, PidfdFlags, pidfd_open},
    };

    let gone = || io::Error::new(io::ErrorKind::NotFound, "the process that connected has exited");
    let number = Pid::from_raw(pid.cast_signed()).ok_or_else(gone)?;
    let pidfd = pidfd_open(number, PidfdFlags::empty())?;
    let started = started_since_boot(pid).ok_or_else(gone)?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&socket, PollFlags::RDHUP)];
    // Checked last: if the process still lives, the start time is its own.
    let has_ended = poll(&mut fds, Some(&Timespec::default()))? > 0;
    if has_ended || started > accepted { Err(gone()) } else { Ok(pidfd) }
}

/// When a process was started, rounded down to a tick of the kernel's clock.
#[cfg(target_os = "linux")]
fn started_since_boot(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold any bytes, even parentheses.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

#[cfg(target_os = "linux")]
pub(super) fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_process_found_by_its_pid_is_refused_if_it_is_not_the_one_that_connected() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let us = std::process::id();
        pidfd_by_number(ours.as_fd(), us, since_boot()).unwrap();
        let early = started_since_boot(us).unwrap().checked_sub(Duration::from_millis(1));
        pidfd_by_number(ours.as_fd(), us, early.unwrap()).unwrap_err();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        // Not reaped, it keeps its PID.
        let pid = child.id();
        let exited = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.contains(") Z ")
        };
        while !exited() {
            std::thread::sleep(Duration::from_millis(1));
        }
        pidfd_by_number(ours.as_fd(), pid, since_boot()).unwrap_err();
        child.wait().unwrap();
        pidfd_by_number(ours.as_fd(), pid, since_boot()).unwrap_err();
        drop(theirs);
        pidfd_by_number(ours.as_fd(), us, since_boot()).unwrap_err();
    }
}
