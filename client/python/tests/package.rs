//! Tests of the Python package: each runs a script beside this file with the installed python3, the
//! extension that cargo built, and a daemon of its own.

mod site;

use std::{
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use site::{here, python, site};
use syncd_client::{Inspector, proto::v1::DescribeRequest};
use tempfile::TempDir;

/// Catches hangs: a script takes a small part of this.
const WATCHDOG: Duration = Duration::from_secs(600);

/// The package's daemon, on a socket of its own.
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
        while UnixStream::connect(&socket).is_err() {
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
fn a_deadlock_among_tasks_is_reported() {
    const PROGRAM: &str = r#"
import asyncio
from syncd import aio

async def main():
    first, second = aio.Lock(name="first"), aio.Lock(name="second")
    taken = []

    async def take(one, other):
        async with one:
            taken.append(one)
            while len(taken) < 2:
                await asyncio.sleep(0.001)
            async with other:
                pass

    await asyncio.gather(take(first, second), take(second, first))

asyncio.run(main())
"#;
    let daemon = Daemon::start();
    let mut program = python(&daemon.socket()).args(["-c", PROGRAM]).spawn().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pid = program.id();
    let look = async {
        let endpoint = daemon.socket().to_str().unwrap().parse().unwrap();
        let mut inspect = Inspector::connect(&endpoint, false).await.unwrap();
        loop {
            let describe = DescribeRequest { object: "first".into(), ..Default::default() };
            // The lock isn't found until it is created.
            if let Ok(detail) = inspect.describe(describe).await
                && let Some(deadlock) = detail.into_inner().deadlocks.into_iter().next()
            {
                break deadlock.cycle;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = runtime.block_on(async { tokio::time::timeout(WATCHDOG, look).await });
    let seen = seen.expect("it is seen");
    program.kill().unwrap();
    program.wait().unwrap();
    let mut objects: Vec<&str> = seen.iter().map(|edge| &*edge.object).collect();
    objects.sort_unstable();
    assert_eq!(objects, ["first", "second"]);
    assert!(seen.iter().all(|edge| edge.process.as_ref().is_some_and(|p| p.pid == pid)));
    assert_ne!(seen[0].owner, seen[1].owner, "each task is an owner");
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
