//! Where no descriptor tells the end of a process (yet: kqueue's NOTE_EXIT would, on macOS and
//! the BSDs), the end of its socket must do. A forked child that keeps the socket open keeps
//! its dead parent's session too, until it closes it.

use std::io;

use syncd_proto::socket::Socket;

pub(super) struct Watch;

impl Watch {
    pub(super) fn new(_: &Socket, _: u32) -> io::Result<Self> {
        Ok(Self)
    }

    /// Of whoever has that number, if anybody.
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
