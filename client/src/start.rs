//! Starting a daemon: probe, lock, spawn, await readiness. No step waits, so that threads and tasks
//! can wait between the steps and be interrupted.

mod again;
mod command;
#[cfg(unix)]
mod detach;
#[cfg(windows)]
#[path = "start/detach_windows.rs"]
mod detach;
mod ground;

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use syncd_proto::{Endpoint, socket};

use crate::error::is_absent;
pub(crate) use again::{Again, Missed};
use command::{Plan, plans};
use detach::{Detached, Said};

/// How long another process's daemon may take to come up after the one started here has exited.
const RIVAL: Duration = Duration::from_millis(500);

/// How long to wait for the start lock. A process that holds it longer is stopped, or is a fork of
/// the holder. Going on without it is safe: the daemon's own lock decides.
const START_LOCK: Duration = Duration::from_secs(2);

/// How long a daemon may take to start in a systemd scope before it is started without one.
const SCOPE: Duration = Duration::from_secs(2);

/// A daemon couldn't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The daemon's program can't be run.
    #[error("can't start the daemon {program:?}: {source} (install syncd, or set SYNCD_DAEMON)")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The error of execve(2).
        source: io::Error,
    },
    /// The directory, lock file or log can't be made.
    #[error(
        "can't prepare {path:?} for a daemon: {source} (set SYNCD_SOCKET to use another place)"
    )]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// Why it can't be made or opened.
        source: io::Error,
    },
    /// The daemon exited instead of listening.
    #[error("the daemon {program:?} exited at once; the end of its log {log:?}:\n{words}")]
    Exited {
        /// The program.
        program: PathBuf,
        /// The log, with the daemon's standard error.
        log: PathBuf,
        /// The last lines of the log.
        words: String,
    },
    /// Only another process should start a daemon at this place.
    #[error("no daemon listens at {endpoint}, and this process doesn't start one there: {reason}")]
    NotOurs {
        /// The endpoint that was tried.
        endpoint: Endpoint,
        /// Whose place it is, and what to do.
        reason: String,
    },
    /// The daemon didn't listen in time.
    #[error("no daemon came up at {endpoint} within {after:?}: {state} (its log is {log:?})")]
    TimedOut {
        /// The daemon's endpoint.
        endpoint: Endpoint,
        /// How long was waited.
        after: Duration,
        /// What was waited for.
        state: &'static str,
        /// The log, with the daemon's standard error.
        log: PathBuf,
    },
}

/// The command that starts a daemon, without `--socket` and `--idle-exit`.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
}

/// Whether the environment allows starting a daemon: `$SYNCD_NO_AUTOSTART` is unset or empty.
pub(crate) fn is_allowed() -> bool {
    env::var_os("SYNCD_NO_AUTOSTART").is_none_or(|value| value.is_empty())
}

