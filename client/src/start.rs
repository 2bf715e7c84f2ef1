//! Starting a daemon where there is none: probe, lock, spawn, await readiness, each a step that
//! doesn't wait, so that threads and tasks can both wait between them and be interrupted. Never
//! here: what is said to the daemon once it listens.

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

/// After a daemon that was started has exited, somebody else's may still come up.
const RIVAL: Duration = Duration::from_millis(500);

/// Whoever has the start lock for longer is stopped, or is a fork of who had it: the daemon's own
/// lock decides in the end, so to go on without this one does no harm.
const START_LOCK: Duration = Duration::from_secs(2);

/// How long a daemon that is to get a systemd scope of its own may take before it is started
/// without one.
const SCOPE: Duration = Duration::from_secs(2);

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
    #[error("can't prepare {path:?} for a daemon: {source} (SYNCD_SOCKET names another place)")]
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
    /// It is not for this process to start one there.
    #[error("no daemon listens at {endpoint}, and none is started there: {reason}")]
    NotOurs {
        /// Where it was looked for.
        endpoint: Endpoint,
        /// Whose place it is, and what to do.
        reason: String,
    },
    /// It didn't listen in time.
    #[error("no daemon came up at {endpoint} within {after:?}: {state} (its log is {log:?})")]
    TimedOut {
        /// Where it was to listen.
        endpoint: Endpoint,
        /// How long that was.
        after: Duration,
        /// What was waited for.
        state: &'static str,
        /// Where its standard error goes.
        log: PathBuf,
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

/// Returns when a daemon listens at `endpoint`, having started it unless somebody else did; within
/// somewhat less than `limit`, so that its reason is heard by a caller who waits so long.
///
/// # Cancel safety
/// Safe: a daemon that was started comes up all the same.
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

/// What is to be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A daemon listens.
    Up,
    /// The next step, after so long: it may be taken sooner, or never.
    Wait(Duration),
}

/// One attempt to have a daemon listen, made of [steps](Self::step).
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
    /// Somebody else may be about to start one.
    Locking,
    Spawning,
    Rising {
        child: Detached,
        since: Instant,
        log_start: u64,
    },
    /// Another daemon has the place, and doesn't listen yet, or no longer.
    Yielding {
        since: Instant,
    },
    /// It exited, for a reason of its own.
    Exited {
        since: Instant,
        log_start: u64,
    },
}

impl Start {
    /// Prepares the place.
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
        let plan = plans.next().expect("there is always a plain one");
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

    /// Goes on as far as is possible without waiting.
    pub(crate) fn step(&mut self) -> Result<Step, StartError> {
        loop {
            if !self.is_nobody_there() {
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

    fn is_nobody_there(&self) -> bool {
        socket::probe(&self.endpoint).is_err_and(|error| is_absent(&error))
    }

    /// The phase that comes next, if it has come.
    fn advance(&mut self) -> Result<Option<Phase>, StartError> {
        Ok(match &mut self.phase {
            Phase::Locking => {
                let is_ours = self.lock.try_lock()? || self.begun.elapsed() >= START_LOCK;
                // Who had it before may have started one: looked for once more.
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
            Phase::Locking => "another process is about to start one",
            Phase::Yielding { .. } => "another daemon has its lock file, and is on its way out",
            _ => "it was started, and doesn't listen",
        };
        let (endpoint, log) = (self.endpoint.clone(), self.log_path.clone());
        StartError::TimedOut { endpoint, after: self.patience, state, log }
    }
}

/// Held by who starts a daemon, so that a crowd of clients starts one.
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
        // To close it isn't enough: a process forked meanwhile has the same open file.
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
        // What a fork makes: another descriptor of the same open file.
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
