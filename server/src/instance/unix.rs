//! The place on Unix. Files are opened from the directory's descriptor, without following links, and
//! verified to be this daemon's before they are changed or unlinked.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::SystemTime,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Timespec, Timestamps,
        UTIME_NOW, Uid, chmodat, chownat, flock, fstat, openat, statat, unlinkat, utimensat,
    },
    io::Errno,
    process::geteuid,
};
use syncd_proto::{
    Endpoint,
    socket::{Listener, probe},
};
use tracing::{debug, warn};

use super::beside;
use crate::ServeError;

/// A file's device and inode, unique while the file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev as u64, inode: stat.st_ino as u64 }
    }
}

const DIRECTORY_LOST: &str = "its path leads to another directory";

/// A place that this daemon has, until dropped. The lock file is never removed: otherwise two
/// daemons could each lock a file of their own.
#[derive(Debug)]
pub(crate) struct Instance {
    endpoint: Endpoint,
    directory: OwnedFd,
    directory_is: Identity,
    lock_name: OsString,
    lock: File,
    lock_is: Identity,
    socket_name: OsString,
    socket_is: Identity,
    is_withdrawn: bool,
}

impl Instance {
    /// Takes the place: directory, lock, and a socket, which replaces a stale one.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if another daemon has the lock, or a process without it
    /// listens (for example systemd). [`ServeError::PlaceLost`] if the directory was replaced
    /// meanwhile.
    pub fn take(
        endpoint: &Endpoint,
        mode: u32,
        group: Option<u32>,
    ) -> Result<(Self, Listener), ServeError> {
        let (directory, directory_is) = open_directory(endpoint, mode)?;
        Self::take_in(directory, directory_is, endpoint, mode, group).map_err(|error| {
            match identity_of(&endpoint.directory()) {
                Ok(now) if now == directory_is => error,
                // The replaced directory is the cause of any other error.
                _ => ServeError::PlaceLost { endpoint: endpoint.clone(), why: DIRECTORY_LOST },
            }
        })
    }

