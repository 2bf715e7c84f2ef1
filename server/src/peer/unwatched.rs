//! Systems where processes aren't watched (not yet: kqueue has NOTE_EXIT, on macOS and the BSDs).
//! The end of the socket is taken for the end of the process; so a forked child that keeps the
//! socket open keeps its dead parent's session.

use std::io;

use syncd_proto::socket::Socket;

pub(super) struct Watch;

impl Watch {
    pub(super) fn new(_: &Socket, _: u32) -> io::Result<Self> {
        Ok(Self)
    }

    /// Watches the process that has the PID now.
    pub(super) fn of(_: u32) -> Option<Self> {
        Some(Self)
    }

    pub(super) fn has_exited(&self) -> bool {
        false
    }

    pub(super) async fn exited(&self) {
        std::future::pending().await
    }
}

pub(super) fn started(_: u32) -> Option<u64> {
    None
}
