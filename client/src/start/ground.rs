//! Whether it is for this process to start a daemon at a place, and the files beside its socket.

#[cfg(unix)]
use std::fs;
use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use syncd_proto::Endpoint;

use super::StartError;

/// A daemon that a client starts is that user's own. Where another user's or the machine's has
/// its place, it would keep that one out for as long as it lives.
///
/// # Errors
/// [`StartError::NotOurs`], with the reason.
pub(super) fn check(endpoint: &Endpoint) -> Result<(), StartError> {
    match objection(endpoint) {
        None => Ok(()),
        Some(reason) => Err(StartError::NotOurs { endpoint: endpoint.clone(), reason }),
    }
}

#[cfg(windows)]
fn objection(_endpoint: &Endpoint) -> Option<String> {
    None
}

#[cfg(unix)]
fn objection(endpoint: &Endpoint) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

    const SERVICE: &str = "start that service, or run 'syncd --socket' there yourself";

    if endpoint.is_of_user() {
        return endpoint.is_hidden().then(|| {
            "this process has a /tmp of its own (PrivateTmp= of its systemd unit), so that the \
             user's other processes would not find it: set SYNCD_SOCKET to a socket that all of \
             them see, or, if they need not meet, to one in this /tmp"
                .to_owned()
        });
    }
    let user = rustix::process::geteuid().as_raw();
    let socket = endpoint.as_path();
    let directory = endpoint.directory();
    if user == 0 && is_of_services(socket) {
        return Some(format!("/run is where services have their sockets: {SERVICE}"));
    }
    // In a directory like /tmp anybody may have one.
    let is_for_all = |mode: u32| mode & 0o1002 == 0o1002;
    if let Ok(found) = fs::metadata(&directory)
        && found.uid() != user
        && !is_for_all(found.mode())
    {
        let directory = directory.display();
        return Some(format!("{directory} is user {}'s: {SERVICE}", found.uid()));
    }
    let found = fs::symlink_metadata(socket).ok()?;
    if found.uid() != user {
        return Some(format!("the socket file is user {}'s: {SERVICE}", found.uid()));
    }
    if found.file_type().is_socket() && found.mode() & 0o077 != 0 {
        return Some(format!("the socket file is for other users, too: {SERVICE}"));
    }
    None
}

/// Below `/run`, but for what a login makes there for root.
#[cfg(unix)]
fn is_of_services(socket: &Path) -> bool {
    ["/run", "/var/run"]
        .iter()
        .any(|run| socket.starts_with(run) && !socket.starts_with(Path::new(run).join("user")))
}

/// Opens a file beside the socket to append to it, made if it is missing. In a directory where
/// others can make files, none of theirs and no link is taken for ours.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let file = options.open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let found = file.metadata()?;
        if !found.is_file() || found.uid() != rustix::process::geteuid().as_raw() {
            let text = "it is another user's, or no file: remove it, or choose another place";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
    }
    Ok(file)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::{
        fs::{PermissionsExt as _, symlink},
        net::UnixListener,
    };

    use super::*;

    fn endpoint(dir: &Path) -> Endpoint {
        dir.join("s.sock").to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn a_place_of_services_is_not_roots_to_take() {
        for socket in ["/run/syncd/syncd.sock", "/var/run/x.sock", "/run//y/s.sock"] {
            assert!(is_of_services(Path::new(socket)), "{socket}");
        }
        for socket in ["/run/user/0/syncd.sock", "/srv/run/s.sock", "/runs/s.sock"] {
            assert!(!is_of_services(Path::new(socket)), "{socket}");
        }
    }

    #[test]
    fn where_a_socket_for_all_was_the_machines_daemon_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint = endpoint(dir.path());
        assert_eq!(objection(&endpoint), None);
        drop(UnixListener::bind(endpoint.as_path()).unwrap());
        let set = |mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(endpoint.as_path(), mode).unwrap();
        };
        set(0o660);
        assert!(objection(&endpoint).unwrap().contains("other users"));
        set(0o600);
        assert_eq!(objection(&endpoint), None);
    }

    #[test]
    fn no_link_and_nobody_elses_file_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("link"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &link).unwrap();
        open_own(&link).unwrap_err();
        open_own(&victim).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&victim, Some(54_321), None).unwrap();
            open_own(&victim).unwrap_err();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    }
}
