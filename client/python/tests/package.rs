//! The Python package, driven by the python3 at hand: each test is a script beside this file, run
//! with the extension that cargo built and a daemon of its own. Never here: what is tested.

mod site;

use std::{
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use site::{here, python, site};
use tempfile::TempDir;

/// Against hangs alone: a script takes a small part of this.
const WATCHDOG: Duration = Duration::from_secs(600);

/// A daemon on a socket of its own, carried by the package.
struct Daemon {
    directory: TempDir,
    process: Child,
}

impl Daemon {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let socket = directory.path().join("syncd.sock");
        let process = python(&socket)
            .args(["-m", "syncd", "--log", "warn"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut daemon = Self { directory, process };
        while !socket.exists() {
            assert!(daemon.process.try_wait().unwrap().is_none(), "the daemon doesn't come up");
            thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("syncd.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a script of tests to its end.
fn run(script: &str, arguments: &[&str]) {
    let daemon = Daemon::start();
    let scratch = TempDir::new().unwrap();
    let mut child = python(&daemon.socket())
        .arg(here().join("tests").join(script))
        .args(arguments)
        .env("TMPDIR", scratch.path())
        .env("SYNCD_TEST_SITE", site())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{script} hangs");
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{script} {arguments:?}: {status}");
}

#[test]
fn the_classes_are_multiprocessings_and_more() {
    run("classes.py", &[]);
}

#[test]
fn processes_die_fork_and_are_interrupted() {
    run("processes.py", &[]);
}

#[test]
fn nothing_is_released_that_is_not_held_and_nothing_waits_that_need_not() {
    run("edges.py", &[]);
}

#[test]
fn tasks_are_owners_too() {
    run("tasks.py", &[]);
}

#[test]
fn the_articles_programs_run_with_their_import_line_changed() {
    run("programs.py", &[]);
}

#[test]
fn a_platform_without_semaphores_has_them() {
    run("platforms.py", &[]);
}

#[test]
fn the_standard_suite_passes_on_the_module_under_fork() {
    run("standard_suite.py", &["drop-in", "fork"]);
}

#[test]
fn the_standard_suite_passes_on_installed_semaphores_under_fork() {
    run("standard_suite.py", &["install", "fork"]);
}

#[test]
fn the_standard_suite_passes_on_the_module_under_spawn() {
    run("standard_suite.py", &["drop-in", "spawn"]);
}

#[test]
fn the_standard_suite_passes_on_installed_semaphores_under_spawn() {
    run("standard_suite.py", &["install", "spawn"]);
}

#[test]
fn the_standard_suite_passes_on_the_module_under_forkserver() {
    run("standard_suite.py", &["drop-in", "forkserver"]);
}

#[test]
fn the_standard_suite_passes_on_installed_semaphores_under_forkserver() {
    run("standard_suite.py", &["install", "forkserver"]);
}
