//! One client uses up descriptors, command lines, watches, or connects from a foreign PID namespace:
//! the others aren't affected.
#![cfg(target_os = "linux")]

mod support;

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use support::{Daemon, Session, acquire, channel, open, within};
use syncd_proto::{
    Endpoint,
    v1::{self, client_message::Request, inspect_client::InspectClient, server_message::Message},
};
use tonic::Code;

const SOCKET: &str = "SYNCD_TEST_SOCKET";

/// A process that ends with the test, even if that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn socket(dir: &tempfile::TempDir) -> Endpoint {
    dir.path().join("s.sock").to_str().unwrap().parse().unwrap()
}

fn syncd(endpoint: &Endpoint) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
    command.env_clear().args(["--socket", &endpoint.to_string(), "--log", "off"]);
    command.stderr(Stdio::null());
    command
}

async fn listens(endpoint: &Endpoint) {
    let listens = async {
        while tokio::net::UnixStream::connect(endpoint.as_path()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(listens).await;
}

/// One part of this binary as a process of its own.
fn part(name: &str, endpoint: &Endpoint) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(SOCKET, endpoint.to_string()).stdin(Stdio::null());
    command
}

async fn succeeds(mut command: Command) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = within(tokio::task::spawn_blocking(move || command.output())).await;
    let output = output.unwrap().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn without_a_descriptor_left_others_are_served_and_later_ones_come() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = socket(&dir);
    let mut command = syncd(&endpoint);
    // SAFETY: setrlimit is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 28, rlim_max: 28 };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let _daemon = Running(command.spawn().unwrap());
    listens(&endpoint).await;
    let mut bystander = Session::open(channel(endpoint.clone()).await, open()).await.unwrap();
    let handle = bystander.lock("a").await;
    // More than it has descriptors for; those that are not accepted wait in the queue.
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(tokio::net::UnixStream::connect(endpoint.as_path()).await.unwrap());
        let Message::Granted(held) = bystander.ask(acquire(handle)).await else { panic!() };
        let release = v1::Release { handle, owner: 1, token: held.token, quiet: false };
        bystander.ask(Request::Release(release)).await;
    }
    drop(crowd);
    let mut next = loop {
        // It may be one too many until the daemon has seen the others close.
        let opened = async {
            let connected = support::try_channel(endpoint.clone()).await.ok()?;
            Session::try_open(connected, open()).await
        };
        match within(opened).await {
            Some(next) => break next,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    next.lock("a").await;
}

#[tokio::test]
async fn connections_from_another_pid_namespace_delay_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = socket(&dir);
    let program = format!(
        "{} --socket {endpoint} --log off & exec {} --exact insiders_part --nocapture",
        env!("CARGO_BIN_EXE_syncd"),
        std::env::current_exe().unwrap().display(),
    );
    let mut command = Command::new("unshare");
    // A process outside has no PID there.
    command.args(["--pid", "--fork", "--kill-child", "sh", "-c", &program]);
    command.env(SOCKET, endpoint.to_string()).stdin(Stdio::null());
    let probe = Command::new("unshare").args(["--pid", "--fork", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        return;
    }
    let path = endpoint.as_path().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let knocker = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                drop(std::os::unix::net::UnixStream::connect(&path));
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    succeeds(command).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    knocker.join().unwrap();
}

/// Not a test, but a test's client inside the daemon's PID namespace: if each connection from outside
/// stopped the daemon for a tenth of a second, it would take hours.
#[tokio::test]
async fn insiders_part() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let endpoint: Endpoint = socket.parse().unwrap();
    listens(&endpoint).await;
    for _ in 0..300 {
        let mut session = Session::open(channel(endpoint.clone()).await, open()).await.unwrap();
        session.lock("a").await;
    }
}

#[tokio::test]
async fn a_huge_command_line_is_read_only_as_far_as_it_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = socket(&dir);
    let daemon = Running(syncd(&endpoint).spawn().unwrap());
    listens(&endpoint).await;
    succeeds(part("talkatives_part", &endpoint)).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 128 << 10, "{peak} KiB");
}

