//! Where a daemon listens: the socket's path (a named pipe's on Windows), how it is found, and
//! the check that nobody else could have put it there. Never here: connecting.

use std::{env, fmt, fs, io, path::Path, str::FromStr};

/// The address of a daemon on this machine: the absolute path of a Unix socket, or on Windows
/// of a named pipe (`\\.\pipe\name`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

/// Why a text names no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointError {
    /// It is empty or has a NUL in it.
    Malformed(String),
    /// The system has room for fewer bytes in a socket's address: `max` of them.
    TooLong {
        /// The path that didn't fit.
        path: String,
        /// The most that fits, in bytes.
        max: usize,
    },
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(path) => write!(f, "{path:?} is no socket path: give an absolute one"),
            Self::TooLong { path, max } => {
                write!(f, "socket path {path:?} is longer than {max} bytes: use a shorter one")
            }
        }
    }
}

impl std::error::Error for EndpointError {}

/// What a `sockaddr_un` holds besides its NUL.
#[cfg(unix)]
const MAX_PATH: usize =
    if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };
#[cfg(windows)]
const MAX_PATH: usize = 256;

impl Endpoint {
    /// `$SYNCD_SOCKET` if it is set, else the user's own: `$XDG_RUNTIME_DIR/syncd/syncd.sock`,
    /// else `<tmp>/syncd-<uid>/syncd.sock`; on Windows `\\.\pipe\syncd-<user>`.
    ///
    /// # Errors
    /// If `$SYNCD_SOCKET` is no usable path.
    pub fn from_env_or_default() -> Result<Self, EndpointError> {
        match env::var_os("SYNCD_SOCKET").filter(|v| !v.is_empty()) {
            Some(path) => match path.into_string() {
                Ok(path) => path.parse(),
                Err(path) => Err(EndpointError::Malformed(path.to_string_lossy().into_owned())),
            },
            None => Self::default_of_user().parse(),
        }
    }

    #[cfg(unix)]
    fn default_of_user() -> String {
        match env::var("XDG_RUNTIME_DIR") {
            Ok(dir) if dir.starts_with('/') => format!("{dir}/syncd/syncd.sock"),
            _ => {
                let uid = rustix::process::geteuid().as_raw();
                format!("{}/syncd-{uid}/syncd.sock", env::temp_dir().display())
            }
        }
    }

    #[cfg(windows)]
    fn default_of_user() -> String {
        format!(r"\\.\pipe\syncd-{}", env::var("USERNAME").unwrap_or_default())
    }

    /// The socket's path or the pipe's name.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The directory of the socket; on Windows a private one for lock file and log.
    pub fn directory(&self) -> std::path::PathBuf {
        if cfg!(windows) {
            return env::temp_dir().join("syncd");
        }
        self.as_path().parent().unwrap_or(Path::new("/")).to_owned()
    }

    /// Makes the socket's directory (mode 0700) if it is missing, and verifies it. For the
    /// daemon, and for whoever is about to start one.
    ///
    /// # Errors
    /// If it can't be made, or as [`verify_directory`](Self::verify_directory).
    pub fn prepare_directory(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(self.directory())?;
        self.verify_directory()
    }

    /// Verifies that the directory of the user's default endpoint is the user's alone: no
    /// symbolic link, owned by this user, mode 0700. A path that somebody chose is taken at
    /// their word; there, [`connect`](crate::socket::connect) still checks who answers.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory, `PermissionDenied` with the reason in words if
    /// it is somebody else's or open to others.
    pub fn verify_directory(&self) -> io::Result<()> {
        #[cfg(unix)]
        if self.0 == Self::default_of_user() {
            return verify_private(&self.directory());
        }
        Ok(())
    }
}

#[cfg(unix)]
fn verify_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    let found = fs::symlink_metadata(dir)?;
    let fault = if !found.is_dir() {
        "is not a directory"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "is open to other users (chmod 700 it)"
    } else {
        return Ok(());
    };
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} {fault}: set SYNCD_SOCKET to a socket elsewhere, or put it right",
            dir.display()
        ),
    ))
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// A relative path is taken from the working directory, and kept as an absolute one.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        if text.is_empty() || text.contains('\0') {
            return Err(malformed());
        }
        #[cfg(unix)]
        let path = std::path::absolute(text)
            .ok()
            .and_then(|path| path.into_os_string().into_string().ok())
            .ok_or_else(malformed)?;
        #[cfg(windows)]
        let path = match text.starts_with(r"\\") {
            true => text.to_owned(),
            false => format!(r"\\.\pipe\{}", text.replace(['\\', '/'], "-")),
        };
        if path.len() > MAX_PATH {
            return Err(EndpointError::TooLong { path, max: MAX_PATH });
        }
        Ok(Self(path))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn text_and_endpoint_are_two_forms_of_the_same() {
        let endpoint: Endpoint = "/run/x/syncd.sock".parse().unwrap();
        assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
        assert_eq!(endpoint.directory(), Path::new("/run/x"));
    }

    #[test]
    fn a_relative_path_becomes_absolute() {
        let endpoint: Endpoint = "syncd.sock".parse().unwrap();
        assert!(endpoint.as_path().is_absolute());
    }

    #[test]
    fn what_no_socket_can_be_named_is_refused() {
        assert!(matches!("".parse::<Endpoint>(), Err(EndpointError::Malformed(_))));
        assert!(matches!("a\0b".parse::<Endpoint>(), Err(EndpointError::Malformed(_))));
        let long = format!("/{}", "x".repeat(MAX_PATH));
        assert!(matches!(long.parse::<Endpoint>(), Err(EndpointError::TooLong { .. })));
    }

    #[test]
    fn a_directory_open_to_others_or_reached_by_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        set(0o755);
        let refused = verify_private(dir.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        set(0o700);
        verify_private(dir.path()).unwrap();

        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        assert!(verify_private(&link).is_err());
        let absent = verify_private(&dir.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
