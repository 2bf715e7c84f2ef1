//! `demo`: starts a daemon on a private socket and programs that use it, and prints their output
//! together with the holders and waiters that the daemon reports.

use std::{
    fs, io,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use syncd_client::Inspector;
use syncd_proto::{Endpoint, v1};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    broker::reply,
    failure::Failure,
    text::{Ink, Screen},
    worker::{self, Role},
};

mod act;

use act::{Act, Plot};

const LOCK: Plot = Plot {
    title: "1. A lock around a shared counter",
    story: "Three processes read a number from a file, add one, and write it back.",
    objects: &[worker::COUNTER],
};
const SEMAPHORE: Plot = Plot {
    title: "2. A semaphore of two",
    story: "Five processes have an item each to work on; two may work at a time.",
    objects: &[worker::DESK],
};
const CONDITION: Plot = Plot {
    title: "3. A condition between producer and consumer",
    story: "One puts items on a shelf and notifies; the other waits for them and takes them off.",
    objects: &[worker::SHELF, worker::NEW_ITEM],
};
const DEATH: Plot = Plot {
    title: "4. A holder is killed",
    story: "The next process gets the lock at once, and is told whose death released it.",
    objects: &[worker::VAULT],
};

/// Longer than any step of the demo takes, unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(30);

/// The demo's checks and their results.
#[derive(Debug, Serialize)]
struct Summary {
    version: String,
    daemon_pid: u32,
    took_s: f64,
    checks: Vec<Check>,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    expected: String,
    found: String,
    ok: bool,
}

fn check(what: &'static str, expected: impl ToString, found: impl ToString) -> Check {
    let (expected, found) = (expected.to_string(), found.to_string());
    Check { what, ok: expected == found, expected, found }
}

/// `demo`
pub async fn demo(screen: Screen) -> Result<(), Failure> {
    let mut stage = Stage::open(screen).await?;
    let played = tokio::select! {
        played = timeout(WATCHDOG, stage.play()) => {
            let hang = || Failure::Unmet(format!("the demo hangs: not done within {WATCHDOG:?}"));
            played.unwrap_or_else(|_| Err(hang()))
        }
        () = interrupted() => Err(Failure::Unmet("interrupted".into())),
    };
    stage.close().await?;
    let summary = played?;
    match screen.json {
        true => screen.json(&summary)?,
        false => print(screen, &summary)?,
    }
    match summary.ok {
        true => Ok(()),
        false => Err(Failure::Unmet("a check of the demo failed".into())),
    }
}

fn print(screen: Screen, summary: &Summary) -> io::Result<()> {
    screen.heading("Summary")?;
    for check in &summary.checks {
        let (ink, mark) = if check.ok { (Ink::Green, "ok") } else { (Ink::Red, "WRONG") };
        let wanted = match check.ok {
            true => String::new(),
            false => format!(", expected {}", check.expected),
        };
        let mark = screen.paint(ink, format!("{mark:>5}"));
        screen.line(format!("{mark}  {}: {}{wanted}", check.what, check.found))?;
    }
    let took = format!("{:.1} s; daemon stopped, nothing left behind", summary.took_s);
    screen.line(screen.paint(Ink::Dim, took))
}

/// A directory, a daemon in it, and a connection to that.
struct Stage {
    screen: Screen,
    began: Instant,
    dir: TempDir,
    endpoint: Endpoint,
    daemon: Child,
    inspect: Inspector,
}