    fn take_in(
        directory: OwnedFd,
        directory_is: Identity,
        endpoint: &Endpoint,
        mode: u32,
        group: Option<u32>,
    ) -> Result<(Self, Listener), ServeError> {
        let name = |suffix| beside(endpoint, suffix).file_name().unwrap_or_default().to_owned();
        let (lock_name, socket_name) = (name(".pid"), name(""));
        let (lock, lock_is) = take_lock(endpoint, &directory, &lock_name)?;
        let failed = |error: io::Error| ServeError::Bind { endpoint: endpoint.clone(), error };
        remove_stale(endpoint, &directory, &socket_name)?;
        // Group and mode are set before listening, so that nobody else can connect.
        let (listener, socket_is) = Listener::bind_prepared(endpoint, || {
            let bound = statat(&directory, &socket_name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_ours = FileType::from_raw_mode(bound.st_mode) == FileType::Socket
                && bound.st_uid == geteuid().as_raw()
                && identity_of(&endpoint.directory())? == directory_is;
            if !is_ours {
                return Err(io::Error::other("the directory was changed meanwhile"));
            }
            // The group first: `mode` may be meant for it alone.
            if let Some(group) = group {
                let (none, group) = (None::<Uid>, Some(Gid::from_raw(group)));
                chownat(&directory, &socket_name, none, group, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            let mode = Mode::from_raw_mode(mode as _);
            chmodat(&directory, &socket_name, mode, AtFlags::empty())?;
            Ok(Identity::of(&bound))
        })
        .map_err(failed)?;
        let endpoint = endpoint.clone();
        let instance = Self {
            endpoint,
            directory,
            directory_is,
            lock_name,
            lock,
            lock_is,
            socket_name,
            socket_is,
            is_withdrawn: false,
        };
        Ok((instance, listener))
    }

    /// The file that keeps the highest fencing token.
    pub fn tokens(&self) -> io::Result<File> {
        open_own(&self.directory, &self.tokens_name(), OFlags::CREATE).map(|(file, _)| file)
    }

    /// Waits until no daemon whose directory was replaced serves at this path any more: it exits as
    /// soon as it notices.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`] if it doesn't within 5 s, for example because it is stopped.
    pub async fn settle(&self) -> Result<(), ServeError> {
        #[cfg(target_os = "linux")]
        {
            use std::time::Duration;

            const PATIENCE: Duration = Duration::from_secs(5);
            let begun = tokio::time::Instant::now();
            let inode = self.socket_is.inode as u32;
            loop {
                // The other daemon may have taken this place just now.
                if let Some(why) = self.lost() {
                    return Err(ServeError::PlaceLost { endpoint: self.endpoint.clone(), why });
                }
                match super::rivals::listens_besides(self.endpoint.as_path(), inode) {
                    Ok(false) => break,
                    Ok(true) if begun.elapsed() < PATIENCE => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(true) => {
                        let endpoint = self.endpoint.clone();
                        return Err(ServeError::AlreadyRunning { endpoint, pid: None });
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the kernel doesn't say who else listens here");
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Why the place is no longer this daemon's own, if it isn't.
    pub fn lost(&self) -> Option<&'static str> {
        let is_gone = |stat: Result<Stat, Errno>, was: Identity| match stat {
            Ok(stat) => Identity::of(&stat) != was,
            Err(error) => matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP),
        };
        let within = |name| statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        let directory = statat(CWD, self.endpoint.directory(), AtFlags::empty());
        if is_gone(directory, self.directory_is) {
            Some(DIRECTORY_LOST)
        } else if is_gone(within(&self.socket_name), self.socket_is) {
            Some("the socket was removed or replaced")
        } else if is_gone(within(&self.lock_name), self.lock_is) {
            Some("the lock file was removed or replaced")
        } else {
            self.keep_fresh();
            None
        }
    }

    /// Touches the files each hour, since cleaners of `/tmp` remove files that are some days old.
    fn keep_fresh(&self) {
        const FRESH: i64 = 3600;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_old = |stat: Stat| now.as_secs() as i64 - stat.st_mtime > FRESH;
        if !fstat(&self.lock).is_ok_and(is_old) {
            return;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        for name in [&self.lock_name, &self.socket_name, &self.tokens_name()] {
            let touched = utimensat(&self.directory, name, &times, AtFlags::SYMLINK_NOFOLLOW);
            if let Err(error) = touched {
                debug!(%error, ?name, "this file could not be touched");
            }
        }
    }

    fn tokens_name(&self) -> OsString {
        let mut name = self.socket_name.clone();
        name.push(".tokens");
        name
    }

    /// Removes the socket file, unless another daemon has replaced it. Must be called before the
    /// listener is closed, after which the inode may be reused.
    pub fn withdraw(&mut self) {
        if std::mem::replace(&mut self.is_withdrawn, true) {
            return;
        }
        let found = statat(&self.directory, &self.socket_name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| Identity::of(&found) == self.socket_is)
            && let Err(error) = unlinkat(&self.directory, &self.socket_name, AtFlags::empty())
        {
            warn!(%error, endpoint = %self.endpoint, "the socket can't be removed");
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.withdraw();
    }
}

fn identity_of(path: &Path) -> io::Result<Identity> {
    Ok(Identity::of(&statat(CWD, path, AtFlags::empty())?))
}

/// Opens the socket's directory, and creates it if it is missing: private, or open to others if the
/// socket is.
fn open_directory(endpoint: &Endpoint, mode: u32) -> Result<(OwnedFd, Identity), ServeError> {
    let path = endpoint.directory();
    let open = || {
        if mode & 0o077 == 0 {
            endpoint.prepare_directory()?;
        } else {
            use std::os::unix::fs::DirBuilderExt as _;
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, &path, flags, Mode::empty())?;
        let identity = Identity::of(&fstat(&directory)?);
        if mode & 0o077 == 0 {
            endpoint.verify_directory()?;
        }
        // The directory that was verified by its path must be the one that was opened.
        if identity_of(&path)? != identity {
            return Err(io::Error::other("it was replaced meanwhile"));
        }
        Ok((directory, identity))
    };
    open().map_err(|error| ServeError::Directory { path: path.clone(), error })
}

/// Opens a file that must be this user's own, in a directory where others may create files: refuses
/// symbolic links, other users' files and files with several names. `making`: extra flags, such as
/// [`OFlags::CREATE`].
pub(crate) fn open_own(
    directory: &OwnedFd,
    name: &OsStr,
    making: OFlags,
) -> io::Result<(File, Identity)> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | making;
    let file = match openat(directory, name, flags, Mode::from_raw_mode(0o600)) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(foreign("it is a symbolic link")),
        Err(error) => return Err(error.into()),
    };
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        Err(foreign("it is not a regular file"))
    } else if found.st_uid != geteuid().as_raw() {
        Err(foreign("it belongs to another user"))
    } else if found.st_nlink > 1 {
        Err(foreign("it has another name elsewhere"))
    } else {
        Ok((file, Identity::of(&found)))
    }
}

fn foreign(why: &str) -> io::Error {
    let text = format!("{why}: remove it, or choose a socket in a directory of your own");
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// Locks `<socket>.pid`, and writes the process id into it, for information.
fn take_lock(
    endpoint: &Endpoint,
    directory: &OwnedFd,
    name: &OsString,
) -> Result<(File, Identity), ServeError> {
    let path = endpoint.directory().join(name);
    let failed = |error: io::Error| ServeError::Lock { path: path.clone(), error };
    loop {
        let (file, identity) = open_own(directory, name, OFlags::CREATE).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file
                    .as_fd()
                    .try_clone_to_owned()
                    .map(File::from)
                    .and_then(|file| file.take(32).read_to_string(&mut pid));
                let pid = pid.trim().parse().ok();
                return Err(ServeError::AlreadyRunning { endpoint: endpoint.clone(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // The file may have been removed between open and flock: then the lock is worthless.
        match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if Identity::of(&found) == identity => {}
            Ok(_) | Err(Errno::NOENT) => continue,
            Err(error) => return Err(failed(error.into())),
        }
        write_holder(&file, &path);
        return Ok((file, identity));
    }
}

fn write_holder(mut file: &File, path: &Path) {
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        warn!(%error, path = %path.display(), "the process id can't be written to the lock file");
    }
}

/// Removes a socket that nobody listens at. The caller has the lock.
fn remove_stale(
    endpoint: &Endpoint,
    directory: &OwnedFd,
    name: &OsString,
) -> Result<(), ServeError> {
    let failed = |error: io::Error| ServeError::Bind { endpoint: endpoint.clone(), error };
    let find = || statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    let found = match find() {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Socket => {
            let why =
                "there is a file of that name that isn't a socket: remove it, or choose another";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
        }
        Ok(found) => Identity::of(&found),
    };
    match probe(endpoint) {
        // Also if the daemon is stopped and its queue full.
        Ok(()) => Err(ServeError::AlreadyRunning { endpoint: endpoint.clone(), pid: None }),
        // The file must be the one that refused.
        Err(error)
            if error.kind() == io::ErrorKind::ConnectionRefused
                && find().is_ok_and(|now| Identity::of(&now) == found) =>
        {
            unlinkat(directory, name, AtFlags::empty()).map_err(|error| failed(error.into()))
        }
        Err(error) => Err(failed(error)),
    }
}

/// The file that keeps the highest fencing token, beside a socket that systemd has bound.
pub(crate) fn tokens_of_activated(endpoint: &Endpoint) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, endpoint.directory(), flags, Mode::empty())?;
    let name = beside(endpoint, ".tokens").file_name().unwrap_or_default().to_owned();
    open_own(&directory, &name, OFlags::CREATE).map(|(file, _)| file)
}

/// The listening socket that systemd passed, if it did. Removes systemd's variables, so that no child
/// inherits them. Must be called while there is one thread.
///
/// # Errors
/// If the descriptor isn't there, or there are several.
pub(crate) fn activated() -> Result<Option<OwnedFd>, ServeError> {
    use std::os::fd::FromRawFd as _;

    // SAFETY: the caller's promise: no other thread reads the environment.
    let fds = unsafe { sd_notify::listen_fds_and_unset_env() };
    let mut fds = fds.map_err(ServeError::Activation)?;
    let (first, rest) = (fds.next(), fds.len());
    if rest > 0 {
        let why = format!("one socket is served, and systemd passed {}", rest + 1);
        return Err(ServeError::Activation(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    // SAFETY: systemd opened the descriptor for this process, and nothing else uses it.
    Ok(first.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

mod inherit;
#[cfg(test)]
mod tests;
