//! A Unix socket without a reactor: threads wait for it by themselves. Never here: how it was
//! connected.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use tokio::io::ReadBuf;

use super::unix::{read, write};

/// A connected stream that never waits.
#[derive(Debug)]
pub struct Direct(pub(super) UnixStream);

impl Direct {
    /// Reads what is there now. No bytes: the end.
    ///
    /// # Errors
    /// `WouldBlock` if nothing is there.
    pub fn try_read(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        read(self.as_fd(), buf).map(drop)
    }

    /// Writes what there is room for, and tells how many bytes that is.
    ///
    /// # Errors
    /// `WouldBlock` if there is none.
    pub fn try_write(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(write(self.as_fd(), bufs)?)
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
    fn it_gives_and_takes_what_there_is_and_never_waits() {
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
