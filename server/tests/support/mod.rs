//! A daemon of one's own in this process, and a plain tonic client to it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::{Child, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use syncd_proto::{
    Endpoint, PROTOCOL, socket,
    v1::{
        self, ClientMessage, ServerMessage, broker_client::BrokerClient, client_message::Request,
        inspect_client::InspectClient, server_message::Message,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Status, Streaming, transport::Channel};

/// Long enough for the slowest machine: only what hangs takes so long.
pub const WATCHDOG: Duration = Duration::from_secs(60);

pub struct Daemon {
    pub endpoint: Endpoint,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), syncd::ServeError>>,
    _dir: tempfile::TempDir,
}

impl Daemon {
    pub fn start() -> Self {
        Self::with(|_| ())
    }

    pub fn with(configure: impl FnOnce(&mut syncd::Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
        let mut config = syncd::Config::new(endpoint.clone());
        configure(&mut config);
        let server = syncd::Server::bind(config).unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async move { drop(stopped.await) }));
        Self { endpoint, stop, running, _dir: dir }
    }

    /// One HTTP/2 connection.
    pub async fn channel(&self) -> Channel {
        channel(self.endpoint.clone()).await
    }

    pub async fn inspect(&self) -> InspectClient<Channel> {
        InspectClient::new(self.channel().await)
    }

    /// A session on a connection of its own.
    pub async fn session(&self) -> Session {
        Session::open(self.channel().await, open()).await.unwrap()
    }

    /// Tells it to leave, and waits until it has.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        within(self.running).await.unwrap().unwrap();
    }

    /// Waits until it has left by itself.
    pub async fn left(self) {
        within(self.running).await.unwrap().unwrap();
    }
}

/// One HTTP/2 connection to the daemon at `endpoint`.
pub async fn channel(endpoint: Endpoint) -> Channel {
    within(try_channel(endpoint)).await.unwrap()
}

pub async fn try_channel(endpoint: Endpoint) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let endpoint = endpoint.clone();
        async move { socket::connect(&endpoint).await.map(TokioIo::new) }
    });
    // Little is on its way to who doesn't read.
    let anywhere = tonic::transport::Endpoint::from_static("http://localhost")
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(1 << 20);
    anywhere.connect_with_connector(connector).await
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(WATCHDOG, future).await.expect("it hangs")
}

pub fn open() -> v1::Open {
    v1::Open { protocol: PROTOCOL, ..Default::default() }
}

/// One stream of one session.
pub struct Session {
    pub opened: v1::Opened,
    pub requests: mpsc::Sender<ClientMessage>,
    pub replies: Streaming<ServerMessage>,
    next_id: AtomicU64,
}

impl Session {
    /// Opens or resumes; the message is the refusal if there is one.
    pub async fn open(channel: Channel, open: v1::Open) -> Result<Self, Box<v1::Error>> {
        let (requests, mut replies) = stream(channel).await.unwrap();
        let first = ClientMessage { id: 1, ack: 0, request: Some(Request::Open(open)) };
        requests.send(first).await.unwrap();
        match within(replies.message()).await.unwrap().unwrap().message.unwrap() {
            Message::Opened(opened) => {
                let next_id = AtomicU64::new(opened.last_id.max(1) + 1);
                Ok(Self { opened, requests, replies, next_id })
            }
            Message::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    /// Opens; `None` if it doesn't come to an answer.
    pub async fn try_open(channel: Channel, open: v1::Open) -> Option<Self> {
        let (requests, mut replies) = stream(channel).await.ok()?;
        let first = ClientMessage { id: 1, ack: 0, request: Some(Request::Open(open)) };
        requests.send(first).await.ok()?;
        match within(replies.message()).await.ok()??.message? {
            Message::Opened(opened) => {
                Some(Self { opened, requests, replies, next_id: AtomicU64::new(2) })
            }
            _ => None,
        }
    }

    /// Sends and doesn't wait; the request's id.
    pub async fn send(&self, request: Request) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let message = ClientMessage { id, ack: 0, request: Some(request) };
        self.requests.send(message).await.unwrap();
        id
    }

    /// The next message.
    pub async fn next(&mut self) -> ServerMessage {
        within(self.replies.message()).await.unwrap().expect("the stream goes on")
    }

    /// Sends and waits for the reply, which must be the next message.
    pub async fn ask(&mut self, request: Request) -> Message {
        let id = self.send(request).await;
        let reply = self.next().await;
        assert_eq!(reply.id, id, "{reply:?}");
        reply.message.unwrap()
    }

    /// A Lock of that name; its handle.
    pub async fn lock(&mut self, name: &str) -> u32 {
        let spec = v1::SemLockSpec { class: v1::SemLockClass::Lock.into(), value: 1, max: 1 };
        let create = v1::Create {
            name: name.into(),
            spec: Some(v1::create::Spec::SemLock(spec)),
            ..Default::default()
        };
        match self.ask(Request::Create(create)).await {
            Message::Attached(attached) => attached.handle,
            other => panic!("{other:?}"),
        }
    }
}

pub fn acquire(handle: u32) -> Request {
    Request::Acquire(v1::Acquire { handle, owner: 1, ..Default::default() })
}

/// What is granted, which must be the next message.
pub async fn granted(session: &mut Session, request: Request) -> v1::Granted {
    match session.ask(request).await {
        Message::Granted(granted) => granted,
        other => panic!("{other:?}"),
    }
}

pub async fn release(session: &mut Session, handle: u32, token: u64) {
    let release = v1::Release { handle, owner: 1, token, quiet: false };
    match session.ask(Request::Release(release)).await {
        Message::Done(_) => {}
        other => panic!("{other:?}"),
    }
}

/// Whether somebody holds it. If nobody does, an owner of `session` has it now.
pub async fn is_held(session: &mut Session, handle: u32) -> bool {
    let now = v1::Acquire { handle, owner: 9, timeout_us: Some(0), ..Default::default() };
    match session.ask(Request::Acquire(now)).await {
        Message::Granted(_) => false,
        Message::Error(error) if error.code() == v1::ErrorCode::TimedOut => true,
        other => panic!("{other:?}"),
    }
}

/// Looks again and again.
pub async fn until(what: impl Fn() -> bool) {
    within(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A bare stream, before Open.
pub async fn stream(
    channel: Channel,
) -> Result<(mpsc::Sender<ClientMessage>, Streaming<ServerMessage>), Status> {
    let (requests, outbound) = mpsc::channel(100_000);
    let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let replies = BrokerClient::new(channel).session(outbound).await?.into_inner();
    Ok((requests, replies))
}

/// Where the part of a client's process finds its daemon.
pub const SOCKET: &str = "SYNCD_TEST_SOCKET";

/// A process that holds the lock "a".
pub struct Holder(
    pub Child,
    #[allow(dead_code, reason = "open until its end")] Lines<BufReader<ChildStdout>>,
);

impl Holder {
    /// This test binary's `the_client`, told to do that part.
    pub async fn start(endpoint: &Endpoint, part: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_client", "--nocapture", "--test-threads=1"]);
        command.env(SOCKET, endpoint.to_string()).stdin(Stdio::piped());
        if let Some(part) = part {
            command.env(part, "1");
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = tokio::task::spawn_blocking(move || {
            let holds = said.any(|line| line.unwrap().contains("holding"));
            (holds, said)
        });
        let (holds, said) = within(ready).await.unwrap();
        assert!(holds, "it ended without its lock");
        Self(child, said)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.pid().cast_signed(), signal) }, 0);
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