impl Stage {
    async fn open(screen: Screen) -> Result<Self, Failure> {
        let began = Instant::now();
        let dir = tempfile::Builder::new().prefix("syncd-demo-").tempdir()?;
        let endpoint: Endpoint = dir
            .path()
            .join("syncd.sock")
            .to_string_lossy()
            .parse()
            .map_err(|e: syncd_proto::endpoint::EndpointError| Failure::Unmet(e.to_string()))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["daemon", "--log", "warn", "--idle-exit", "60s", "--socket"])
            .arg(endpoint.as_path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        // Ctrl-C must not reach the daemon: the demo stops it after the other processes.
        #[cfg(unix)]
        command.process_group(0);
        let mut daemon = command.spawn()?;
        let inspect = loop {
            match crate::broker::inspect(&endpoint).await {
                Ok(inspect) => break inspect,
                Err(error) if began.elapsed() > WATCHDOG => return Err(error),
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
            if let Some(status) = daemon.try_wait()? {
                return Err(Failure::Unmet(format!("the daemon exited at once: {status}")));
            }
        };
        Ok(Self { screen, began, dir, endpoint, daemon, inspect })
    }

    async fn play(&mut self) -> Result<Summary, Failure> {
        let status = reply(self.inspect.status(v1::StatusRequest {})).await?;
        if !self.screen.json {
            self.screen.line(format!(
                "{} {} is up, pid {}, on a socket of its own: {}\n\
                 Each name below is a process; the lines of syncd show its holders and waiters.",
                self.screen.paint(Ink::Bold, "syncd"),
                status.version,
                status.pid,
                self.endpoint
            ))?;
        }

        let mut act = Act::begin(self, &LOCK)?;
        for i in 0..3 {
            act.enter(&format!("Worker-{i}"), Role::Count)?;
        }
        act.finish().await?;

        let mut act = Act::begin(self, &SEMAPHORE)?;
        for i in 0..5 {
            act.enter(&format!("Item-{i}"), Role::Work)?;
        }
        act.finish().await?;

        let mut act = Act::begin(self, &CONDITION)?;
        act.enter("Consumer", Role::Consume)?;
        act.enter("Producer", Role::Produce)?;
        act.finish().await?;

        let mut act = Act::begin(self, &DEATH)?;
        let holder = act.enter("Holder", Role::Hold)?;
        act.until(1, 0).await?;
        act.enter("Next", Role::Inherit)?;
        act.until(1, 1).await?;
        act.enter("After-next", Role::Inherit)?;
        act.until(1, 2).await?;
        sleep(Duration::from_millis(300)).await;
        act.kill(0).await?;
        act.finish().await?;

        let at_end = reply(self.inspect.status(v1::StatusRequest {})).await?;
        let counted = |pick: fn(&v1::Counters) -> u64| at_end.counters.as_ref().map_or(0, pick);
        let dir = self.dir.path();
        let checks = vec![
            check("three workers, the counter", 3, read(dir, worker::COUNTER)?.trim()),
            check("five items worked on", 5, read(dir, worker::DESK)?.matches('+').count()),
            check(
                "most at once behind a semaphore of 2",
                2,
                most_at_once(&read(dir, worker::DESK)?),
            ),
            check("items consumed, in order", "0 1 2 3 4", words(&read(dir, worker::CONSUMED)?)),
            check(
                "told of the killed holder, once, with its pid",
                format!("Next: {holder} died"),
                words(&read(dir, worker::TOLD)?),
            ),
            check("holds abandoned, by the daemon's count", 1, counted(|c| c.abandoned)),
            check("locks still held", 0, at_end.holds),
        ];
        Ok(Summary {
            version: status.version,
            daemon_pid: status.pid,
            took_s: self.began.elapsed().as_secs_f64(),
            ok: checks.iter().all(|check| check.ok),
            checks,
        })
    }

    /// Stops the daemon, and removes the directory.
    async fn close(mut self) -> Result<(), Failure> {
        #[cfg(unix)]
        if let Some(pid) = self.daemon.id() {
            // SAFETY: a plain system call on our own child, which hasn't been waited for.
            unsafe { libc::kill(pid as libc::pid_t, libc::SIGTERM) };
            let _ = timeout(Duration::from_secs(6), self.daemon.wait()).await;
        }
        self.daemon.kill().await?;
        // Reaps the processes that an act killed at its end: in a container init may not.
        #[cfg(unix)]
        // SAFETY: a plain system call. All children are dead or dying by now.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
        Ok(self.dir.close()?)
    }
}

fn read(dir: &Path, name: &str) -> io::Result<String> {
    match fs::read_to_string(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The highest level in a sequence of increments (`+`) and decrements (`-`).
fn most_at_once(log: &str) -> i32 {
    let mut inside = 0;
    let levels = log.chars().map(|c| {
        inside += if c == '+' { 1 } else { -1 };
        inside
    });
    levels.max().unwrap_or(0)
}

async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let mut signals: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
        let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures_util::future::select_all(any).await;
    }
    #[cfg(windows)]
    let _ = tokio::signal::ctrl_c().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_at_once_is_the_peak() {
        assert_eq!(most_at_once("++-+-+--"), 2);
        assert_eq!(most_at_once("+-+-"), 1);
        assert_eq!(most_at_once("+++---"), 3);
        assert_eq!(most_at_once(""), 0);
    }
}
