//! One place, one daemon: the socket, its directory, the lock file beside it, and a socket that
//! systemd hands over.
//!
//! A place is a path on a filesystem. Whoever serves there holds the lock on `<socket>.pid`, in
//! the directory that the path leads to, has bound the socket in that very directory, and finds all
//! three unchanged each second; else it changes nothing any more, and leaves. If the directory was
//! made anew meanwhile, the lock in it says nothing about a daemon that still has the old one: so
//! a new daemon waits, before it serves, until no other socket of that path and filesystem listens.

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
