//! The place on Windows: only one process can create a pipe's first instance, which goes with it; a
//! lock file has the process id.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
};

use syncd_proto::{Endpoint, socket::Listener};

use super::beside;
use crate::ServeError;

/// A place that this daemon has, until dropped.
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
                // On Windows a locked file may not be readable: then no pid is named.
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

    /// Does nothing: a pipe can't be replaced.
    pub async fn settle(&self) -> Result<(), ServeError> {
        Ok(())
    }

    /// Always `None`: a pipe can't be replaced.
    pub fn lost(&self) -> Option<&'static str> {
        None
    }

    /// Does nothing: the pipe goes with the process.
    pub fn withdraw(&mut self) {}
}

/// Windows has no socket activation.
pub(crate) fn tokens_of_activated(_: &Endpoint) -> std::io::Result<File> {
    Err(std::io::ErrorKind::Unsupported.into())
}