/// Not a test, but a process whose arguments take a gigabyte. Only root can set that.
#[tokio::test]
async fn talkatives_part() {
    const SIZE: usize = 1 << 30;
    let Ok(socket) = std::env::var(SOCKET) else { return };
    // SAFETY: the kernel is told that a new mapping, which nothing else uses, has the arguments.
    let told = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let region = libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, -1, 0);
        assert_ne!(region, libc::MAP_FAILED);
        region.cast::<u8>().write_bytes(b'x', 1 << 20);
        let start = region as libc::c_ulong;
        let set = |what: libc::c_ulong, address: libc::c_ulong| {
            libc::prctl(libc::PR_SET_MM, what, address, 0 as libc::c_ulong, 0 as libc::c_ulong)
        };
        set(libc::PR_SET_MM_ARG_START as libc::c_ulong, start)
            | set(libc::PR_SET_MM_ARG_END as libc::c_ulong, start + SIZE as libc::c_ulong - 1)
    };
    if told != 0 {
        return;
    }
    let mut session = Session::open(channel(socket.parse().unwrap()).await, open()).await.unwrap();
    session.lock("a").await;
}

#[tokio::test]
async fn watches_have_a_quota_and_one_that_is_not_read_costs_the_others_nothing() {
    let daemon = Daemon::with(|config| config.limits.watch_bytes = 64 << 10);
    let mut unread = Vec::new();
    let refused = loop {
        let watching = daemon.inspect().await.watch(v1::WatchRequest::default()).await;
        match watching {
            Ok(watching) => unread.push(watching.into_inner()),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("watches"), "{}", refused.message());
    assert_eq!(unread.len(), 64);
    let mut session = daemon.session().await;
    let handle = session.lock("a").await;
    // Each is four events, of some two hundred bytes.
    for _ in 0..3000 {
        let Message::Granted(held) = session.ask(acquire(handle)).await else { panic!() };
        let release = v1::Release { handle, owner: 1, token: held.token, quiet: true };
        session.send(Request::Release(release)).await;
    }
    for mut watching in unread {
        let end = loop {
            match within(watching.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("an end without a word"),
                Err(status) => break status,
            }
        };
        assert_eq!(end.code(), Code::DataLoss);
    }
    // Their places are free again.
    within(async {
        while let Err(refused) = daemon.inspect().await.watch(v1::WatchRequest::default()).await {
            assert_eq!(refused.code(), Code::ResourceExhausted);
        }
    })
    .await;
}

#[tokio::test]
async fn status_has_the_quotas_and_their_use() {
    let daemon = Daemon::with(|config| config.limits.watches = 7);
    let _session = daemon.session().await;
    let mut inspect: InspectClient<_> = daemon.inspect().await;
    let _watch = inspect.watch(v1::WatchRequest::default()).await.unwrap();
    let status = inspect.status(v1::StatusRequest {}).await.unwrap().into_inner();
    let quota = |field: &str| {
        let quota = status.quotas.iter().find(|quota| quota.field == field);
        quota.map(|quota| (quota.used, quota.limit)).unwrap_or_default()
    };
    assert_eq!(quota("watches"), (1, 7));
    assert_eq!(quota("connections").0, 2);
    assert_eq!(quota("calls").0, 3);
    assert_eq!(quota("namespaces").0, 1);
    assert!(quota("memory").0 > 0);
    assert!(status.user_bytes > quota("memory").1);
}

#[tokio::test]
async fn abandonments_count_until_they_are_reported() {
    let daemon = Daemon::start();
    let (mut holder, mut keeper) = (daemon.session().await, daemon.session().await);
    let spec =
        v1::SemLockSpec { class: v1::SemLockClass::Semaphore.into(), value: 1000, max: 1000 };
    let spec = Some(v1::create::Spec::SemLock(spec));
    let create = Request::Create(v1::Create { name: "s".into(), spec, ..Default::default() });
    keeper.ask(create.clone()).await;
    let memory = async || {
        let status = daemon.inspect().await.status(v1::StatusRequest {}).await.unwrap();
        let quotas = status.into_inner().quotas;
        quotas.iter().find(|quota| quota.field == "memory").unwrap().used
    };
    let before = memory().await;
    let Message::Attached(attached) = holder.ask(create).await else { panic!() };
    for _ in 0..1000 {
        let Message::Granted(_) = holder.ask(acquire(attached.handle)).await else { panic!() };
    }
    holder.ask(Request::Goodbye(v1::Goodbye {})).await;
    // The end of a session with so many takes several calls.
    within(async {
        while daemon.inspect().await.status(v1::StatusRequest {}).await.unwrap().into_inner().holds
            > 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(memory().await >= before + 1000 * 100);
    keeper.ask(Request::Unlink(v1::Unlink { name: "s".into() })).await;
    keeper.ask(Request::Detach(v1::Detach { handle: 0, quiet: false })).await;
    assert!(memory().await <= before);
}
