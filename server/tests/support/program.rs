//! The program as a daemon that can be killed, or replaced, and its place.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use syncd_proto::{Endpoint, v1};

use super::support::{self, Session, channel, open, until, within};

/// A daemon that can be killed, and its place.
pub struct Daemon {
    pub dir: tempfile::TempDir,
    pub flags: Vec<String>,
    pub child: Option<Child>,
}

impl Daemon {
    pub async fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut daemon = Self { dir, flags, child: None };
        daemon.run().await;
        daemon
    }

    pub fn endpoint(&self) -> Endpoint {
        self.dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
    }

    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("s.sock.journal")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until the log has it so many times, and not more often: it is written behind what happens.
    pub async fn logs(&self, words: &str, times: usize) {
        let count = || self.log().matches(words).count();
        until(|| count() >= times).await;
        assert_eq!(count(), times, "{}", self.log());
    }

    /// Starts it, and waits until it listens.
    pub async fn run(&mut self) {
        self.child = Some(self.command().spawn().unwrap());
        self.listens().await;
    }

    /// Returns when somebody does at its place.
    pub async fn listens(&self) {
        within(async {
            while support::try_channel(self.endpoint()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// What starts it.
    pub fn command(&self) -> Command {
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
        command.env_clear().env("SYNCD_SOCKET", self.endpoint().to_string()).args(&self.flags);
        command.stderr(log);
        command
    }

    /// Has another one take its place, and waits until it is gone.
    pub async fn replace(&mut self) -> ExitStatus {
        let next = self.command().arg("--replace").spawn().unwrap();
        let before = self.child.replace(next).unwrap();
        exit(before).await
    }

    pub fn end(&mut self, signal: libc::c_int) {
        let mut child = self.child.take().unwrap();
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
        child.wait().unwrap();
    }

    pub async fn kill_and_run(&mut self) {
        self.end(libc::SIGKILL);
        self.run().await;
    }

    pub async fn session(&self) -> Session {
        Session::open(channel(self.endpoint()).await, open()).await.unwrap()
    }

    pub async fn resume(&self, old: &Session, received: u64) -> Result<Session, Box<v1::Error>> {
        let key = old.opened.resume_key.clone();
        let open = v1::Open { resume_key: key, resume_seq: received, ..open() };
        Session::open(channel(self.endpoint()).await, open).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for a process to end.
pub async fn exit(mut child: Child) -> ExitStatus {
    within(async {
        loop {
            match child.try_wait().unwrap() {
                Some(status) => return status,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    })
    .await
}
