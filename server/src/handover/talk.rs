//! The conversation between two daemons: lines, some with descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    io::retry_on_intr,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// The beginning of a new daemon's greeting, with the version of the conversation.
pub(crate) const GREETING: &str = "SYNCD-REPLACE 2";
/// The greeting's first byte; HTTP/2 begins with another (`PRI`).
pub(crate) const FIRST: u8 = b'S';
/// There is a message for a session; its number and namespace follow.
pub(crate) const NEWS: &str = "NEWS ";
/// A session has resumed.
pub(crate) const HERE: &str = "HERE";
/// The longest line, in bytes.
pub(crate) const LINE: usize = 4096;
/// The most descriptors with a line: socket, directory, lock file.
const DESCRIPTORS: usize = 3;

#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::NOSIGNAL;
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::empty();
#[cfg(not(target_vendor = "apple"))]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC;
#[cfg(target_vendor = "apple")]
const RECEIVE: RecvFlags = RecvFlags::empty();

/// One end of the conversation. The ends alternate, line by line.
#[derive(Debug)]
pub(crate) struct Talk(UnixStream);

impl Talk {
    /// Over a socket, which becomes blocking.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    /// The socket, non-blocking again.
    pub fn into_inner(self) -> io::Result<UnixStream> {
        self.0.set_nonblocking(true)?;
        Ok(self.0)
    }

    pub fn say(&mut self, words: &str) -> io::Result<()> {
        self.give(words, &[])
    }

    /// Sends a line with descriptors.
    pub fn give(&mut self, words: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let words = words.chars().take(LINE / 4 - 1);
        let mut line: String = words.map(|c| if c.is_control() { ' ' } else { c }).collect();
        line.push('\n');
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !along.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let line = IoSlice::new(line.as_bytes());
        // A line is far shorter than the socket's buffer, so it is sent whole or not at all.
        match retry_on_intr(|| sendmsg(&self.0, &[line], &mut along, SEND))? {
            sent if sent == line.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// Receives a line and its descriptors.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other end is gone; `TimedOut`; `InvalidData` if it isn't a line.
    pub fn hear(&mut self, patience: Duration) -> io::Result<(String, Vec<OwnedFd>)> {
        let until = Instant::now() + patience;
        let (mut line, mut descriptors) = (Vec::new(), Vec::new());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
            let mut bytes = [0; LINE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut along = RecvAncillaryBuffer::new(&mut space);
            let read = {
                let into = &mut [IoSliceMut::new(&mut bytes)];
                match retry_on_intr(|| recvmsg(&self.0, into, &mut along, RECEIVE)) {
                    Ok(message) => message.bytes,
                    Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                    Err(error) => return Err(error.into()),
                }
            };
            for message in along.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            line.extend_from_slice(&bytes[..read]);
            let is_word = line[0].is_ascii_uppercase() && line.len() <= LINE;
            match line.iter().position(|&byte| byte == b'\n') {
                Some(end) if is_word && end + 1 == line.len() => {
                    line.truncate(end);
                    let line = String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData)?;
                    return Ok((line, descriptors));
                }
                None if is_word => {}
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::fd::AsFd as _};

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn lines_arrive_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Talk::over(ours).unwrap(), Talk::over(theirs).unwrap());
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(b"kept").unwrap();
        ours.give("YOURS with\nthis", &[file.as_fd(), file.as_fd()]).unwrap();
        let (line, given) = theirs.hear(SOON).unwrap();
        assert_eq!(line, "YOURS with this");
        assert_eq!(given.len(), 2);
        let same = std::fs::File::from(given.into_iter().next().unwrap());
        assert_eq!(same.metadata().unwrap().len(), 4);
        let late = theirs.hear(Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(ours);
        assert_eq!(theirs.hear(SOON).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn other_bytes_are_told_from_a_line_in_pieces() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = Talk::over(theirs).unwrap();
        let writer = std::thread::spawn(move || {
            for piece in ["REA", "DY", "\n"] {
                ours.write_all(piece.as_bytes()).unwrap();
            }
            ours
        });
        assert_eq!(theirs.hear(SOON).unwrap().0, "READY");
        // As HTTP/2 begins.
        writer.join().unwrap().write_all(&[0, 0, 18, 4]).unwrap();
        assert_eq!(theirs.hear(SOON).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
