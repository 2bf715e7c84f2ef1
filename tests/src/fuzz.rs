//! Bad input over real streams: requests with every field at its extremes, and encodings that
//! were bent, cut or made up. A daemon must answer or end the stream, and must not change what
//! is somebody else's. Never here: HTTP/2 below the messages (see `server/tests/hostile.rs`).

use fastrand::Rng;
use prost::Message as _;
use syncd_proto::v1::{
    self, ClientMessage, Create, ErrorCode, SemLockSpec, ServerMessage, client_message::Request,
    create, server_message::Message,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{
    Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

use crate::daemon::{Daemon, WATCHDOG, connect};

/// Messages per stream.
const BATCH: u64 = 500;
/// The most that a daemon may grow by, in KiB.
const MAY_GROW: u64 = 64 << 10;

/// Sends so many bad messages.
///
/// # Errors
/// The first thing that must not be.
pub fn bad_input(messages: u64) -> Result<u64, String> {
    let daemon = Daemon::start(&["--grace", "0s", "--linger", "1s"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(async {
        let mut rng = Rng::with_seed(18);
        let mut bystander = Stream::open(&daemon, "bystander").await?;
        let held = bystander.take().await?;
        let (mut sent, mut before) = (0, 0);
        while sent < messages {
            let bent = rng.bool();
            let mut stream = Stream::open(&daemon, "").await?;
            stream.make_some().await?;
            for _ in 0..BATCH {
                stream.last_id += 1;
                let id =
                    if rng.u8(..50) == 0 { rng.u64(..=stream.last_id) } else { stream.last_id };
                let ack = extreme(&mut rng);
                let request = Some(request(&mut rng)).filter(|_| rng.u8(..50) > 0);
                let message = ClientMessage { id, ack, request }.encode_to_vec();
                stream.send(if bent { bend(&mut rng, message) } else { message });
            }
            sent += BATCH;
            stream.finish(bent).await?;
            // What the first streams took to warm up is no leak.
            match before {
                0 => before = daemon.memory(),
                _ if daemon.memory() > before + MAY_GROW => {
                    return Err(format!("{before} KiB became {}", daemon.memory()));
                }
                _ => {}
            }
        }
        bystander.release(held).await?;
        match daemon.has_panicked() {
            true => Err(format!("the daemon panicked: {}", daemon.log())),
            false => Ok(sent),
        }
    })
}

/// A stream whose requests are bytes.
struct Stream {
    requests: mpsc::UnboundedSender<Vec<u8>>,
    replies: Streaming<ServerMessage>,
    last_id: u64,
}

impl Stream {
    async fn open(daemon: &Daemon, namespace: &str) -> Result<Self, String> {
        let channel = connect(&daemon.socket()).await.map_err(|error| error.to_string())?;
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let outgoing = futures_util::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let mut grpc = Grpc::new(channel);
        grpc.ready().await.map_err(|error| error.to_string())?;
        let path = PathAndQuery::from_static("/syncd.v1.Broker/Session");
        let request = tonic::Request::new(outgoing);
        let replies = grpc.streaming(request, path, Bytes).await;
        let replies = replies.map_err(|status| status.to_string())?.into_inner();
        let mut stream = Stream { requests, replies, last_id: 0 };
        let open = v1::Open { protocol: 1, namespace: namespace.into(), ..Default::default() };
        match stream.call(Request::Open(open)).await? {
            Message::Opened(_) => Ok(stream),
            other => Err(format!("no session: {other:?}")),
        }
    }

    fn send(&mut self, message: Vec<u8>) {
        let _ = self.requests.send(message);
    }

    /// The next message; `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<ServerMessage>, String> {
        let next = timeout(WATCHDOG, self.replies.message()).await;
        Ok(next.map_err(|_| "the daemon says nothing")?.unwrap_or(None))
    }

    async fn call(&mut self, request: Request) -> Result<Message, String> {
        self.last_id += 1;
        let id = self.last_id;
        self.send(ClientMessage { id, ack: 0, request: Some(request) }.encode_to_vec());
        loop {
            match self.next().await?.ok_or("the stream ended")? {
                ServerMessage { id: 0, seq: 0, message: Some(message) } => return Ok(message),
                ServerMessage { id: answered, message: Some(message), .. } if answered == id => {
                    return Ok(message);
                }
                _ => {}
            }
        }
    }

    /// One object of each kind: handles 0 to 6, or 1 to 7.
    async fn make_some(&mut self) -> Result<(), String> {
        let sem = |class| create::Spec::SemLock(SemLockSpec { class, value: 1, max: 0 });
        let mut lock = 0;
        for (i, spec) in [
            sem(1),
            sem(2),
            sem(3),
            sem(4),
            create::Spec::Event(v1::EventSpec {}),
            create::Spec::Barrier(v1::BarrierSpec { parties: 2 }),
            create::Spec::Condition(v1::ConditionSpec { lock: 0 }),
        ]
        .into_iter()
        .enumerate()
        {
            let spec = match spec {
                create::Spec::Condition(_) => create::Spec::Condition(v1::ConditionSpec { lock }),
                spec => spec,
            };
            let create = Create { spec: Some(spec), ..Default::default() };
            match self.call(Request::Create(create)).await? {
                Message::Attached(attached) if i == 0 => lock = attached.handle,
                Message::Attached(_) => {}
                other => return Err(format!("not created: {other:?}")),
            }
        }
        Ok(())
    }

    /// Takes a lock of its own.
    async fn take(&mut self) -> Result<(u32, u64), String> {
        let spec = create::Spec::SemLock(SemLockSpec { class: 1, value: 0, max: 0 });
        let create = Create { name: "its own".into(), spec: Some(spec), ..Default::default() };
        let Message::Attached(v1::Attached { handle, .. }) =
            self.call(Request::Create(create)).await?
        else {
            return Err("no lock".into());
        };
        let acquire = v1::Acquire { handle, owner: 1, ..Default::default() };
        match self.call(Request::Acquire(acquire)).await? {
            Message::Granted(granted) => Ok((handle, granted.token)),
            other => Err(format!("not granted: {other:?}")),
        }
    }

    async fn release(&mut self, (handle, token): (u32, u64)) -> Result<(), String> {
        let release = v1::Release { handle, owner: 1, token, quiet: false };
        match self.call(Request::Release(release)).await? {
            Message::Done(_) => Ok(()),
            other => Err(format!("the bystander's lock was touched: {other:?}")),
        }
    }

    /// Reads what there is to hear, until the daemon has handled everything or ended the
    /// stream; it may end one with messages that are none, with what is no message at all.
    async fn finish(mut self, may_end: bool) -> Result<(), String> {
        let id = u64::MAX;
        let query = Request::Query(v1::Query { handle: u32::MAX });
        self.send(ClientMessage { id, ack: 0, request: Some(query) }.encode_to_vec());
        while let Some(ServerMessage { id: answered, message, .. }) = self.next().await? {
            match message {
                Some(Message::Error(error))
                    if error.code() == ErrorCode::InvalidArgument && error.field.is_empty() =>
                {
                    return Err(format!("an error that names no field: {error:?}"));
                }
                Some(Message::Error(error)) if error.text.is_empty() => {
                    return Err(format!("an error without words: {error:?}"));
                }
                _ => {}
            }
            if answered == id {
                return Ok(());
            }
        }
        if may_end { Ok(()) } else { Err("the stream ended, though every message was one".into()) }
    }
}

fn extreme(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => u64::MAX,
        1 => u64::from(u32::MAX),
        2 => 1 << 63,
        3 => rng.u64(..),
        _ => rng.u64(..4),
    }
}

fn small(rng: &mut Rng) -> u32 {
    match rng.u8(..12) {
        0 => u32::MAX,
        1 => 1 << 31,
        2 => rng.u32(..),
        _ => rng.u32(..8),
    }
}

fn time(rng: &mut Rng) -> Option<u64> {
    (rng.u8(..4) > 0).then(|| if rng.bool() { 0 } else { extreme(rng) })
}

fn text(rng: &mut Rng) -> String {
    match rng.u8(..8) {
        0 => "x".repeat(rng.usize(250..260)),
        1 => "x".repeat(rng.usize(..12_000)),
        2 => "\0".into(),
        3 => "é\u{202e}\n\"'".repeat(rng.usize(..9)),
        4 => format!("{:x}-{:x}-{:016x}", rng.u32(..9), rng.u64(..99), rng.u64(..)),
        5 => String::new(),
        _ => format!("name {}", rng.u8(..4)),
    }
}

/// Any request, with fields that are small, wrong or as large as can be.
fn request(rng: &mut Rng) -> Request {
    let (handle, owner, token) = (small(rng), extreme(rng), extreme(rng));
    let (timeout_us, quiet, ok) = (time(rng), rng.bool(), rng.bool());
    match rng.u8(..24) {
        0 => Request::Open(v1::Open {
            protocol: small(rng),
            namespace: text(rng),
            label: text(rng),
            resume_key: text(rng).into_bytes(),
            resume_seq: extreme(rng),
            attempt: extreme(rng),
            replaces: text(rng).into_bytes(),
        }),
        1..4 => Request::Acquire(v1::Acquire {
            handle,
            owner,
            unowned: ok,
            timeout_us,
            fail_on_deadlock: quiet,
        }),
        4..6 => Request::Release(v1::Release { handle, owner, token, quiet }),
        6 => Request::Wait(v1::Wait { handle, owner, timeout_us }),
        7 => Request::Notify(v1::Notify { handle, owner, n: small(rng) }),
        8 => Request::Cancel(v1::Cancel { id: extreme(rng), give_back: ok }),
        9..11 => Request::Create(Create {
            name: text(rng),
            spec: match rng.u8(..5) {
                0 => None,
                1 => Some(create::Spec::Condition(v1::ConditionSpec { lock: handle })),
                2 => Some(create::Spec::Event(v1::EventSpec {})),
                3 => Some(create::Spec::Barrier(v1::BarrierSpec { parties: small(rng) })),
                _ => Some(create::Spec::SemLock(SemLockSpec {
                    class: rng.i32(-1..7),
                    value: small(rng),
                    max: small(rng),
                })),
            },
            keep: false,
            poison: quiet,
            exclusive: ok,
        }),
        11 => Request::Attach(v1::Attach {
            by: match rng.u8(..3) {
                0 => None,
                1 => Some(v1::attach::By::Name(text(rng))),
                _ => Some(v1::attach::By::Key(text(rng))),
            },
        }),
        12 => Request::Detach(v1::Detach { handle, quiet }),
        13 => Request::Unlink(v1::Unlink { name: text(rng) }),
        14 => Request::MarkConsistent(v1::MarkConsistent { handle, owner }),
        15 => Request::EventSet(v1::EventSet { handle }),
        16 => Request::EventClear(v1::EventClear { handle }),
        17 => Request::EventWait(v1::EventWait { handle, owner, timeout_us }),
        18 => Request::BarrierWait(v1::BarrierWait { handle, owner, timeout_us, has_action: ok }),
        19 => Request::BarrierAction(v1::BarrierAction { handle, owner, ok }),
        20 => Request::BarrierReset(v1::BarrierReset { handle }),
        21 => Request::BarrierAbort(v1::BarrierAbort { handle }),
        22 => Request::Forget(v1::Forget { handle, owner, token, quiet }),
        _ => Request::Query(v1::Query { handle }),
    }
}

/// Flips, cuts, doubles or makes up bytes; most messages stay what they were.
fn bend(rng: &mut Rng, mut message: Vec<u8>) -> Vec<u8> {
    match rng.u8(..200) {
        0 => message.truncate(rng.usize(..=message.len())),
        1 => message.iter_mut().for_each(|byte| *byte = rng.u8(..)),
        2 => message.extend_from_within(..),
        3..8 if !message.is_empty() => {
            let at = rng.usize(..message.len());
            message[at] ^= 1 << rng.u8(..8);
        }
        _ => {}
    }
    message
}

/// Bytes as they are one way, messages the other.
#[derive(Clone, Copy, Debug)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ServerMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Bytes
    }

    fn decoder(&mut self) -> Self {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        prost::bytes::BufMut::put_slice(into, &item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = ServerMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<ServerMessage>, Status> {
        ServerMessage::decode(from).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
