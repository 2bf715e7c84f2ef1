//! A place that goes from one daemon to the next: the same directory, the same lock, the same socket.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::fstat;
use syncd_proto::Endpoint;

use super::{Identity, Instance, beside, write_holder};

impl Instance {
    /// Which file the socket is, as a device and an inode.
    pub fn socket_identity(&self) -> (u64, u64) {
        (self.socket_is.device, self.socket_is.inode)
    }

    /// What makes the place this daemon's: its directory, and the file with the lock. Whoever has
    /// the latter has the lock, as long as either daemon keeps it.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.directory.as_fd(), self.lock.as_fd()]
    }

    /// The place is another daemon's: its socket stays.
    pub fn bequeath(&mut self) {
        self.is_withdrawn = true;
    }

    /// The place of the daemon before, by what made it its own.
    pub fn inherit(
        endpoint: &Endpoint,
        directory: OwnedFd,
        lock: OwnedFd,
        (device, inode): (u64, u64),
    ) -> io::Result<Self> {
        let name = |suffix| beside(endpoint, suffix).file_name().unwrap_or_default().to_owned();
        let lock = File::from(lock);
        write_holder(&lock, &beside(endpoint, ".pid"));
        Ok(Self {
            endpoint: endpoint.clone(),
            directory_is: Identity::of(&fstat(&directory)?),
            directory,
            lock_name: name(".pid"),
            lock_is: Identity::of(&fstat(&lock)?),
            lock,
            socket_name: name(""),
            socket_is: Identity { device, inode },
            is_withdrawn: false,
        })
    }
}
