//! Malicious or faulty peers. Each attack is made on the real binary, so that its memory can be
//! measured: it must grow by at most 64 MiB, and serve others as before.
#![cfg(target_os = "linux")]

#[path = "../../tests/src/hostility/frames.rs"]
mod frames;
mod support;

use std::{process::Stdio, time::Duration};

use frames::{CONTINUATION, END_HEADERS, HEADERS, PREFACE, RST_STREAM, frame, headers};
use support::{Session, WATCHDOG, acquire, channel, open, within};
use syncd_proto::{
    Endpoint,
    v1::{
        self, ClientMessage, client_message::Request, inspect_client::InspectClient,
        server_message::Message,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
    time::timeout,
};

const MAY_GROW: u64 = 64 << 20;

/// A daemon, another client that locks and unlocks, and the daemon's memory before the attack.
struct Target {
    endpoint: Endpoint,
    bystander: Session,
    handle: u32,
    before: u64,
    _child: Child,
    _dir: tempfile::TempDir,
}

impl Target {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_syncd"));
        command.env_clear().args(["--socket", &endpoint.to_string(), "--log", "off"]);
        let child = command.stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let listens = async {
            while UnixStream::connect(endpoint.as_path()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(listens).await;
        let mut bystander = Session::open(channel(endpoint.clone()).await, open()).await.unwrap();
        let handle = bystander.lock("bystander's").await;
        let before = memory(&child);
        Self { endpoint, bystander, handle, before, _child: child, _dir: dir }
    }

    async fn connect(&self) -> UnixStream {
        loop {
            match UnixStream::connect(self.endpoint.as_path()).await {
                Ok(stream) => return stream,
                // Its queue is full: it is starting.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Asserts that the daemon hasn't grown too much, and the other client's session still works.
    async fn is_unimpressed(&mut self) {
        let grown = memory(&self._child).saturating_sub(self.before);
        assert!(grown <= MAY_GROW, "grew by {} MiB", grown >> 20);
        self.serves_others().await;
    }

    async fn serves_others(&mut self) {
        let Message::Granted(held) = self.bystander.ask(acquire(self.handle)).await else {
            panic!("refused")
        };
        let release =
            v1::Release { handle: self.handle, owner: 1, token: held.token, quiet: false };
        assert!(matches!(self.bystander.ask(Request::Release(release)).await, Message::Done(_)));
        Session::open(channel(self.endpoint.clone()).await, open()).await.unwrap();
    }
}

/// Resident memory, in bytes.
fn memory(child: &Child) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", child.id().unwrap())).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Writes `attack` again and again, up to `limit` bytes, and discards what it reads. True if the
/// daemon closed the connection.
async fn flood(stream: UnixStream, limit: usize, mut attack: impl FnMut() -> Vec<u8>) -> bool {
    let (mut reader, mut writer) = stream.into_split();
    let drain = async {
        let mut sink = [0; 4096];
        while reader.read(&mut sink).await.is_ok_and(|read| read > 0) {}
    };
    let write = async {
        let mut written = 0;
        while written < limit {
            let bytes = attack();
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            written += bytes.len();
        }
        // As much as it takes: whether it is cut off is for the other branch to see.
        std::future::pending().await
    };
    timeout(WATCHDOG, async {
        tokio::select! { () = drain => {}, () = write => {} }
    })
    .await
    .is_ok()
}

#[tokio::test]
async fn bytes_that_are_no_http_are_cut_off() {
    let mut target = Target::start().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..20 {
        let mut stream = target.connect().await;
        if round % 2 == 1 {
            stream.write_all(PREFACE).await.unwrap();
        }
        let noise = || (0..64).flat_map(|_| random().to_le_bytes()).collect();
        assert!(flood(stream, 16 << 20, noise).await, "still served");
    }
    target.is_unimpressed().await;
}

#[tokio::test]
async fn a_flood_of_resets_is_cut_off() {
    let mut target = Target::start().await;
    let mut stream = target.connect().await;
    stream.write_all(PREFACE).await.unwrap();
    let mut id = 1;
    let request = move || {
        let mut frames = frame(HEADERS, END_HEADERS, id, &headers());
        frames.extend(frame(RST_STREAM, 0, id, &8u32.to_be_bytes()));
        id += 2;
        frames
    };
    assert!(flood(stream, 256 << 20, request).await, "still served");
    target.is_unimpressed().await;
}

#[tokio::test]
async fn a_flood_of_continuations_is_cut_off() {
    let mut target = Target::start().await;
    for padded in [false, true] {
        let mut stream = target.connect().await;
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(HEADERS, 0, 1, &headers())).await.unwrap();
        // Either nothing at all, or headers without end: 16 MiB of them and more.
        let more = || match padded {
            false => frame(CONTINUATION, 0, 1, &[]),
            true => {
                let mut field = vec![0, 1, b'x', 0x7f, 0x81, 0x7f];
                field.resize(6 + 127 + 16_256, b'y');
                field.truncate(16_384);
                frame(CONTINUATION, 0, 1, &field)
            }
        };
        assert!(flood(stream, 32 << 20, more).await, "still served");
    }
    target.is_unimpressed().await;
}

#[tokio::test]
async fn ten_thousand_connections_are_too_many_for_one_user() {
    let mut target = Target::start().await;
    let Some(()) = allow_descriptors(10_100) else { return };
    let mut held = Vec::new();
    for _ in 0..10_000 {
        let mut stream = target.connect().await;
        let _ = stream.write_all(PREFACE).await;
        held.push(stream);
    }
    let grown = memory(&target._child).saturating_sub(target.before);
    assert!(grown <= MAY_GROW, "grew by {} MiB", grown >> 20);
    assert!(matches!(target.bystander.ask(acquire(target.handle)).await, Message::Granted(_)));
    let release = v1::Release { handle: target.handle, owner: 1, token: 0, quiet: true };
    target.bystander.send(Request::Release(release)).await;
    drop(held);
    let served_again = async {
        loop {
            let mut stream = target.connect().await;
            let _ = stream.write_all(PREFACE).await;
            if stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {
                return;
            }
        }
    };
    within(served_again).await;
    target.is_unimpressed().await;
}

fn allow_descriptors(wanted: u64) -> Option<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < wanted) {
        return None;
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).ok()
}

#[tokio::test]
async fn a_reader_that_never_reads_is_dropped() {
    const PERMITS: u32 = 400_000;
    let mut target = Target::start().await;
    let mut session = Session::open(channel(target.endpoint.clone()).await, open()).await.unwrap();
    let spec = v1::SemLockSpec { class: 3, value: PERMITS, max: 0 };
    let create = v1::Create {
        name: "s".into(),
        spec: Some(v1::create::Spec::SemLock(spec)),
        ..Default::default()
    };
    let Message::Attached(semaphore) = session.ask(Request::Create(create)).await else { panic!() };
    for _ in 0..PERMITS / 1000 {
        for _ in 0..1000 {
            session.send(acquire(semaphore.handle)).await;
        }
        for _ in 0..1000 {
            session.next().await;
        }
    }
    let mut inspect = InspectClient::new(channel(target.endpoint.clone()).await);
    let mut events = inspect.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    // It is told of each permit that it loses, and doesn't read.
    let force = v1::ForceReleaseRequest { object: "s".into(), ..Default::default() };
    let _ = within(inspect.force_release(force)).await;
    let only_the_bystander_is_left = async {
        loop {
            let request = v1::SessionsRequest::default();
            let sessions = inspect.sessions(request).await.unwrap().into_inner().sessions;
            if sessions.iter().all(|session| session.id == target.bystander.opened.session) {
                return;
            }
        }
    };
    within(only_the_bystander_is_left).await;
    // A watch that fell so far behind ends, too.
    let status = loop {
        match within(events.message()).await {
            Ok(event) => assert!(event.is_some(), "an end without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::DataLoss);
    // The holds themselves, which the quotas bound, are more than what is measured elsewhere.
    target.serves_others().await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_has_to_stop_asking() {
    let mut target = Target::start().await;
    let mut session = Session::open(channel(target.endpoint.clone()).await, open()).await.unwrap();
    let handle = session.lock("a").await;
    let mut asked = 0;
    // Each is answered, and no answer is read: in the end no more are accepted.
    while timeout(Duration::from_secs(1), session.send(Request::Query(v1::Query { handle })))
        .await
        .is_ok()
    {
        asked += 1;
        assert!(asked < 5_000_000, "it takes them all");
    }
    target.is_unimpressed().await;
    // A client that reads at last has missed nothing.
    for seq in 2..=1 + asked.min(10_000) {
        assert_eq!(session.next().await.seq, seq);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let daemon = support::Daemon::start();
    for said in [&b""[..], &PREFACE[..10], PREFACE] {
        let mut stream = UnixStream::connect(daemon.endpoint.as_path()).await.unwrap();
        stream.write_all(said).await.unwrap();
        // The clock goes on by itself while nothing else does.
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn every_field_at_its_extremes_is_an_answer_and_never_a_panic() {
    let mut target = Target::start().await;
    let mut session = Session::open(channel(target.endpoint.clone()).await, open()).await.unwrap();
    let long = "\u{1b}".repeat(20_000);
    for n in [0, 1, u32::MAX] {
        for wide in [0, 1, u64::MAX] {
            let (handle, owner, timeout_us) = (n, wide, Some(wide));
            let sem_lock = |class| v1::SemLockSpec { class, value: n, max: n };
            let create = |spec| v1::Create { spec: Some(spec), poison: true, ..Default::default() };
            for request in [
                Request::Acquire(v1::Acquire {
                    handle,
                    owner,
                    unowned: true,
                    timeout_us: Some(0),
                    fail_on_deadlock: true,
                }),
                Request::Release(v1::Release { handle, owner, token: wide, quiet: false }),
                Request::Wait(v1::Wait { handle, owner, timeout_us }),
                Request::Notify(v1::Notify { handle, owner, n }),
                Request::Create(v1::Create { name: long.clone(), ..Default::default() }),
                Request::Create(create(v1::create::Spec::SemLock(sem_lock(n as i32)))),
                Request::Create(create(v1::create::Spec::SemLock(sem_lock(3)))),
                Request::Create(create(v1::create::Spec::Condition(v1::ConditionSpec { lock: n }))),
                Request::Attach(v1::Attach { by: Some(v1::attach::By::Key(long.clone())) }),
                Request::Attach(v1::Attach { by: Some(v1::attach::By::Name(long.clone())) }),
                Request::Detach(v1::Detach { handle: u32::MAX, quiet: false }),
                Request::Unlink(v1::Unlink { name: long.clone() }),
                Request::Forget(v1::Forget { handle, owner, token: wide, quiet: false }),
                Request::MarkConsistent(v1::MarkConsistent { handle, owner }),
                Request::BarrierAction(v1::BarrierAction { handle, owner, ok: true }),
                Request::BarrierReset(v1::BarrierReset { handle }),
                Request::BarrierAbort(v1::BarrierAbort { handle }),
                Request::EventSet(v1::EventSet { handle }),
                Request::EventClear(v1::EventClear { handle }),
                Request::Query(v1::Query { handle }),
            ] {
                session.ask(request).await;
            }
        }
    }
    for (id, ack) in [(0, u64::MAX), (1, 0), (u64::MAX, u64::MAX), (u64::MAX, 0)] {
        let query = Request::Query(v1::Query { handle: 0 });
        session.requests.send(ClientMessage { id, ack, request: Some(query) }).await.unwrap();
        assert_eq!(session.next().await.id, id);
    }
    target.is_unimpressed().await;
}
