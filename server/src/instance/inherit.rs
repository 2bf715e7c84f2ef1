//! Passing a place from one daemon to the next: the same directory, lock and socket.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::fstat;
use syncd_proto::Endpoint;

use super::{Identity, Instance, beside, write_holder};

impl Instance {
    /// The device and inode of the socket file.
    pub fn socket_identity(&self) -> (u64, u64) {
        (self.socket_is.device, self.socket_is.inode)
    }

    /// The descriptors of the directory and the lock file. The flock belongs to the open file, so a
    /// daemon that gets the descriptor shares the lock.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.directory.as_fd(), self.lock.as_fd()]
    }

    /// The place is another daemon's now: leaves the socket in place.
    pub fn bequeath(&mut self) {
        self.is_withdrawn = true;
    }

    /// Takes over the place of the former daemon, from its descriptors.
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
