//! The most memory that one user can make the daemon use, measured by a counting allocator: the
//! daemon is this binary, run again with small quotas; each attack goes on until it is refused.
#![cfg(unix)]

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use support::{Session, acquire, channel, open, within};
use syncd_proto::{
    Endpoint,
    v1::{
        self, ErrorCode, client_message::Request, inspect_client::InspectClient,
        server_message::Message,
    },
};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls are passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SOCKET: &str = "SYNCD_TEST_SOCKET";
const MEMORY: usize = 4 << 20;
const WATCH_BYTES: usize = 1 << 20;

/// Not a test, but the daemon. It answers each line of its input with its memory now, and the most
/// since the last line, in bytes.
#[tokio::test]
async fn the_daemon() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut config = syncd::Config::new(socket.parse().unwrap());
    config.limits.connections = 64;
    config.limits.calls = 128;
    config.limits.namespaces = 2;
    config.limits.memory = MEMORY;
    config.limits.unsent_bytes = 2 << 20;
    config.limits.unsent_bytes_per_session = 1 << 20;
    config.limits.watch_bytes = WATCH_BYTES;
    config.limits.unacknowledged_bytes = 1 << 20;
    let server = syncd::Server::bind(config).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            drop(line);
            println!("bytes {} {}", NOW.load(Relaxed), PEAK.load(Relaxed));
            PEAK.store(NOW.load(Relaxed), Relaxed);
        }
        drop(stop);
    });
    server.run(async { drop(stopped.await) }).await.unwrap();
}

struct Daemon {
    endpoint: Endpoint,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    before: usize,
    _dir: tempfile::TempDir,
}

