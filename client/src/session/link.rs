//! One gRPC stream over one HTTP/2 connection, driven by whoever polls it: frames in, frames
//! out. Never here: request ids, sequence numbers, or what to do when it breaks.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client};
use http::{HeaderMap, header::HeaderValue};
use prost::Message as _;
use syncd_proto::{
    Endpoint, socket,
    v1::{
        self, ClientMessage, Open, Opened, ServerMessage, client_message::Request,
        server_message::Message,
    },
};

use super::outlet::Outlet;
use crate::error::SessionLost;

/// Far above what a reply can be: the daemon's lists are bounded.
const MAX_MESSAGE: usize = 1 << 20;

/// Room for replies on their way, so that window updates are rare.
const WINDOW: u32 = 1 << 20;

pub(super) struct Link {
    connection: client::Connection<Outlet, Bytes>,
    send: SendStream<Bytes>,
    recv: RecvStream,
    partial: BytesMut,
    /// What came together with Opened.
    early: VecDeque<ServerMessage>,
    /// The connection's too.
    outlet: Outlet,
}

/// Why there is no link, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody listens, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// HTTP/2 broke; mostly because the connection did.
    #[error("{0}")]
    Http(#[from] h2::Error),
    /// The stream's end, as gRPC has it.
    #[error("gRPC status {code}: {text}")]
    Status { code: u32, text: String },
    /// What `Open` got for an answer.
    #[error("{}", .0.text)]
    Refused(Box<v1::Error>),
    #[error("the other end doesn't speak syncd's protocol: {0}")]
    Protocol(String),
    #[error("the connection was closed")]
    Closed,
}

impl LinkError {
    /// Whether another attempt would end the same way.
    pub(super) fn is_final(&self) -> bool {
        match self {
            // CANCELLED, UNKNOWN, UNAVAILABLE: a connection that broke, a daemon that leaves.
            Self::Status { code, .. } => !matches!(code, 1 | 2 | 14),
            Self::Refused(_) | Self::Protocol(_) => true,
            Self::Io(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::Http(_) | Self::Closed => false,
        }
    }
}

/// An attempt to resume a session, with all its repetitions.
pub(super) type Resume = Pin<Box<dyn Future<Output = Result<(Link, Opened), SessionLost>> + Send>>;

/// Connects, and opens or resumes a session. If `tapped`, threads are to read it from then on,
/// where they can.
pub(super) async fn establish(
    endpoint: &Endpoint,
    open: Open,
    tapped: bool,
) -> Result<(Link, Opened), LinkError> {
    let socket = socket::connect(endpoint).await?;
    let outlet = Outlet::new(socket);
    let (mut requests, mut connection) = client::Builder::new()
        .enable_push(false)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .handshake(outlet.clone())
        .await?;
    let mut request = http::Request::new(());
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("http://syncd/syncd.v1.Broker/Session");
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    let (response, mut send) = requests.send_request(request, false)?;
    let mut out = BytesMut::new();
    encode(&ClientMessage { id: 0, ack: 0, request: Some(Request::Open(open)) }, &mut out);
    send.send_data(out.freeze(), false)?;

    let mut response = pin!(response);
    let response = std::future::poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        match response.as_mut().poll(cx) {
            Poll::Pending => {
                polled.map(|closed| Err(closed.map_or_else(Into::into, |()| LinkError::Closed)))
            }
            answered => answered.map_err(LinkError::from),
        }
    })
    .await?;
    check_headers(response.status(), response.headers())?;
    let recv = response.into_body();
    let (partial, early) = (BytesMut::new(), VecDeque::new());
    let mut link = Link { connection, send, recv, partial, early, outlet };
    std::future::poll_fn(|cx| {
        let mut received = Vec::new();
        let turned = link.turn(cx, &mut received);
        link.early.extend(received);
        if link.early.is_empty() { turned.map(Err) } else { Poll::Ready(Ok(())) }
    })
    .await?;
    #[cfg(unix)]
    if tapped {
        link.outlet.make_tapped();
    }
    #[cfg(windows)]
    let _ = tapped;
    match link.early.pop_front().and_then(|first| first.message) {
        Some(Message::Opened(opened)) => Ok((link, opened)),
        Some(Message::Error(error)) => Err(LinkError::Refused(Box::new(error))),
        other => Err(LinkError::Protocol(format!("{other:?} in answer to Open"))),
    }
}

impl Link {
    /// Takes of `out` what flow control lets go.
    pub(super) fn send(&mut self, out: &mut BytesMut) -> Result<(), LinkError> {
        self.send.reserve_capacity(out.len());
        let room = self.send.capacity().min(out.len());
        if room > 0 {
            self.send.send_data(out.split_to(room).freeze(), false)?;
        }
        Ok(())
    }

