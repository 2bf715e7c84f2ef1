//! The daemon under test, as a process of its own, and how much memory it has. What it does
//! for its clients lies in the `syncd` crate.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use syncd::{Config, Journaling, Server};
use tokio::sync::oneshot;

use crate::worker::{Worker, answer};

/// One daemon on a private socket. Ends when it is dropped.
pub struct Daemon {
    worker: Worker,
    path: PathBuf,
}

impl Daemon {
    /// A new one, with nothing in it.
    pub fn start(dir: &Path) -> Daemon {
        Self::with(dir, "journal")
    }

    /// One that keeps nothing.
    pub fn start_without_journal(dir: &Path) -> Daemon {
        Self::with(dir, "no-journal")
    }

    fn with(dir: &Path, journal: &str) -> Daemon {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = dir.join(format!("syncd{}.sock", COUNT.fetch_add(1, Relaxed)));
        let worker = Worker::role("daemon", &[path.to_str().expect("a plain name"), journal]);
        Daemon { worker, path }
    }

    /// Kills it, in whatever it does.
    pub fn kill(&mut self) {
        self.worker.kill();
    }

    /// Another one in the place of one that was killed.
    pub fn start_again(&mut self) {
        self.worker = Worker::role("daemon", &[self.path(), "journal"]);
    }

    /// Another one takes its place; the one before has left when this returns.
    pub fn replace(&mut self) {
        let next = Worker::role("daemon", &[self.path(), "replace"]);
        std::mem::replace(&mut self.worker, next).end();
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("a plain name")
    }

    /// Starts a client of it.
    pub fn client(&self, role: &str, args: &[&str]) -> Worker {
        Worker::role(role, &[&[self.path()], args].concat())
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.worker.pid()));
        let status = status.expect("the daemon runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.expect("the kernel tells") * 1024.0
    }
}

/// Role: serves on one thread, as `syncd` does, until its standard input ends.
pub fn serve(path: &str, journal: &str) {
    raise_descriptors();
    let runtime = runtime();
    let server = {
        let _context = runtime.enter();
        let mut config = Config::new(path.parse().expect("a short path"));
        (config.limits.connections, config.limits.calls) = (20_000, 20_000);
        if journal == "no-journal" || std::env::var_os("SYNCD_NO_JOURNAL").is_some() {
            config.journal = Journaling::Off;
        }
        config.replace = journal == "replace";
        Server::bind(config).expect("the path is free")
    };
    let (leave, left) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _leave = leave;
        answer(|_| Vec::new());
    });
    runtime.block_on(server.run(async { drop(left.await) })).expect("it serves");
}

/// For ten thousand connections. How many there may be.
pub fn raise_descriptors() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it may have as many");
    maximum.unwrap_or(u64::MAX)
}

pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime starts")
}
