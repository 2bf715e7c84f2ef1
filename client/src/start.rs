//! Finding the daemon, and starting one if there is none: lock, probe, spawn, await readiness.
//! Never here: what is said to it once it listens.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use syncd_proto::{Endpoint, socket};
use tokio::time::sleep;

use crate::error::is_absent;

/// How long a daemon that was started for a client stays with nothing to do.
const IDLE_EXIT: &str = "300s";

/// After a daemon that was started has exited, somebody else's may still come up.
const RIVAL: Duration = Duration::from_millis(500);

/// A daemon was to be started, and isn't there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such program.
    #[error("can't start the daemon {program:?}: {source} (install syncd, or set SYNCD_DAEMON)")]
    Spawn {
        /// What was to be run.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its directory, lock file or log can't be made.
    #[error("can't prepare {path:?} for a daemon: {source}")]
    Prepare {
        /// What was to be made or opened.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It exited instead of listening.
    #[error("the daemon {program:?} exited at once; its last words, in {log:?}:\n{words}")]
    Exited {
        /// What was run.
        program: PathBuf,
        /// Where its standard error went.
        log: PathBuf,
        /// The last lines of it.
        words: String,
    },
}

/// The command that starts a daemon, without the arguments that say where it listens.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
}

/// Whether a client may start a daemon at all: `$SYNCD_NO_AUTOSTART` is unset or empty.
pub(crate) fn is_allowed() -> bool {
    env::var_os("SYNCD_NO_AUTOSTART").is_none_or(|value| value.is_empty())
}

/// Returns when a daemon listens at `endpoint`, having started it unless somebody else did.
/// For ever, if neither comes up nor exits: the caller bounds it.
pub(crate) async fn ensure(endpoint: &Endpoint, daemon: Option<&Daemon>) -> Result<(), StartError> {
    let prepare = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::Prepare { path, source }
    };
    let directory = endpoint.directory();
    endpoint.prepare_directory().map_err(prepare(&directory))?;
    let beside = |suffix: &str| {
        let name = endpoint.as_path().file_name().unwrap_or(OsStr::new("syncd"));
        directory.join(format!("{}{suffix}", name.to_string_lossy()))
    };
    let lock_path = beside(".start");
    let lock = OpenOptions::new().create(true).append(true).open(&lock_path);
    let lock = lock.map_err(prepare(&lock_path))?;
    while let Err(error) = lock.try_lock() {
        if let std::fs::TryLockError::Error(source) = error {
            return Err(prepare(&lock_path)(source));
        }
        sleep(Duration::from_millis(5)).await;
    }
    if !is_nobody_there(endpoint).await {
        return Ok(());
    }
    let log_path = beside(".log");
    let log = OpenOptions::new().create(true).append(true).open(&log_path);
    let mut log = log.map_err(prepare(&log_path))?;
    let log_start = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let mut command = command(endpoint, daemon);
    command.stdin(Stdio::null()).stderr(log);
    let program = PathBuf::from(command.get_program());
    let mut child = spawn_detached(command)
        .map_err(|source| StartError::Spawn { program: program.clone(), source })?;

    let mut pause = Duration::from_millis(1);
    let mut gone_for = Duration::ZERO;
    while is_nobody_there(endpoint).await {
        if child.has_exited() {
            if gone_for >= RIVAL {
                let words = last_words(&log_path, log_start);
                return Err(StartError::Exited { program, log: log_path, words });
            }
            gone_for += pause;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

async fn is_nobody_there(endpoint: &Endpoint) -> bool {
    socket::connect(endpoint).await.is_err_and(|error| is_absent(&error))
}

/// The client's choice, `$SYNCD_DAEMON`, a `syncd` beside this program, or one on the path.
fn command(endpoint: &Endpoint, daemon: Option<&Daemon>) -> Command {
    let mut command = match daemon {
        Some(Daemon { program, args }) => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
        None => Command::new(
            env::var_os("SYNCD_DAEMON")
                .filter(|program| !program.is_empty())
                .or_else(|| {
                    let name = format!("syncd{}", env::consts::EXE_SUFFIX);
                    let beside = env::current_exe().ok()?.with_file_name(name);
                    beside.is_file().then(|| beside.into_os_string())
                })
                .unwrap_or_else(|| "syncd".into()),
        ),
    };
    command.arg("--socket").arg(endpoint.as_path()).args(["--idle-exit", IDLE_EXIT]);
    command
}

/// A daemon in its own session, and nobody's child, so that nobody need reap it. Its standard
/// output is a pipe, at whose end one sees it exit.
#[cfg(unix)]
struct Detached(std::process::ChildStdout);

#[cfg(unix)]
fn spawn_detached(mut command: Command) -> io::Result<Detached> {
    use std::os::unix::process::CommandExt as _;

    command.stdout(Stdio::piped());
    // SAFETY: only calls that are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::fork() {
                -1 => Err(io::Error::last_os_error()),
                0 => Ok(()),
                _ => libc::_exit(0),
            }
        });
    }
    let mut between = command.spawn()?;
    between.wait()?;
    let stdout = between.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    rustix::io::ioctl_fionbio(&stdout, true)?;
    Ok(Detached(stdout))
}

#[cfg(unix)]
impl Detached {
    fn has_exited(&mut self) -> bool {
        loop {
            match self.0.read(&mut [0; 256]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(windows)]
struct Detached(std::process::Child);

#[cfg(windows)]
fn spawn_detached(mut command: Command) -> io::Result<Detached> {
    use std::os::windows::process::CommandExt as _;

    const DETACHED_PROCESS: u32 = 0x8;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    command.stdout(Stdio::null()).creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
    command.spawn().map(Detached)
}

#[cfg(windows)]
impl Detached {
    fn has_exited(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|status| status.is_some())
    }
}

fn last_words(log: &Path, start: u64) -> String {
    const LINES: usize = 5;
    let read = || {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(1 << 16).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    match lines.split_at(lines.len().saturating_sub(LINES)) {
        (_, []) => "(none)".to_owned(),
        (_, last) => last.join("\n"),
    }
}
