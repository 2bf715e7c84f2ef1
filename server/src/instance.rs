//! One daemon per socket: the lock file, the socket's directory, its permissions, a stale
//! socket, and a socket that systemd hands over. Never here: who connects to it.

#[cfg(unix)]
use std::{fs, io};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
};

use syncd_proto::{Endpoint, socket::Listener};

use crate::ServeError;

/// The lock that makes this daemon the only one of its socket, for as long as it is kept. Its
/// file stays: to remove it would let two others each lock a file of their own.
#[derive(Debug)]
pub(crate) struct Instance {
    _lock: File,
}

impl Instance {
    /// Locks `<socket>.pid`, and writes the process's number into it.
    ///
    /// # Errors
    /// [`ServeError::AlreadyRunning`], with the number found there.
    pub fn lock(endpoint: &Endpoint) -> Result<Self, ServeError> {
        let path = lock_path(endpoint);
        let failed = |error| ServeError::Lock { path: path.clone(), error };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // On Windows a locked file can't be read, and then nobody is named.
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
        Ok(Self { _lock: file })
    }
}

fn lock_path(endpoint: &Endpoint) -> PathBuf {
    let name = endpoint.as_path().file_name().unwrap_or_default();
    let mut file = name.to_owned();
    file.push(".pid");
    endpoint.directory().join(file)
}

/// Makes the socket's directory if it is missing: for its user alone, or open to those whom the
/// socket is open to.
pub(crate) fn prepare_directory(endpoint: &Endpoint, mode: u32) -> Result<(), ServeError> {
    let failed = |error| ServeError::Directory { path: endpoint.directory(), error };
    #[cfg(unix)]
    if mode & 0o077 != 0 {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = fs::DirBuilder::new();
        return builder.recursive(true).mode(0o755).create(endpoint.directory()).map_err(failed);
    }
    #[cfg(windows)]
    let _ = mode;
    endpoint.prepare_directory().map_err(failed)
}

/// Binds the socket, in place of a stale one. The caller has the lock.
///
/// # Errors
/// [`ServeError::AlreadyRunning`] if somebody listens there all the same, without the lock (a
/// socket that systemd has bound, say); [`ServeError::Bind`] for everything else.
pub(crate) fn bind(
    endpoint: &Endpoint,
    mode: u32,
    group: Option<u32>,
) -> Result<Listener, ServeError> {
    let failed = |error| ServeError::Bind { endpoint: endpoint.clone(), error };
    #[cfg(unix)]
    remove_stale(endpoint)?;
    let listener = Listener::bind(endpoint, mode).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt as _, chown};

        // The umask has narrowed it. The group first: `mode` may be meant for it alone.
        let path = endpoint.as_path();
        let opened = group
            .map_or(Ok(()), |group| chown(path, None, Some(group)))
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)));
        opened.map_err(failed)?;
    }
    #[cfg(windows)]
    let _ = group;
    Ok(listener)
}

#[cfg(unix)]
fn remove_stale(endpoint: &Endpoint) -> Result<(), ServeError> {
    use std::os::unix::fs::FileTypeExt as _;

    use rustix::{
        io::Errno,
        net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    };

    let failed = |error| ServeError::Bind { endpoint: endpoint.clone(), error };
    let path = endpoint.as_path();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            let why =
                "there is a file of that name, which is no socket: remove it, or choose another";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
        }
        Ok(_) => {}
    }
    // Without waiting: a daemon that is stopped, its queue full, is alive too.
    let probe = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    match probe() {
        Ok(()) | Err(Errno::AGAIN) => {
            Err(ServeError::AlreadyRunning { endpoint: endpoint.clone(), pid: None })
        }
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error.into())),
    }
}

/// The listening socket that systemd started this process for, if it did; its variables are
/// gone then, so that no child takes them for its own. Call it before any thread is made.
///
/// # Errors
/// If the descriptor isn't there, or there are several.
#[cfg(unix)]
pub(crate) fn activation() -> Result<Option<std::os::fd::OwnedFd>, ServeError> {
    use std::os::fd::FromRawFd as _;

    // SAFETY: the caller's promise: no other thread reads the environment.
    let fds = unsafe { sd_notify::listen_fds_and_unset_env() };
    let mut fds = fds.map_err(ServeError::Activation)?;
    let (first, rest) = (fds.next(), fds.len());
    if rest > 0 {
        let why = format!("one socket is served, and systemd passed {}", rest + 1);
        return Err(ServeError::Activation(io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    // SAFETY: systemd opened it for this process, and nobody else here has taken it.
    Ok(first.map(|fd| unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixListener};

    use super::*;

    fn endpoint(dir: &tempfile::TempDir) -> Endpoint {
        dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn a_second_daemon_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::lock(&endpoint(&dir)).unwrap();
        match Instance::lock(&endpoint(&dir)) {
            Err(ServeError::AlreadyRunning { pid, .. }) => {
                assert_eq!(pid, Some(std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        Instance::lock(&endpoint(&dir)).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        let live = UnixListener::bind(endpoint.as_path()).unwrap();
        let refused = bind(&endpoint, 0o600, None);
        assert!(matches!(refused, Err(ServeError::AlreadyRunning { .. })), "{refused:?}");
        drop(live);
        let listener = bind(&endpoint, 0o660, None).unwrap();
        let mode = endpoint.as_path().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(listener);
        assert!(!endpoint.as_path().exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(&dir);
        fs::write(endpoint.as_path(), "precious").unwrap();
        assert!(matches!(bind(&endpoint, 0o600, None), Err(ServeError::Bind { .. })));
        assert_eq!(fs::read_to_string(endpoint.as_path()).unwrap(), "precious");
    }
}
