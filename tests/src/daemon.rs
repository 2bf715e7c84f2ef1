//! A real daemon in a directory of its own, and a look into it.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use rustix::process::Signal;
#[cfg(feature = "sabotage")]
use syncd_core::sabotage;
use syncd_proto::v1::{
    DescribeReply, DescribeRequest, ForceReleaseRequest, KickRequest, Session, SessionsRequest,
    StatusRequest, inspect_client::InspectClient,
};
use tempfile::TempDir;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{Code, Status, transport::Channel};

/// How long anything may take that must come: only to turn a hang into a failure.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// A program of this crate, which cargo puts beside the tests' directory.
///
/// # Panics
/// If it isn't there.
pub fn program(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("this program's path");
    let beside = me.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let found = beside.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} beside {}: cargo build -p syncd-tests", me.display()))
}

/// Tries until it succeeds.
///
/// # Panics
/// If it hasn't within [`WATCHDOG`].
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + WATCHDOG;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < end, "{what}: not within {WATCHDOG:?}");
        sleep(Duration::from_millis(1));
    }
}

/// A daemon process; dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    command: Command,
    process: Child,
    dir: TempDir,
    runtime: Arc<Runtime>,
    inspect: InspectClient<Channel>,
}

impl Daemon {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// If it can't, or doesn't.
    pub fn start(flags: &[&str]) -> Self {
        let mut command = Command::new(program("daemon"));
        command.args(flags);
        Self::start_by(command)
    }

    /// As [`start`](Self::start), by another command that is a daemon.
    ///
    /// # Panics
    /// If it can't, or doesn't.
    pub fn start_by(mut command: Command) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        command.arg("--socket").arg(&socket).stdin(Stdio::null()).stderr(log);
        #[cfg(feature = "sabotage")]
        command.env("SYNCD_SABOTAGE", sabotage::chosen().map_or("", sabotage::Bug::name));
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = Arc::new(builder.enable_all().build().expect("a runtime"));
        let mut process = command.spawn().expect("the daemon");
        let inspect = answer(&runtime, &socket, &mut process);
        Daemon { command, process, dir, runtime, inspect }
    }

    /// Kills it, as `kill -9` does, and reaps it.
    ///
    /// # Panics
    /// If that can't be.
    pub fn kill(&mut self) {
        self.process.kill().expect("ours");
        self.process.wait().expect("ours");
    }

    /// The next daemon at its place, and waits until it answers.
    ///
    /// # Panics
    /// If it can't be started, or doesn't answer.
    pub fn start_again(&mut self) {
        self.process = self.command.spawn().expect("the daemon");
        self.inspect = answer(&self.runtime, &self.socket(), &mut self.process);
    }

    /// The next daemon at its place, told to kill itself at a failpoint; it may do so at any time.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_doomed(&mut self, failpoint: &str) {
        self.command.env("SYNCD_FAILPOINT", failpoint);
        let process = self.command.spawn();
        self.command.env_remove("SYNCD_FAILPOINT");
        self.process = process.expect("the daemon");
    }

    /// Whether it has been killed.
    ///
    /// # Panics
    /// If it has ended in another way.
    pub fn was_killed(&mut self) -> bool {
        let ended = self.process.try_wait().expect("ours");
        ended.is_some_and(|status| {
            assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}: {}", self.log());
            true
        })
    }

    /// Where its state is kept.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("s.journal")
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Its resident memory, in KiB.
    ///
    /// # Panics
    /// If it isn't alive.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("alive");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Whether its log says so.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Whether it has panicked.
    pub fn has_panicked(&self) -> bool {
        self.log().contains("panicked")
    }

    /// The sessions of a namespace.
    ///
    /// # Panics
    /// If the daemon doesn't answer.
    pub fn sessions(&self, namespace: &str) -> Vec<Session> {
        let request = SessionsRequest { namespace: namespace.into(), ..Default::default() };
        match self.runtime.block_on(self.inspect.clone().sessions(request)) {
            Ok(reply) => reply.into_inner().sessions,
            Err(status) => none(status).unwrap_or_default(),
        }
    }

    /// One object; `None` if it isn't there.
    ///
    /// # Panics
    /// If the daemon doesn't answer.
    pub fn describe(&self, namespace: &str, object: &str) -> Option<DescribeReply> {
        let request = DescribeRequest { namespace: namespace.into(), object: object.into() };
        match self.runtime.block_on(self.inspect.clone().describe(request)) {
            Ok(reply) => Some(reply.into_inner()),
            Err(status) => none(status),
        }
    }

    /// Ends a session.
    ///
    /// # Panics
    /// If the daemon doesn't.
    pub fn kick(&self, namespace: &str, session: u64) {
        let request = KickRequest { namespace: namespace.into(), session };
        self.runtime.block_on(self.inspect.clone().kick(request)).expect("kicked");
    }

    /// Takes an object from all who hold it.
    ///
    /// # Panics
    /// If the daemon doesn't.
    pub fn force_release(&self, namespace: &str, object: &str) {
        let request = ForceReleaseRequest { namespace: namespace.into(), object: object.into() };
        self.runtime.block_on(self.inspect.clone().force_release(request)).expect("released");
    }

    /// Ends and reaps it, and fails if it panicked.
    fn end(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if !std::thread::panicking() {
            assert!(!self.has_panicked(), "the daemon panicked: {}", self.log());
        }
    }
}

/// The daemon answers: a look into it.
fn answer(runtime: &Runtime, socket: &Path, process: &mut Child) -> InspectClient<Channel> {
    eventually("the daemon's start", || {
        assert!(process.try_wait().expect("its state").is_none(), "it has left");
        runtime.block_on(async {
            let channel = connect(socket).await.ok()?;
            let mut inspect = InspectClient::new(channel).max_decoding_message_size(usize::MAX);
            // Who listens may not be ready for others yet.
            inspect.status(StatusRequest {}).await.ok()?;
            Some(inspect)
        })
    })
}

fn none<T>(status: Status) -> Option<T> {
    match status.code() {
        Code::NotFound => None,
        _ => panic!("the daemon refuses to be inspected: {status}"),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// A plain gRPC channel to a daemon, by nothing of syncd's own.
///
/// # Errors
/// If nobody answers.
pub async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    tonic::transport::Endpoint::from_static("http://syncd").connect_with_connector(connector).await
}
