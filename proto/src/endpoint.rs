//! Where a daemon listens: the path of its socket (of a named pipe on Windows), how clients find it,
//! and the check that no other user could have put it there.

use std::{env, fmt, fs, io, path::Path, str::FromStr};

#[cfg(unix)]
mod place;

/// The address of a daemon on this machine: the absolute path of a Unix socket, or on Windows
/// of a named pipe (`\\.\pipe\name`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(String);

/// Why a text isn't an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointError {
    /// It is empty, or has a NUL in it.
    Malformed(String),
    /// It is longer than a socket's address may be.
    TooLong {
        /// The path.
        path: String,
        /// The longest path, in bytes.
        max: usize,
    },
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(path) => {
                write!(f, "{path:?} isn't a socket path: give an absolute path")
            }
            Self::TooLong { path, max } => {
                write!(f, "socket path {path:?} is longer than {max} bytes: use a shorter one")
            }
        }
    }
}

impl std::error::Error for EndpointError {}

/// `$SYNCD_NAMESPACE`: the namespace of a client that names none. If it is empty or unset, the
/// user's default one.
pub fn namespace_from_env() -> String {
    env::var_os("SYNCD_NAMESPACE").unwrap_or_default().to_string_lossy().into_owned()
}

/// The room for a path in a `sockaddr_un`, without its NUL, in bytes.
#[cfg(unix)]
const MAX_PATH: usize =
    if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };
#[cfg(windows)]
const MAX_PATH: usize = 256;

impl Endpoint {
    /// `$SYNCD_SOCKET` if it is set, else [the user's own](Self::of_user).
    ///
    /// # Errors
    /// If `$SYNCD_SOCKET` isn't a usable path.
    pub fn from_env_or_default() -> Result<Self, EndpointError> {
        match env::var_os("SYNCD_SOCKET").filter(|v| !v.is_empty()) {
            Some(path) => match path.into_string() {
                Ok(path) => path.parse(),
                Err(path) => Err(EndpointError::Malformed(path.to_string_lossy().into_owned())),
            },
            None => Ok(Self::of_user()),
        }
    }

    /// The default endpoint of a user's processes. It depends on the user id alone:
    /// `/tmp/syncd-<uid>/syncd.sock`, for root on Linux
    /// `/run/syncd-0/syncd.sock`, on macOS below `/private/tmp`, in Termux below its own `tmp`;
    /// on Windows `\\.\pipe\syncd-<user>`.
    pub fn of_user() -> Self {
        #[cfg(unix)]
        let path = place::default_socket(effective_user()).display().to_string();
        #[cfg(windows)]
        let path = format!(r"\\.\pipe\syncd-{}", user_name());
        Self(path)
    }

    /// Whether this is [the user's own](Self::of_user), however its path is spelt.
    pub fn is_of_user(&self) -> bool {
        self.as_path() == Self::of_user().as_path()
    }

    /// Whether the user's other processes see something else at this path, because this process has
    /// a private `/tmp`: in a systemd unit with `PrivateTmp=`. (Other private `/tmp`s, such as a
    /// container's, aren't recognised.)
    pub fn is_hidden(&self) -> bool {
        #[cfg(unix)]
        return place::is_hidden(self.as_path());
        #[cfg(windows)]
        false
    }

    /// The socket's path or the pipe's name.
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The directory of the socket; on Windows, a private one for lock file and log.
    pub fn directory(&self) -> std::path::PathBuf {
        if cfg!(windows) {
            return env::temp_dir().join("syncd");
        }
        self.as_path().parent().unwrap_or(Path::new("/")).to_owned()
    }

    /// Makes the socket's directory (mode 0700) if it is missing, and verifies it. For a daemon, or a
    /// process that starts one.
    ///
    /// # Errors
    /// If it can't be made; else those of [`verify_directory`](Self::verify_directory).
    pub fn prepare_directory(&self) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        // The parent of the user's own directory is the system's, and never made here.
        match builder.recursive(!self.is_of_user()).create(self.directory()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.verify_directory(),
        }
    }

    /// Verifies that the directory of the [user's own](Self::of_user) endpoint is private: not a
    /// symbolic link, owned by this user, mode 0700, and in a directory where only root and the user
    /// could have put it. For any other endpoint it does nothing;
    /// [`connect`](crate::socket::connect) still checks which user's daemon answers.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory; `PermissionDenied`, with the reason in its text, if
    /// it belongs to another user or is open to others.
    pub fn verify_directory(&self) -> io::Result<()> {
        #[cfg(unix)]
        if self.is_of_user() {
            return place::verify_private(&self.directory(), effective_user());
        }
        Ok(())
    }

    /// The user to trust with this endpoint besides root and this process's: the owner of the
    /// socket's directory, if no other user could have put it there.
    #[cfg(unix)]
    pub(crate) fn keeper(&self) -> io::Result<u32> {
        place::owner(&self.directory(), effective_user())
    }
}

/// The user's name from the system, not from `%USERNAME%`.
#[cfg(windows)]
fn user_name() -> String {
    let mut name = [0u16; 257];
    let mut length = name.len() as u32;
    // SAFETY: it writes at most `length` units, and sets `length` to their number with the NUL.
    let known = unsafe {
        windows_sys::Win32::System::WindowsProgramming::GetUserNameW(
            name.as_mut_ptr(),
            &raw mut length,
        )
    };
    let length = if known == 0 { 0 } else { (length as usize).saturating_sub(1) };
    String::from_utf16_lossy(&name[..length])
}

#[cfg(unix)]
fn effective_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// A relative path is resolved against the working directory, and kept as an absolute one.
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
    use super::*;

    #[test]
    fn an_endpoint_is_parsed_from_its_text() {
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
    fn a_text_that_is_no_path_of_a_socket_is_refused() {
        assert!(matches!("".parse::<Endpoint>(), Err(EndpointError::Malformed(_))));
        assert!(matches!("a\0b".parse::<Endpoint>(), Err(EndpointError::Malformed(_))));
        let long = format!("/{}", "x".repeat(MAX_PATH));
        assert!(matches!(long.parse::<Endpoint>(), Err(EndpointError::TooLong { .. })));
    }

    #[test]
    fn no_spelling_of_the_users_own_place_escapes_its_check() {
        let own = Endpoint::of_user();
        let (dir, name) = (own.directory(), own.as_path().file_name().unwrap().to_owned());
        for spelling in ["", "/", "//", "/./"] {
            let text = format!("{}{spelling}/{}", dir.display(), name.to_string_lossy());
            assert!(text.parse::<Endpoint>().unwrap().is_of_user(), "{text}");
        }
        assert!(!"/tmp/other/syncd.sock".parse::<Endpoint>().unwrap().is_of_user());
    }
}