/// Returns when a daemon listens at `endpoint`, having started it if necessary. Fails after 0.9
/// `limit`, so that a caller with that limit still gets the reason.
///
/// # Cancel safety
/// Safe: a daemon that was spawned comes up anyway.
pub(crate) async fn ensure(
    endpoint: &Endpoint,
    daemon: Option<&Daemon>,
    limit: Duration,
) -> Result<(), StartError> {
    let mut start = Start::new(endpoint, daemon, limit * 9 / 10)?;
    while let Step::Wait(pause) = start.step()? {
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A daemon listens.
    Up,
    /// Take the next step after this pause; sooner, or never, is allowed, too.
    Wait(Duration),
}

/// One attempt to start a daemon, made of [steps](Self::step).
pub(crate) struct Start {
    endpoint: Endpoint,
    begun: Instant,
    patience: Duration,
    plans: std::vec::IntoIter<Plan>,
    plan: Plan,
    log_path: PathBuf,
    lock: StartLock,
    phase: Phase,
    pause: Duration,
}

enum Phase {
    /// Another process may be starting a daemon.
    Locking,
    Spawning,
    Rising {
        child: Detached,
        since: Instant,
        log_start: u64,
    },
    /// Another daemon has the place, but doesn't listen yet or any more.
    Yielding {
        since: Instant,
    },
    /// The daemon exited with an error.
    Exited {
        since: Instant,
        log_start: u64,
    },
}

impl Start {
    /// Checks and prepares the place.
    pub(crate) fn new(
        endpoint: &Endpoint,
        daemon: Option<&Daemon>,
        patience: Duration,
    ) -> Result<Self, StartError> {
        ground::check(endpoint)?;
        let directory = endpoint.directory();
        let prepared = endpoint.prepare_directory();
        prepared.map_err(|source| StartError::Prepare { path: directory.clone(), source })?;
        let beside = |suffix: &str| {
            let name = endpoint.as_path().file_name().unwrap_or("syncd".as_ref());
            directory.join(format!("{}{suffix}", name.to_string_lossy()))
        };
        let lock = StartLock::open(beside(".start"))?;
        let log_path = beside(".log");
        let mut plans = plans(endpoint, daemon, &log_path).into_iter();
        let plan = plans.next().expect("there is always a plain plan");
        Ok(Self {
            endpoint: endpoint.clone(),
            begun: Instant::now(),
            patience,
            plans,
            plan,
            log_path,
            lock,
            phase: Phase::Locking,
            pause: Duration::from_millis(1),
        })
    }

    /// Continues as far as possible without waiting.
    pub(crate) fn step(&mut self) -> Result<Step, StartError> {
        loop {
            if !self.is_absent() {
                return Ok(Step::Up);
            }
            if self.begun.elapsed() >= self.patience {
                return Err(self.timed_out());
            }
            if let Some(next) = self.advance()? {
                self.phase = next;
                continue;
            }
            let pause = self.pause;
            self.pause = (pause * 2).min(Duration::from_millis(50));
            return Ok(Step::Wait(pause));
        }
    }

    fn is_absent(&self) -> bool {
        socket::probe(&self.endpoint).is_err_and(|error| is_absent(&error))
    }

    /// The next phase, if it is due.
    fn advance(&mut self) -> Result<Option<Phase>, StartError> {
        Ok(match &mut self.phase {
            Phase::Locking => {
                let is_ours = self.lock.try_lock()? || self.begun.elapsed() >= START_LOCK;
                // `step` probes again before it spawns: the former holder may have started one.
                is_ours.then_some(Phase::Spawning)
            }
            Phase::Spawning => Some(self.spawn()?),
            Phase::Rising { child, since, log_start } => {
                let (since, log_start) = (*since, *log_start);
                match child.said() {
                    Said::Nothing if self.plan.is_scoped && since.elapsed() >= SCOPE => {
                        self.next_plan()
                    }
                    Said::Nothing => None,
                    Said::Busy => Some(Phase::Yielding { since: Instant::now() }),
                    Said::Exited if self.plan.is_scoped => self.next_plan(),
                    Said::Exited => Some(Phase::Exited { since: Instant::now(), log_start }),
                }
            }
            Phase::Yielding { since } => {
                (since.elapsed() >= Duration::from_millis(50)).then_some(Phase::Spawning)
            }
            Phase::Exited { since, log_start } if since.elapsed() >= RIVAL => {
                return Err(StartError::Exited {
                    program: self.plan.program.clone(),
                    log: self.log_path.clone(),
                    words: last_words(&self.log_path, *log_start),
                });
            }
            Phase::Exited { .. } => None,
        })
    }

    fn next_plan(&mut self) -> Option<Phase> {
        self.plan = self.plans.next()?;
        Some(Phase::Spawning)
    }

    fn spawn(&mut self) -> Result<Phase, StartError> {
        let path = &self.log_path;
        let prepare = |source| StartError::Prepare { path: path.clone(), source };
        let mut log = ground::open_own(path).map_err(prepare)?;
        let log_start = log.seek(SeekFrom::End(0)).unwrap_or(0);
        match detach::spawn(&self.plan, &log) {
            Ok(child) => Ok(Phase::Rising { child, since: Instant::now(), log_start }),
            Err(source) => match self.next_plan() {
                Some(next) => Ok(next),
                None => Err(StartError::Spawn { program: self.plan.program.clone(), source }),
            },
        }
    }

    fn timed_out(&self) -> StartError {
        let state = match self.phase {
            Phase::Locking => "another process is starting one",
            Phase::Yielding { .. } => "another daemon holds the lock file, but doesn't listen",
            _ => "it was started, but doesn't listen",
        };
        let (endpoint, log) = (self.endpoint.clone(), self.log_path.clone());
        StartError::TimedOut { endpoint, after: self.patience, state, log }
    }
}

/// The lock that a client holds while it starts a daemon, so that many clients start one.
struct StartLock {
    path: PathBuf,
    file: File,
    is_ours: bool,
}

impl StartLock {
    fn open(path: PathBuf) -> Result<Self, StartError> {
        match ground::open_own(&path) {
            Ok(file) => Ok(Self { path, file, is_ours: false }),
            Err(source) => Err(StartError::Prepare { path, source }),
        }
    }

    fn try_lock(&mut self) -> Result<bool, StartError> {
        use std::fs::TryLockError;
        match self.file.try_lock() {
            Ok(()) => self.is_ours = true,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => {
                return Err(StartError::Prepare { path: self.path.clone(), source });
            }
        }
        Ok(self.is_ours)
    }
}

impl Drop for StartLock {
    fn drop(&mut self) {
        // Closing isn't enough: a process forked meanwhile shares the open file, and so the flock.
        if self.is_ours {
            let _ = self.file.unlock();
        }
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

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn endpoint(dir: &tempfile::TempDir) -> Endpoint {
        dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
    }

    #[test]
    fn the_start_lock_is_free_again_though_a_forked_process_has_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("start");
        let mut lock = StartLock::open(path.clone()).unwrap();
        assert!(lock.try_lock().unwrap());
        // As after a fork: another descriptor of the same open file.
        let _inherited = lock.file.try_clone().unwrap();
        let mut other = StartLock::open(path).unwrap();
        assert!(!other.try_lock().unwrap());
        drop(lock);
        assert!(other.try_lock().unwrap());
    }

    #[tokio::test]
    async fn the_wait_for_a_daemon_that_never_listens_ends_and_says_what_was_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", "exec sleep 2"].map(OsString::from).to_vec();
        let daemon = Daemon { program: "sh".into(), args };
        let patience = Duration::from_millis(100);
        let error = ensure(&endpoint(&dir), Some(&daemon), patience).await.unwrap_err();
        assert!(matches!(error, StartError::TimedOut { .. }), "{error}");
        assert!(error.to_string().contains("doesn't listen"), "{error}");
    }

    #[test]
    fn no_step_waits() {
        let dir = tempfile::tempdir().unwrap();
        let args = ["-c", "exec sleep 2"].map(OsString::from).to_vec();
        let daemon = Daemon { program: "sh".into(), args };
        let mut start = Start::new(&endpoint(&dir), Some(&daemon), Duration::MAX).unwrap();
        assert!(matches!(start.step().unwrap(), Step::Wait(_)));
        assert!(matches!(start.phase, Phase::Rising { .. }));
        assert!(matches!(start.step().unwrap(), Step::Wait(_)));
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("s.sock")).unwrap());
        assert!(matches!(start.step().unwrap(), Step::Wait(_)), "a stale socket");
        std::fs::remove_file(dir.path().join("s.sock")).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(dir.path().join("s.sock")).unwrap();
        assert_eq!(start.step().unwrap(), Step::Up);
    }
}
