//! A session spoken by hand, straight over h2: any number of requests in one frame, and no
//! bookkeeping but what the protocol asks for. It stands for many clients at once where the
//! daemon's cost is in question; where a client's is, the client crate is used.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::Connection};
use prost::Message as _;
use syncd_proto::{
    Endpoint, PROTOCOL,
    socket::{self, Socket},
    v1::{
        Acquire, Attached, ClientMessage, Create, Granted, Open, Query, Release, SemLockClass,
        SemLockSpec, ServerMessage, client_message::Request, create::Spec, server_message::Message,
    },
};

/// gRPC's prefix of a message: one byte of flags, four of length.
const PREFIX: usize = 5;
const WINDOW: u32 = 1 << 24;

/// One open session on a connection of its own.
pub struct Wire {
    connection: Connection<Socket>,
    requests: SendStream<Bytes>,
    replies: RecvStream,
    outgoing: BytesMut,
    incoming: BytesMut,
    last_id: u64,
    last_seq: u64,
}

impl Wire {
    pub async fn open(path: &str) -> Wire {
        let endpoint: Endpoint = path.parse().expect("a short path");
        let socket = socket::connect(&endpoint).await.expect("the daemon listens");
        let (mut sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(socket)
            .await
            .expect("HTTP/2 begins");
        let head = http::Request::post("http://syncd/syncd.v1.Broker/Session")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a valid head");
        let (response, requests) = sender.send_request(head, false).expect("a stream opens");
        let mut response = pin!(response);
        let response = poll_fn(|cx| {
            if Pin::new(&mut connection).poll(cx).is_ready() {
                panic!("the daemon hung up");
            }
            response.as_mut().poll(cx)
        });
        let replies = response.await.expect("a session is served").into_body();
        let (outgoing, incoming) = Default::default();
        let mut wire =
            Wire { connection, requests, replies, outgoing, incoming, last_id: 0, last_seq: 0 };
        wire.call(Request::Open(Open { protocol: PROTOCOL, ..Open::default() })).await;
        wire
    }

    /// Adds a request to what goes out next.
    pub fn push(&mut self, request: Request) {
        self.last_id += 1;
        let (id, ack) = (self.last_id, self.last_seq);
        let message = ClientMessage { id, ack, request: Some(request) };
        self.outgoing.put_u8(0);
        self.outgoing.put_u32(message.encoded_len() as u32);
        message.encode(&mut self.outgoing).expect("a buffer that grows");
    }

    /// The id of the request that was pushed last.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    fn send(&mut self) {
        if !self.outgoing.is_empty() {
            let frame = self.outgoing.split().freeze();
            self.requests.send_data(frame, false).expect("the session is open");
        }
    }

    /// Sends what was pushed, without waiting for anything.
    pub async fn flush(&mut self) {
        self.send();
        poll_fn(|cx| {
            self.poll_connection(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Sends what was pushed, and waits for the next message.
    pub async fn next(&mut self) -> ServerMessage {
        self.send();
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Sends a request and waits for its reply; what else comes before it is dropped.
    pub async fn call(&mut self, request: Request) -> Message {
        self.push(request);
        let id = self.last_id;
        loop {
            let reply = self.next().await;
            if reply.id == id {
                return reply.message.expect("a message says something");
            }
        }
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) {
        if let Poll::Ready(end) = Pin::new(&mut self.connection).poll(cx) {
            panic!("the daemon hung up: {end:?}");
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<ServerMessage> {
        let mut polled = false;
        loop {
            if let Some(message) = self.decode() {
                self.last_seq = self.last_seq.max(message.seq);
                return Poll::Ready(message);
            }
            match self.replies.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => {
                    let flow = self.replies.flow_control();
                    flow.release_capacity(data.len()).expect("it was received");
                    self.incoming.extend_from_slice(&data);
                }
                Poll::Ready(end) => panic!("the session ended: {end:?}"),
                Poll::Pending if polled => return Poll::Pending,
                Poll::Pending => {
                    self.poll_connection(cx);
                    polled = true;
                }
            }
        }
    }

    fn decode(&mut self) -> Option<ServerMessage> {
        let length = self.incoming.get(1..PREFIX)?.try_into().map(u32::from_be_bytes).ok()?;
        let end = PREFIX + length as usize;
        if self.incoming.len() < end {
            return None;
        }
        self.incoming.advance(PREFIX);
        let message = self.incoming.split_to(length as usize);
        Some(ServerMessage::decode(message).expect("the daemon speaks the protocol"))
    }

    /// Creates an object, or attaches to the one of that name, and returns its handle.
    pub async fn create(&mut self, name: &str, spec: Spec) -> u32 {
        match self.call(Request::Create(create(name, spec))).await {
            Message::Attached(Attached { handle, .. }) => handle,
            other => panic!("no object '{name}': {other:?}"),
        }
    }

    /// Waits until the daemon has handled all that was pushed.
    pub async fn settle(&mut self, handle: u32) {
        self.call(Request::Query(Query { handle })).await;
    }
}

pub fn lock() -> Spec {
    Spec::SemLock(SemLockSpec { class: SemLockClass::Lock.into(), ..SemLockSpec::default() })
}

pub fn create(name: &str, spec: Spec) -> Create {
    Create { name: name.into(), spec: Some(spec), ..Create::default() }
}

pub fn acquire(handle: u32, owner: u64) -> Request {
    Request::Acquire(Acquire { handle, owner, ..Acquire::default() })
}

pub fn release(handle: u32, owner: u64, token: u64) -> Request {
    Request::Release(Release { handle, owner, token, quiet: true })
}

/// The fencing token of a grant.
pub fn granted(message: ServerMessage) -> u64 {
    match message.message {
        Some(Message::Granted(Granted { token, .. })) => token,
        other => panic!("not granted: {other:?}"),
    }
}