impl Daemon {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_daemon", "--nocapture", "--test-threads=1"]);
        command.env(SOCKET, endpoint.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        within(async {
            while tokio::net::UnixStream::connect(endpoint.as_path()).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        let mut daemon = Self { endpoint, child, stdin, stdout, before: 0, _dir: dir };
        daemon.before = daemon.bytes().0;
        daemon
    }

    /// The memory now, and the most since the last call, in bytes.
    fn bytes(&mut self) -> (usize, usize) {
        writeln!(self.stdin).unwrap();
        loop {
            let line = self.stdout.next().expect("it lives").unwrap();
            let Some((_, numbers)) = line.split_once("bytes ") else { continue };
            let (now, peak) = numbers.split_once(' ').unwrap();
            return (now.parse().unwrap(), peak.parse().unwrap());
        }
    }

    async fn session(&self) -> Session {
        Session::open(channel(self.endpoint.clone()).await, open()).await.unwrap()
    }

    async fn inspect(&self) -> InspectClient<tonic::transport::Channel> {
        InspectClient::new(channel(self.endpoint.clone()).await)
    }

    /// Asserts that the memory in use was counted in full, and was never more than
    /// `user_bytes`.
    async fn is_within_its_bounds(&mut self, attack: &str) {
        let status = self.inspect().await.status(v1::StatusRequest {}).await.unwrap().into_inner();
        let used = |field: &str| {
            status.quotas.iter().find(|quota| quota.field == field).unwrap().used as usize
        };
        // A connection's and a call's own, of which the stated number has room for much more.
        let beside = 160_000 * used("connections")
            + 3 * (used("unacknowledged_bytes") + used("unsent_bytes"))
            + if used("watches") == 0 { 0 } else { WATCH_BYTES }
            // Events that a watch has taken and the ring has dropped since.
            + (16 << 10) * used("watches");
        let counted = used("memory") + beside + (1 << 19);
        let begun = std::time::Instant::now();
        let (grown, peak) = loop {
            let (now, peak) = self.bytes();
            let grown = now.saturating_sub(self.before);
            // A snapshot that is made in the background exists twice until it is written.
            if grown <= counted || begun.elapsed() > support::WATCHDOG {
                break (grown, peak);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        };
        println!("{attack}: {grown} bytes, counted as {} and {beside} beside", used("memory"));
        assert!(grown <= counted, "{attack}: grew by {grown}, counted as {counted}");
        assert!(
            peak <= status.user_bytes as usize,
            "{attack}: {peak} bytes, and {} are stated",
            status.user_bytes
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes requests until the quota is used up; returns how many succeeded.
async fn until_refused(session: &mut Session, mut request: impl FnMut(u64) -> Request) -> u64 {
    const AHEAD: u64 = 200;
    let mut well = 0;
    loop {
        for n in 0..AHEAD {
            session.send(request(well + n)).await;
        }
        let mut refused = None;
        for _ in 0..AHEAD {
            match session.next().await.message.unwrap() {
                Message::Error(error) if error.code() == ErrorCode::Quota => {
                    refused.get_or_insert(error.field);
                }
                Message::Error(error) => panic!("{error:?}"),
                _ => well += 1,
            }
        }
        if let Some(field) = refused {
            assert_eq!(field, "memory");
            return well;
        }
    }
}

/// Sends a request, and returns the next message, whichever it is.
async fn ask(session: &mut Session, request: Request) -> Message {
    session.send(request).await;
    session.next().await.message.unwrap()
}

fn semaphore(name: &str) -> Request {
    let spec = v1::SemLockSpec { class: 3, value: 1_000_000, max: 0 };
    let spec = Some(v1::create::Spec::SemLock(spec));
    Request::Create(v1::Create { name: name.into(), spec, ..Default::default() })
}

#[tokio::test]
async fn objects_with_the_longest_of_names() {
    let mut daemon = Daemon::start().await;
    let mut session = daemon.session().await;
    until_refused(&mut session, |n| semaphore(&format!("{n:0>255}"))).await;
    daemon.is_within_its_bounds("objects").await;
    let Message::Error(refused) = session.ask(semaphore("one more")).await else { panic!() };
    assert_eq!((refused.code(), &*refused.field), (ErrorCode::Quota, "memory"));
}

#[tokio::test]
async fn references_of_many_sessions() {
    let mut daemon = Daemon::start().await;
    let mut first = daemon.session().await;
    for n in 0..1000 {
        first.ask(semaphore(&n.to_string())).await;
    }
    let mut others = Vec::new();
    let attach = |n: u64| {
        let by = Some(v1::attach::By::Name((n % 1000).to_string()));
        Request::Attach(v1::Attach { by })
    };
    'more: loop {
        assert!(others.len() < 60, "never refused");
        let mut other = daemon.session().await;
        for n in 0..1000 {
            if let Message::Error(refused) = other.ask(attach(n)).await {
                assert_eq!(refused.field, "memory");
                others.push(other);
                break 'more;
            }
        }
        others.push(other);
    }
    daemon.is_within_its_bounds("references").await;
    // What is released can be used again.
    drop(first.ask(Request::Goodbye(v1::Goodbye {})).await);
    drop(others.pop());
    drop(others.remove(0).ask(Request::Goodbye(v1::Goodbye {})).await);
    let mut next = daemon.session().await;
    assert!(matches!(next.ask(semaphore("one more")).await, Message::Attached(_)));
}

#[tokio::test]
async fn holds() {
    let mut daemon = Daemon::start().await;
    let mut session = daemon.session().await;
    let Message::Attached(all) = session.ask(semaphore("s")).await else { panic!() };
    until_refused(&mut session, |_| acquire(all.handle)).await;
    daemon.is_within_its_bounds("holds").await;
}

#[tokio::test]
async fn waiters_with_time_outs() {
    let mut daemon = Daemon::start().await;
    let mut session = daemon.session().await;
    let handle = session.lock("l").await;
    session.ask(acquire(handle)).await;
    // Only refused ones are answered.
    let wait = |owner| {
        let timeout_us = Some(3_600_000_000);
        Request::Acquire(v1::Acquire { handle, owner, timeout_us, ..Default::default() })
    };
    let mut owner = 2;
    let field = loop {
        for _ in 0..200 {
            session.send(wait(owner)).await;
            owner += 1;
        }
        // Its refusal comes after those of earlier ones.
        match ask(&mut session, Request::Query(v1::Query { handle: u32::MAX })).await {
            Message::Error(error) if error.code() == ErrorCode::NotFound => {}
            Message::Error(error) => break error.field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field, "memory");
    daemon.is_within_its_bounds("waiters").await;
}

#[tokio::test]
async fn messages_that_are_never_acknowledged() {
    let mut daemon = Daemon::start().await;
    let mut session = daemon.session().await;
    let handle = session.lock("l").await;
    session.ask(acquire(handle)).await;
    for _ in 0..200 {
        for _ in 0..200 {
            session.send(Request::Query(v1::Query { handle })).await;
        }
        for _ in 0..200 {
            session.next().await;
        }
    }
    daemon.is_within_its_bounds("unacknowledged").await;
}

#[tokio::test]
async fn pushes_that_are_never_read_and_watches() {
    let mut daemon = Daemon::start().await;
    let mut watches = Vec::new();
    for _ in 0..64 {
        let watch = daemon.inspect().await.watch(v1::WatchRequest::default()).await;
        let Ok(watch) = watch else { break };
        watches.push(watch.into_inner());
        if watches.len() == 40 {
            break;
        }
    }
    let mut silent = daemon.session().await;
    let Message::Attached(all) = silent.ask(semaphore("s")).await else { panic!() };
    let mut other = daemon.session().await;
    let Message::Attached(theirs) = other.ask(semaphore("s")).await else { panic!() };
    for _ in 0..100 {
        for _ in 0..200 {
            silent.send(acquire(all.handle)).await;
        }
        for _ in 0..200 {
            let release = v1::Release { handle: theirs.handle, owner: 9, token: 0, quiet: true };
            other.send(Request::Release(release)).await;
        }
        other.ask(Request::Query(v1::Query { handle: theirs.handle })).await;
    }
    daemon.is_within_its_bounds("unread").await;
}
