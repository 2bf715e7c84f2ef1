//! The place on Windows: the pipe's first instance is the daemon's alone, and goes with it; a
//! lock file tells who it is.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
};

use syncd_proto::{Endpoint, socket::Listener};

use super::beside;
use crate::ServeError;

/// The lock that makes this daemon the only one of its pipe, for as long as it is kept.
#[derive(Debug)]
pub(crate) struct Instance {
    endpoint: Endpoint,
    _lock: File,
}

impl Instance {
    /// Takes the place, and listens there.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon has it.
    pub fn take(
        endpoint: &Endpoint,
        mode: u32,
        _: Option<u32>,
    ) -> Result<(Self, Listener), ServeError> {
        let failed = |error| ServeError::Directory { path: endpoint.directory(), error };
        endpoint.prepare_directory().map_err(failed)?;
        let path = beside(endpoint, ".pid");
        let failed = |error| ServeError::Lock { path: path.clone(), error };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // A locked file can't be read, and then nobody is named.
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim().parse().ok();
                return Err(ServeError::AlreadyRunning { endpoint: endpoint.clone(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        let failed = |error| ServeError::Bind { endpoint: endpoint.clone(), error };
        let listener = Listener::bind(endpoint, mode).map_err(failed)?;
        Ok((Self { endpoint: endpoint.clone(), _lock: file }, listener))
    }

    /// The file that keeps the highest fencing token.
    pub fn tokens(&self) -> std::io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(beside(&self.endpoint, ".tokens"))
    }

    /// Waits for another daemon at this place to be gone.
    pub async fn settle(&self) -> Result<(), ServeError> {
        Ok(())
    }

    /// `Some` once the place isn't this daemon's any more: why. A pipe can't be taken away.
    pub fn lost(&self) -> Option<&'static str> {
        None
    }

    /// Takes the socket away, so that nobody comes any more.
    pub fn withdraw(&mut self) {}
}

/// The file that keeps the highest fencing token, beside a socket that somebody else has bound.
pub(crate) fn tokens_of_activated(_: &Endpoint) -> std::io::Result<File> {
    Err(std::io::ErrorKind::Unsupported.into())
}
