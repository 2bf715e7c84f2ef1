//! Client processes at work, each of which writes its history, and what becomes of them.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::{NAMESPACE, signal};
use crate::{
    daemon::{Daemon, eventually, program},
    history::{End, History, check, clock},
};

/// The objects that they use, of the kinds that the actor `crowd` knows, and how many permits each
/// has.
pub(super) const OBJECTS: [(&str, &str, usize); 4] = [
    ("fenced", "fenced Lock", 1),
    ("timed", "timed Lock", 1),
    ("gate", "gate RLock", 1),
    ("slots", "slots Semaphore 2", 2),
];

/// See the [module](self).
pub(super) struct Crowd {
    dir: TempDir,
    seed: u64,
    members: Vec<Member>,
    deaths: Vec<(usize, u64)>,
    /// How many there have been.
    count: usize,
}

/// One process.
struct Member {
    number: usize,
    process: Child,
}

impl Crowd {
    pub fn start(daemon: &Daemon, seed: u64, size: usize) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut crowd = Self { dir, seed, members: vec![], deaths: vec![], count: 0 };
        for _ in 0..size {
            let member = crowd.member(daemon);
            crowd.members.push(member);
        }
        crowd
    }

    fn file(&self, number: usize) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    fn member(&mut self, daemon: &Daemon) -> Member {
        let number = self.count;
        self.count += 1;
        let mut command = Command::new(program("actor"));
        command.args(["crowd", NAMESPACE]).arg(self.file(number));
        command.arg(self.dir.path().join("fenced")).arg((self.seed + number as u64).to_string());
        command.env("SYNCD_SOCKET", daemon.socket()).stdin(Stdio::piped());
        Member { number, process: command.spawn().expect("a process") }
    }

    /// How many there are at a time.
    pub fn size(&self) -> usize {
        self.members.len()
    }

    /// Kills one, and has another one in its place.
    pub fn kill(&mut self, which: usize, daemon: &Daemon) {
        let Member { number, process } = &mut self.members[which];
        self.deaths.push((*number, clock()));
        process.kill().expect("ours");
        process.wait().expect("ours");
        self.members[which] = self.member(daemon);
    }

    pub fn signal(&self, which: usize, what: Signal) {
        signal(self.members[which].process.id(), what);
    }

    /// How much each has written.
    fn written(&self) -> Vec<u64> {
        let length = |member: &Member| {
            fs::metadata(self.file(member.number)).map_or(0, |metadata| metadata.len())
        };
        self.members.iter().map(length).collect()
    }

    /// Each gets on with its work: some lines more from each than it has written up to now.
    pub fn go_on(&self) {
        const LINES: u64 = 200;
        let before = self.written();
        eventually("the progress of each", || {
            let written = self.written();
            let is_on = written.iter().zip(&before).all(|(now, then)| *now > then + LINES);
            is_on.then_some(())
        });
    }

    /// Has them stop, so that only the keepers' sessions are left, and checks what they wrote: how
    /// many calls that was.
    pub fn finish(mut self, daemon: &Daemon, keepers: &[u32]) -> Result<u64, String> {
        for member in &mut self.members {
            drop(member.process.stdin.take());
        }
        for member in &mut self.members {
            let status = eventually("the end of each", || member.process.try_wait().expect("ours"));
            if !status.success() {
                return Err(format!("process {}: {status}", member.number));
            }
        }
        let mut history =
            History { deaths: self.deaths.iter().copied().collect(), ..History::default() };
        for number in 0..self.count {
            let text = fs::read_to_string(self.file(number)).unwrap_or_default();
            history.add(number, &text)?;
        }
        // What went wrong in a call explains what is missing in the end.
        if let Some(failed) = history.failed() {
            return Err(failed);
        }
        check(&history, &end(daemon, keepers)?).map_err(|violation| violation.to_string())?;
        Ok(history.operations.len() as u64)
    }
}

/// What is left when all have gone; nobody may wait where something is free.
fn end(daemon: &Daemon, keepers: &[u32]) -> Result<End, String> {
    let look = |name: &str| {
        let detail = daemon.describe(NAMESPACE, name).ok_or(format!("{name} is gone"))?;
        match detail.waiters.len() {
            0 => Ok(detail.object.map_or(0, |object| object.value)),
            waiters => Err(format!("{name}: {waiters} wait for nothing")),
        }
    };
    // The dead are seen to be so in a moment.
    eventually("the end of their sessions", || {
        let sessions = daemon.sessions(NAMESPACE);
        let pids = sessions.iter().map(|session| session.process.as_ref().map_or(0, |p| p.pid));
        pids.into_iter().all(|pid| keepers.contains(&pid)).then_some(())
    });
    let mut end = End { items: look("items")?.into(), ..End::default() };
    for (name, _, permits) in OBJECTS {
        end.permits.insert(name.into(), (permits, look(name)? as usize));
    }
    Ok(end)
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}
