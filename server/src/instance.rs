//! One daemon per place: the socket, its directory, the lock file beside it, and a socket passed by
//! systemd.
//!
//! A place is a path on a filesystem. Its daemon holds the lock on `<socket>.pid`, in the directory
//! that the path leads to, and has bound the socket in that directory. It checks each second that
//! directory, lock file and socket are unchanged; if not, it stops changing anything and exits. If
//! the directory was replaced, the lock in the new one says nothing about a daemon in the old one:
//! so a new daemon, before it serves, waits until no other socket that was bound at this path of the
//! same filesystem listens.

#[cfg_attr(unix, path = "instance/unix.rs")]
#[cfg_attr(windows, path = "instance/windows.rs")]
mod place;
#[cfg(target_os = "linux")]
mod rivals;

pub(crate) use place::{Instance, tokens_of_activated};
#[cfg(unix)]
pub(crate) use place::{activated, open_own};

use std::path::PathBuf;

use syncd_proto::Endpoint;

/// The path of a file beside the socket.
pub(crate) fn beside(endpoint: &Endpoint, suffix: &str) -> PathBuf {
    let mut file = endpoint.as_path().file_name().unwrap_or_default().to_owned();
    file.push(suffix);
    endpoint.directory().join(file)
}
