//! Starts a daemon again that went while it had sessions. Any client that misses it may.

use std::time::{Duration, Instant};

use syncd_proto::Endpoint;

use super::{Daemon, Start, Step};

/// How long a daemon may take to listen before another attempt is made.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first pause after a failed attempt; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Starts a daemon again; see the [module](self).
pub(crate) struct Again {
    endpoint: Endpoint,
    daemon: Option<Daemon>,
    start: Option<Start>,
    not_before: Option<Instant>,
    pause: Duration,
}

/// The result so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// A daemon listens.
    Up,
    /// A daemon is being started, here or by another process; or the next attempt isn't due yet.
    Awaited,
    /// The attempt failed, for this reason; another follows after a pause.
    Failed(String),
}

impl Again {
    pub(crate) fn new(endpoint: &Endpoint, daemon: Option<&Daemon>) -> Self {
        Self {
            endpoint: endpoint.clone(),
            daemon: daemon.cloned(),
            start: None,
            not_before: None,
            pause: PAUSE,
        }
    }

    /// No daemon listens: continues starting one, as far as possible without waiting.
    pub(crate) fn miss(&mut self, now: Instant) -> Missed {
        if self.not_before.is_some_and(|at| now < at) {
            return Missed::Awaited;
        }
        let start = match self.start.take() {
            Some(start) => Ok(start),
            None => Start::new(&self.endpoint, self.daemon.as_ref(), PATIENCE),
        };
        let stepped = start.and_then(|mut start| start.step().map(|step| (start, step)));
        match stepped {
            Ok((_, Step::Up)) => Missed::Up,
            Ok((start, Step::Wait(_))) => {
                self.start = Some(start);
                Missed::Awaited
            }
            Err(error) => {
                self.not_before = Some(now + self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Missed::Failed(error.to_string())
            }
        }
    }

    /// A daemon listens: resets the attempts.
    pub(crate) fn found(&mut self) {
        (self.start, self.not_before, self.pause) = (None, None, PAUSE);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{os::unix::net::UnixListener, thread::sleep};

    use super::*;

    fn again(dir: &tempfile::TempDir, script: &str) -> Again {
        let endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let daemon = Daemon { program: "sh".into(), args: vec!["-c".into(), script.into()] };
        Again::new(&endpoint, Some(&daemon))
    }

    #[test]
    fn one_daemon_is_started_however_many_clients_miss_it() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let script = format!("echo x >> {}; exec sleep 2", count.display());
        let mut all: Vec<_> = (0..10).map(|_| again(&dir, &script)).collect();
        let mut listener = None;
        loop {
            let missed: Vec<_> = all.iter_mut().map(|again| again.miss(Instant::now())).collect();
            if missed.iter().all(|missed| *missed == Missed::Up) {
                break;
            }
            let is_awaited = |missed: &Missed| matches!(missed, Missed::Up | Missed::Awaited);
            assert!(missed.iter().all(is_awaited), "{missed:?}");
            if count.exists() && listener.is_none() {
                listener = Some(UnixListener::bind(dir.path().join("s.sock")).unwrap());
            }
            sleep(Duration::from_millis(1));
        }
        assert_eq!(std::fs::read_to_string(count).unwrap(), "x\n");
    }

    #[test]
    fn a_daemon_that_dies_at_once_is_started_again_after_a_pause() {
        let dir = tempfile::tempdir().unwrap();
        let count = dir.path().join("count");
        let mut again = again(&dir, &format!("echo x >> {}; echo why >&2", count.display()));
        let mut why = Vec::new();
        while why.len() < 2 {
            if let Missed::Failed(text) = again.miss(Instant::now()) {
                why.push(text);
            }
            sleep(Duration::from_millis(1));
        }
        assert!(why.iter().all(|text| text.contains("why")), "{why:?}");
        assert_eq!(std::fs::read_to_string(count).unwrap(), "x\nx\n");
    }
}
