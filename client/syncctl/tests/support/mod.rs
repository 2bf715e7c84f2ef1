//! A test's daemon, and commands that use it.
#![allow(dead_code)]

use std::{
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A test's daemon, and commands that use it.
pub struct House {
    pub dir: tempfile::TempDir,
    pub daemon: Child,
}

impl House {
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Starts the daemon with further arguments.
    pub fn with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut daemon = syncctl(&socket(dir.path()));
        daemon.args(["daemon", "--log", "error"]).args(arguments).stdin(Stdio::null());
        let house = Self { daemon: daemon.spawn().unwrap(), dir };
        eventually("the daemon is up", || house.syncctl(&["status"]).status.success());
        house
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = syncctl(&socket(self.dir.path()));
        command.args(args).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    pub fn syncctl(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a shell command under a lock, and returns once it has printed a line, with that line.
    pub fn start(&self, lock: &str, script: &str) -> (Child, String) {
        let mut child = self.command(&["run", lock, "--", "sh", "-c", script]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (child, line.trim().to_owned())
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.syncctl(&[&["--json"], args].concat());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

pub fn socket(dir: &Path) -> PathBuf {
    dir.join("syncd.sock")
}

pub fn syncctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncctl"));
    command.env_remove("SYNCD_NO_AUTOSTART").arg("--socket").arg(socket);
    command
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "never came true: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// The exit code as a shell sees it.
pub fn code(output: &Output) -> Option<i32> {
    shell_code(output.status)
}

/// As `code`.
pub fn shell_code(status: ExitStatus) -> Option<i32> {
    status.code().or_else(|| Some(128 + status.signal()?))
}

/// The pid of the daemon at `socket`, if one answers.
pub fn daemon_pid(socket: &Path) -> Option<u32> {
    let status = syncctl(socket).args(["--json", "status"]).output().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).ok()?;
    u32::try_from(status["pid"].as_u64()?).ok()
}

/// Ends the daemon at `socket`, if one answers, and waits until it has.
pub fn end_daemon(socket: &Path) {
    if let Some(pid) = daemon_pid(socket) {
        kill(pid, libc::SIGTERM);
        eventually("the daemon has left", || !is_alive(&pid.to_string()));
    }
}

pub fn kill(pid: u32, signal: i32) {
    // SAFETY: a plain system call on a process of this test.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

pub fn is_alive(pid: &str) -> bool {
    // A zombie counts as dead.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}
