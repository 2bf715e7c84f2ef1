//! Where a daemon listens: the socket's path (a named pipe's on Windows), how it is found, and the
//! check that nobody else could have put it there.

use std::{env, fmt, fs, io, path::Path, str::FromStr};

#[cfg(unix)]
mod place;

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

/// `$SYNCD_NAMESPACE`: the namespace of whoever names none. Empty, or unset, is the user's own.
pub fn namespace_from_env() -> String {
    env::var_os("SYNCD_NAMESPACE").unwrap_or_default().to_string_lossy().into_owned()
}

/// What a `sockaddr_un` holds besides its NUL.
#[cfg(unix)]
const MAX_PATH: usize =
    if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };
#[cfg(windows)]
const MAX_PATH: usize = 256;

impl Endpoint {
    /// `$SYNCD_SOCKET` if it is set, else [the user's own](Self::of_user).
    ///
    /// # Errors
    /// If `$SYNCD_SOCKET` is no usable path.
    pub fn from_env_or_default() -> Result<Self, EndpointError> {
        match env::var_os("SYNCD_SOCKET").filter(|v| !v.is_empty()) {
            Some(path) => match path.into_string() {
                Ok(path) => path.parse(),
                Err(path) => Err(EndpointError::Malformed(path.to_string_lossy().into_owned())),
            },
            None => Ok(Self::of_user()),
        }
    }

    /// The place where all processes of a user meet unless they are told otherwise. It depends
    /// on the user id alone: `/tmp/syncd-<uid>/syncd.sock`, for root on Linux
    /// `/run/syncd-0/syncd.sock`, on macOS below `/private/tmp`, in Termux below its own `tmp`;
    /// on Windows `\\.\pipe\syncd-<user>`.
    pub fn of_user() -> Self {
        #[cfg(unix)]
        let path = place::default_socket(effective_user()).display().to_string();
        #[cfg(windows)]
        let path = format!(r"\\.\pipe\syncd-{}", user_name());
        Self(path)
    }

    /// Whether this is [the user's own](Self::of_user), however it was spelt.
    pub fn is_of_user(&self) -> bool {
        self.as_path() == Self::of_user().as_path()
    }

    /// Whether only this process and its like can see what is at this path, and the user's other
    /// processes something else: in a systemd unit with `PrivateTmp=`. (Other ways to have a
    /// `/tmp` of one's own, such as a container's, can't be told.)
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
        // Of the user's own place, the directory around it is the system's or there is none.
        match builder.recursive(!self.is_of_user()).create(self.directory()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.verify_directory(),
        }
    }

    /// Verifies that the directory of the user's own endpoint is the user's alone: no symbolic
    /// link, owned by this user, mode 0700, and in a directory where nobody but root and the user
    /// could have put it. A path that somebody chose is taken at their word; there,
    /// [`connect`](crate::socket::connect) still checks who answers.
    ///
    /// # Errors
    /// `NotFound` if there is no such directory, `PermissionDenied` with the reason in words if
    /// it is somebody else's or open to others.
    pub fn verify_directory(&self) -> io::Result<()> {
        #[cfg(unix)]
        if self.is_of_user() {
            return place::verify_private(&self.directory(), effective_user());
        }
        Ok(())
    }

    /// The user whom to trust with this endpoint beside oneself and root: the owner of the
    /// socket's directory, if no fourth could have put that there.
    #[cfg(unix)]
    pub(crate) fn keeper(&self) -> io::Result<u32> {
        place::owner(&self.directory(), effective_user())
    }
}

/// As the system knows it, and not as `%USERNAME%` says.
#[cfg(windows)]
fn user_name() -> String {
    let mut name = [0u16; 257];
    let mut length = name.len() as u32;
    // SAFETY: it writes at most `length` units, and says how many with the NUL at their end.
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
