//! Whether this process may start a daemon at a place; and opening the files beside its socket.

#[cfg(unix)]
use std::fs;
use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

use syncd_proto::Endpoint;

use super::StartError;

/// Checks that a daemon at this place would be the user's own. At another user's or the machine's
/// place it would keep that daemon out for as long as it lives.
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
            "this process has a private /tmp (PrivateTmp= of its systemd unit), where the user's \
             other processes would not find the daemon: set SYNCD_SOCKET to a socket that all of \
             them can reach, or to one in this /tmp if they need not share locks"
                .to_owned()
        });
    }
    let user = rustix::process::geteuid().as_raw();
    let socket = endpoint.as_path();
    let directory = endpoint.directory();
    if user == 0 && is_of_services(socket) {
        return Some(format!("sockets in /run belong to system services: {SERVICE}"));
    }
    // World-writable and sticky, like /tmp: any user may have a daemon there.
    let is_for_all = |mode: u32| mode & 0o1002 == 0o1002;
    if let Ok(found) = fs::metadata(&directory)
        && found.uid() != user
        && !is_for_all(found.mode())
    {
        let directory = directory.display();
        return Some(format!("{directory} belongs to user {}: {SERVICE}", found.uid()));
    }
    let found = fs::symlink_metadata(socket).ok()?;
    if found.uid() != user {
        return Some(format!("the socket file belongs to user {}: {SERVICE}", found.uid()));
    }
    if found.file_type().is_socket() && found.mode() & 0o077 != 0 {
        return Some(format!("the socket file is open to other users: {SERVICE}"));
    }
    None
}

/// Whether the socket is below `/run`, except `/run/user`.
#[cfg(unix)]
fn is_of_services(socket: &Path) -> bool {
    ["/run", "/var/run"]
        .iter()
        .any(|run| socket.starts_with(run) && !socket.starts_with(Path::new(run).join("user")))
}

/// Opens a file beside the socket for appending, and creates it if it is missing. Refuses symbolic
/// links and other users' files.
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
            let text = "it belongs to another user or isn't a regular file: remove it, or choose \
                        another place";
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
    fn root_starts_no_daemon_where_services_have_their_sockets() {
        for socket in ["/run/syncd/syncd.sock", "/var/run/x.sock", "/run//y/s.sock"] {
            assert!(is_of_services(Path::new(socket)), "{socket}");
        }
        for socket in ["/run/user/0/syncd.sock", "/srv/run/s.sock", "/runs/s.sock"] {
            assert!(!is_of_services(Path::new(socket)), "{socket}");
        }
    }

    #[test]
    fn no_daemon_is_started_where_a_socket_was_open_to_other_users() {
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
    fn no_link_and_no_other_users_file_is_opened() {
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