    /// Reads and writes until the socket would block, and adds what came to `received`. Ready
    /// means that the link is no more.
    pub(super) fn turn(
        &mut self,
        cx: &mut Context<'_>,
        received: &mut Vec<ServerMessage>,
    ) -> Poll<LinkError> {
        received.extend(self.early.drain(..));
        let connection = Pin::new(&mut self.connection).poll(cx);
        // The stream is only ever read right after the connection, so it needn't wake anybody:
        // that would be the one who is reading.
        let mut no_wake = Context::from_waker(Waker::noop());
        loop {
            match self.recv.poll_data(&mut no_wake) {
                Poll::Ready(Some(Ok(data))) => {
                    if let Err(error) = self.recv.flow_control().release_capacity(data.len()) {
                        return Poll::Ready(error.into());
                    }
                    if let Err(error) = self.decode(data, received) {
                        return Poll::Ready(error);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(error.into()),
                Poll::Ready(None) => return self.poll_end(&mut no_wake),
                Poll::Pending => break,
            }
        }
        Poll::Ready(match ready!(connection) {
            Ok(()) => LinkError::Closed,
            Err(error) => error.into(),
        })
    }

    pub(super) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<LinkError> {
        Poll::Ready(match ready!(self.recv.poll_trailers(cx)) {
            Ok(trailers) => trailers.and_then(|t| status(&t)).unwrap_or(LinkError::Closed),
            Err(error) => error.into(),
        })
    }

    /// Whole messages are decoded where they lie; what is left of one waits for the rest.
    fn decode(&mut self, data: Bytes, received: &mut Vec<ServerMessage>) -> Result<(), LinkError> {
        let mut data = data;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&data);
            data = self.partial.split().freeze();
        }
        while let Some(length) = message_length(&data)? {
            data.advance(5);
            let message = ServerMessage::decode(data.split_to(length));
            received.push(message.map_err(|error| LinkError::Protocol(error.to_string()))?);
        }
        self.partial.extend_from_slice(&data);
        Ok(())
    }
}

/// Appends a message with its gRPC prefix.
pub(super) fn encode(message: &ClientMessage, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(5 + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    message.encode_raw(out);
}

/// How long the message is that begins `data`, if all of it is there.
fn message_length(data: &[u8]) -> Result<Option<usize>, LinkError> {
    let Some((prefix, rest)) = data.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(LinkError::Protocol(format!("a message of {length} bytes, flag {compressed}")));
    }
    Ok((rest.len() >= length).then_some(length))
}

fn check_headers(code: http::StatusCode, headers: &HeaderMap) -> Result<(), LinkError> {
    let grpc = headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    match status(headers) {
        Some(error) => Err(error),
        None if code == http::StatusCode::OK && grpc => Ok(()),
        None => Err(LinkError::Protocol(format!("HTTP status {code}"))),
    }
}

/// gRPC's status, in the trailers or in headers that are the whole response.
fn status(headers: &HeaderMap) -> Option<LinkError> {
    let code = headers.get("grpc-status")?.to_str().ok().and_then(|code| code.parse().ok());
    let text = headers.get("grpc-message").map_or_else(String::new, |text| {
        crate::token::percent_decode(&String::from_utf8_lossy(text.as_bytes()))
    });
    match code {
        Some(0) => Some(LinkError::Closed),
        code => Some(LinkError::Status { code: code.unwrap_or(2), text }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_by_its_prefix() {
        let mut out = BytesMut::new();
        encode(&ClientMessage { id: 7, ack: 3, request: None }, &mut out);
        let length = message_length(&out).unwrap().unwrap();
        assert_eq!(out.len(), 5 + length);
        assert_eq!(message_length(&out[..out.len() - 1]).unwrap(), None);
        assert_eq!(message_length(&out[..4]).unwrap(), None);
    }

    #[test]
    fn a_compressed_or_enormous_message_is_refused() {
        assert!(message_length(&[1, 0, 0, 0, 0]).is_err());
        assert!(message_length(&[0, 255, 0, 0, 0]).is_err());
    }

    #[test]
    fn trailers_tell_why_the_stream_ended() {
        let mut trailers = HeaderMap::new();
        assert!(status(&trailers).is_none());
        trailers.insert("grpc-status", HeaderValue::from_static("8"));
        trailers.insert("grpc-message", HeaderValue::from_static("too%20many"));
        let error = status(&trailers).unwrap();
        assert!(error.is_final());
        assert_eq!(error.to_string(), "gRPC status 8: too many");
        trailers.insert("grpc-status", HeaderValue::from_static("14"));
        assert!(!status(&trailers).unwrap().is_final());
    }
}
