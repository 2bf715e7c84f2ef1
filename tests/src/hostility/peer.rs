//! A client by hand: one stream of one session, which says and reads what it is told to, and a bare
//! socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use syncd_proto::{
    PROTOCOL,
    v1::{
        self, ClientMessage, SemLockClass, ServerMessage, broker_client::BrokerClient,
        client_message::Request, create::Spec, inspect_client::InspectClient,
        server_message::Message,
    },
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, sync::mpsc};
use tonic::{Status, Streaming, transport::Channel};

/// How many messages an attacker has ready at once.
const READY: usize = 1 << 16;

/// One stream.
#[derive(Debug)]
pub(crate) struct Peer {
    requests: mpsc::Sender<ClientMessage>,
    replies: Streaming<ServerMessage>,
    id: u64,
    ack: u64,
}

impl Peer {
    /// A session in a namespace, on a connection of its own.
    pub async fn open(socket: &Path, namespace: &str) -> Result<Self, Status> {
        Self::on(channel(socket).await?, namespace).await
    }

    /// The same on a connection that is there.
    pub async fn on(channel: Channel, namespace: &str) -> Result<Self, Status> {
        let open =
            v1::Open { protocol: PROTOCOL, namespace: namespace.into(), ..Default::default() };
        match Self::enter(channel, open).await? {
            (peer, Message::Opened(_)) => Ok(peer),
            (_, other) => Err(Status::internal(format!("not opened: {other:?}"))),
        }
    }

    /// A stream that begins so, and the answer.
    pub async fn enter(channel: Channel, open: v1::Open) -> Result<(Self, Message), Status> {
        let mut peer = Self::bare(channel).await?;
        peer.say(Request::Open(open)).await;
        let answer = peer.hear().await?.message;
        Ok((peer, answer.ok_or_else(|| Status::internal("an empty answer"))?))
    }

    /// The next request has the number after this one.
    pub fn go_on_after(&mut self, id: u64) {
        self.id = id;
    }

    /// The last message that was numbered.
    pub fn received(&self) -> u64 {
        self.ack
    }

    /// A stream that has said nothing.
    pub async fn bare(channel: Channel) -> Result<Self, Status> {
        let (requests, outbound) = mpsc::channel(READY);
        let outbound = futures_util::stream::unfold(outbound, |mut outbound| async {
            outbound.recv().await.map(|message| (message, outbound))
        });
        let replies = BrokerClient::new(channel).session(outbound).await?.into_inner();
        Ok(Peer { requests, replies, id: 0, ack: 0 })
    }

    /// Sends; the request's id.
    pub async fn say(&mut self, request: Request) -> u64 {
        self.id += 1;
        let message = ClientMessage { id: self.id, ack: self.ack, request: Some(request) };
        let _ = self.requests.send(message).await;
        self.id
    }

    /// The next message, which is acknowledged with the next request.
    pub async fn hear(&mut self) -> Result<ServerMessage, Status> {
        let message = self.replies.message().await?;
        let message = message.ok_or_else(|| Status::internal("the stream is over"))?;
        self.ack = self.ack.max(message.seq);
        Ok(message)
    }

    /// Sends, and waits for the reply.
    pub async fn ask(&mut self, request: Request) -> Result<Message, Status> {
        let id = self.say(request).await;
        loop {
            let message = self.hear().await?;
            if message.id == id {
                return message.message.ok_or_else(|| Status::internal("an empty reply"));
            }
        }
    }

    /// Gets or creates an object; its handle.
    pub async fn object(&mut self, name: &str, spec: Spec) -> Result<u32, Status> {
        match self.ask(create(name, spec)).await? {
            Message::Attached(attached) => Ok(attached.handle),
            other => Err(Status::internal(format!("{name}: {other:?}"))),
        }
    }

    /// The handle of a Lock.
    pub async fn lock(&mut self, name: &str) -> Result<u32, Status> {
        self.object(name, semlock(SemLockClass::Lock, 1)).await
    }
}

pub(crate) fn semlock(class: SemLockClass, value: u32) -> Spec {
    let max = if class == SemLockClass::Lock { 1 } else { i32::MAX as u32 };
    Spec::SemLock(v1::SemLockSpec { class: class.into(), value, max })
}

pub(crate) fn create(name: &str, spec: Spec) -> Request {
    Request::Create(v1::Create { name: name.into(), spec: Some(spec), ..Default::default() })
}

pub(crate) fn acquire(handle: u32, owner: u64, timeout: Option<Duration>) -> Request {
    let timeout_us = timeout.map(|timeout| timeout.as_micros() as u64);
    Request::Acquire(v1::Acquire { handle, owner, timeout_us, ..Default::default() })
}

/// One HTTP/2 connection.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, Status> {
    let socket = PathBuf::from(socket);
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let anywhere = tonic::transport::Endpoint::from_static("http://localhost");
    let connected = anywhere.connect_with_connector(connector).await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

pub(crate) async fn inspect(socket: &Path) -> Result<InspectClient<Channel>, Status> {
    Ok(InspectClient::new(channel(socket).await?))
}

/// A socket that has said so much.
pub(crate) async fn bare(socket: &Path, first: &[u8]) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(first).await?;
    Ok(stream)
}
