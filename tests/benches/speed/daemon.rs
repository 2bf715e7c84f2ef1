//! The daemon under test, as a process of its own, and how much memory it has. What it does
//! for its clients lies in the `syncd` crate.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use syncd::{Config, Server};
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
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = dir.join(format!("syncd{}.sock", COUNT.fetch_add(1, Relaxed)));
        let worker = Worker::role("daemon", &[path.to_str().expect("a plain name")]);
        Daemon { worker, path }
    }

    /// Starts a client of it.
    pub fn client(&self, role: &str, args: &[&str]) -> Worker {
        let path = self.path.to_str().expect("a plain name");
        Worker::role(role, &[&[path], args].concat())
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
pub fn serve(path: &str) {
    let runtime = runtime();
    let server = {
        let _context = runtime.enter();
        let endpoint = path.parse().expect("a short path");
        Server::bind(Config::new(endpoint)).expect("the path is free")
    };
    let (leave, left) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _leave = leave;
        answer(|_| Vec::new());
    });
    runtime.block_on(server.run(async { drop(left.await) })).expect("it serves");
}

pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime starts")
}
