//! HTTP/2 between a session's protocol and the bytes of its connection: one gRPC stream. It has no
//! socket: the shell passes functions that read and write, so that both shells share it.

mod grpc;

use std::{
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use http::header::HeaderValue;
use prost::Message as _;
use syncd_proto::v1::ServerMessage;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use self::grpc::LinkError;
use self::grpc::{check_headers, encode, message_length, status};
use super::protocol::Protocol;

/// The flow-control window for replies, in bytes: large, so that window updates are rare.
const WINDOW: u32 = 1 << 20;

/// The number of encoded bytes above which no more messages are taken from the protocol.
const AHEAD: usize = 1 << 15;

/// The number of bytes for the socket above which HTTP/2 has to wait.
const OUTBOX: usize = 1 << 16;

/// The size of a read, in bytes.
const READ: usize = 1 << 14;

/// How many reads are made before the messages are handled.
const READS: usize = 4;

pub(crate) struct Transport {
    connection: client::Connection<Memory, Bytes>,
    send: SendStream<Bytes>,
    response: Option<client::ResponseFuture>,
    recv: Option<RecvStream>,
    /// A message of which only a part has arrived.
    partial: BytesMut,
    /// Encoded messages that wait for flow control.
    ahead: BytesMut,
    memory: Memory,
    /// A write failed; what can still be read may say why.
    broken: Option<io::Error>,
}

impl Transport {
    /// Begins the stream on a new connection.
    pub(crate) fn new() -> Result<Self, LinkError> {
        let memory = Memory::default();
        let handshake = client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(memory.clone());
        // The handshake only writes, and the memory has room.
        let Poll::Ready(shaken) = pin!(handshake).poll(&mut no_wake()) else {
            return Err(LinkError::Protocol("the HTTP/2 handshake didn't complete".to_owned()));
        };
        let (mut requests, connection) = shaken?;
        let mut request = http::Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("http://syncd/syncd.v1.Broker/Session");
        let headers = request.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        let (response, send) = requests.send_request(request, false)?;
        Ok(Self {
            connection,
            send,
            response: Some(response),
            recv: None,
            partial: BytesMut::new(),
            ahead: BytesMut::new(),
            memory,
            broken: None,
        })
    }

    /// Moves everything that can be moved without waiting: bytes from `read`, if the socket may be
    /// `readable`, to the protocol as messages, and the protocol's messages as bytes to `write`. An
    /// error means that the connection has ended.
    pub(crate) fn exchange(
        &mut self,
        protocol: &mut Protocol,
        mut readable: bool,
        mut read: impl FnMut(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Result<(), LinkError> {
        loop {
            let mut reads = 0;
            while readable && reads < READS && self.read(&mut read)? {
                reads += 1;
            }
            let is_more = reads == READS;
            self.pump(protocol, &mut write)?;
            match &self.broken {
                // What the daemon sent before it closed has yet to be read.
                Some(_) if !readable => readable = true,
                Some(error) if !is_more => return Err(io::Error::from(error.kind()).into()),
                None if !is_more => return Ok(()),
                _ => {}
            }
        }
    }

    /// Reads once. False if there was nothing to read, or the other end has closed.
    fn read(
        &mut self,
        read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Result<bool, LinkError> {
        let mut buffers = self.memory.lock();
        let inbox = &mut buffers.inbox;
        inbox.reserve(READ);
        let mut buf = ReadBuf::uninit(inbox.spare_capacity_mut());
        match read(&mut buf) {
            Poll::Pending => return Ok(false),
            Poll::Ready(read) => read?,
        }
        let read = buf.filled().len();
        // SAFETY: `read` bytes were written to the spare capacity.
        unsafe { inbox.advance_mut(read) };
        buffers.ended |= read == 0;
        Ok(read > 0)
    }

    fn pump(
        &mut self,
        protocol: &mut Protocol,
        mut write: impl FnMut(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Result<(), LinkError> {
        loop {
            let is_all = self.fill(protocol)?;
            let mut buffers = self.memory.lock();
            while !buffers.outbox.is_empty() {
                let written = match &self.broken {
                    Some(_) => buffers.outbox.len(),
                    None => match write(&buffers.outbox) {
                        Poll::Pending => return Ok(()),
                        Poll::Ready(Ok(written)) => written,
                        Poll::Ready(Err(error)) => {
                            self.broken = Some(error);
                            0
                        }
                    },
                };
                buffers.outbox.advance(written);
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// Whether bytes wait for room in the socket.
    pub(crate) fn is_full(&self) -> bool {
        !self.memory.lock().outbox.is_empty()
    }

    /// Whether a message taken from the protocol hasn't reached the socket.
    pub(crate) fn is_unsent(&self) -> bool {
        !self.ahead.is_empty() || self.is_full()
    }

    /// Moves messages between the protocol and memory. False if the outbox is full and there may be
    /// more.
    fn fill(&mut self, protocol: &mut Protocol) -> Result<bool, LinkError> {
        loop {
            while self.ahead.len() < AHEAD
                && let Some(message) = protocol.poll_transmit()
            {
                encode(message, &mut self.ahead);
            }
            let before = self.ahead.len();
            if before > 0 {
                self.send.reserve_capacity(before);
                let room = self.send.capacity().min(before);
                if room > 0 {
                    self.send.send_data(self.ahead.split_to(room).freeze(), false)?;
                }
            }
            self.turn(protocol)?;
            if self.memory.lock().outbox.len() >= OUTBOX {
                return Ok(false);
            }
            let moves = self.ahead.len() < before && !self.ahead.is_empty();
            if !moves && (self.ahead.len() >= AHEAD || !protocol.has_transmit()) {
                return Ok(true);
            }
        }
    }

    fn turn(&mut self, protocol: &mut Protocol) -> Result<(), LinkError> {
        let connection = Pin::new(&mut self.connection).poll(&mut no_wake());
        if let Some(response) = &mut self.response
            && let Poll::Ready(response) = Pin::new(response).poll(&mut no_wake())
        {
            let response = response?;
            check_headers(response.status(), response.headers())?;
            self.recv = Some(response.into_body());
            self.response = None;
        }
        while let Some(recv) = &mut self.recv {
            match recv.poll_data(&mut no_wake()) {
                Poll::Ready(Some(data)) => {
                    let data = data?;
                    recv.flow_control().release_capacity(data.len())?;
                    self.decode(data, protocol)?;
                }
                Poll::Ready(None) => {
                    let Poll::Ready(trailers) = recv.poll_trailers(&mut no_wake()) else { break };
                    let status = trailers?.and_then(|trailers| status(&trailers));
                    return Err(status.unwrap_or(LinkError::Closed));
                }
                Poll::Pending => break,
            }
        }
        match connection {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => Err(LinkError::Closed),
            Poll::Ready(Err(error)) => Err(error.into()),
        }
    }

    /// Decodes whole messages in place; an incomplete one is kept for the next call.
    fn decode(&mut self, data: Bytes, protocol: &mut Protocol) -> Result<(), LinkError> {
        let mut data = data;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&data);
            data = self.partial.split().freeze();
        }
        while let Some(length) = message_length(&data)? {
            data.advance(5);
            let message = ServerMessage::decode(data.split_to(length));
            let message = message.map_err(|error| LinkError::Protocol(error.to_string()))?;
            protocol.handle_message(message);
        }
        self.partial.extend_from_slice(&data);
        Ok(())
    }
}

/// A context without a waker: the shell calls the transport when there is something to do.
fn no_wake() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// The connection as the h2 crate sees it: two buffers.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Buffers>>);

#[derive(Default)]
struct Buffers {
    inbox: BytesMut,
    /// The other end has closed.
    ended: bool,
    outbox: BytesMut,
}

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Memory {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut buffers = self.lock();
        if buffers.inbox.is_empty() {
            return if buffers.ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let length = buf.remaining().min(buffers.inbox.len());
        buf.put_slice(&buffers.inbox[..length]);
        buffers.inbox.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outbox = &mut self.lock().outbox;
        if outbox.len() >= OUTBOX {
            return Poll::Pending;
        }
        outbox.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use syncd_proto::v1::Open;

    use super::*;

    #[test]
    fn a_socket_that_takes_a_byte_at_a_time_gets_all_bytes_in_order() {
        let mut bytes = [Vec::new(), Vec::new()];
        for (at_once, bytes) in [1, usize::MAX].into_iter().zip(&mut bytes) {
            let mut protocol = Protocol::new(Instant::now(), Open::default());
            assert!(protocol.poll_connect(Instant::now()));
            protocol.handle_connected();
            let mut transport = Transport::new().unwrap();
            let mut is_full = false;
            // The socket is full every other time.
            while bytes.is_empty() || transport.is_unsent() {
                let write = |written: &[u8]| {
                    is_full = !is_full && at_once == 1;
                    if is_full {
                        return Poll::Pending;
                    }
                    let taken = written.len().min(at_once);
                    bytes.extend_from_slice(&written[..taken]);
                    Poll::Ready(Ok(taken))
                };
                transport.exchange(&mut protocol, false, |_| Poll::Pending, write).unwrap();
            }
        }
        assert!(bytes[0].starts_with(b"PRI * HTTP/2.0"));
        assert_eq!(bytes[0], bytes[1]);
    }

    #[test]
    fn the_end_of_the_bytes_is_the_end_of_the_connection() {
        let mut protocol = Protocol::new(Instant::now(), Open::default());
        let mut transport = Transport::new().unwrap();
        let write = |bytes: &[u8]| Poll::Ready(Ok(bytes.len()));
        transport.exchange(&mut protocol, true, |_| Poll::Pending, write).unwrap();
        let ended = transport.exchange(&mut protocol, true, |_| Poll::Ready(Ok(())), write);
        let error = ended.unwrap_err();
        assert!(!error.is_final(), "{error}");
    }

    #[test]
    fn bytes_that_came_before_the_socket_broke_are_read() {
        let mut protocol = Protocol::new(Instant::now(), Open::default());
        let mut transport = Transport::new().unwrap();
        let mut reads = 0;
        let read = |_: &mut ReadBuf<'_>| {
            reads += 1;
            Poll::Pending
        };
        let write = |_: &[u8]| Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let error = transport.exchange(&mut protocol, false, read, write).unwrap_err();
        assert!(matches!(error, LinkError::Io(error) if error.kind() == io::ErrorKind::BrokenPipe));
        assert_eq!(reads, 1);
    }
}
