//! gRPC on an HTTP/2 stream: length-prefixed messages, and the status in headers and trailers.

use std::io;

use bytes::{BufMut as _, BytesMut};
use http::HeaderMap;
use prost::Message as _;
use syncd_proto::v1::ClientMessage;

use crate::{
    error::{SessionLost, is_absent},
    session::protocol::End,
};

/// The largest message accepted, in bytes. Far above any reply: the daemon's lists are bounded.
const MAX_MESSAGE: usize = 1 << 20;

/// Why a connection couldn't be made, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    /// Nobody listens, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// HTTP/2 failed, usually because the connection broke.
    #[error("{0}")]
    Http(#[from] h2::Error),
    /// The stream ended with a gRPC status.
    #[error("gRPC status {code}: {text}")]
    Status { code: u32, text: String },
    #[error("the other end doesn't speak syncd's protocol: {0}")]
    Protocol(String),
    #[error("the daemon closed the connection")]
    Closed,
}

impl LinkError {
    /// Whether another attempt would end the same way.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            // CANCELLED, UNKNOWN, UNAVAILABLE: the connection broke, or the daemon is leaving.
            Self::Status { code, .. } => !matches!(code, 1 | 2 | 14),
            Self::Protocol(_) => true,
            Self::Io(error) => error.kind() == io::ErrorKind::PermissionDenied,
            Self::Http(_) | Self::Closed => false,
        }
    }

    /// Whether no daemon listens.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Io(error) if is_absent(error))
    }

    /// What the error means to a session; `is_open`: it was opened before.
    pub(crate) fn end(&self, is_open: bool) -> End {
        match self {
            // RESOURCE_EXHAUSTED: all clients reconnect at once; there may be room later.
            Self::Status { code: 8, .. } if is_open => End::Broken(self.to_string()),
            error if error.is_final() => End::Final(SessionLost::by_link(self)),
            error if error.is_absent() => End::Absent(self.to_string()),
            _ => End::Broken(self.to_string()),
        }
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

/// The length of the message at the start of `data`, if all of it has arrived.
pub(super) fn message_length(data: &[u8]) -> Result<Option<usize>, LinkError> {
    let Some((prefix, rest)) = data.split_first_chunk::<5>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 || length > MAX_MESSAGE {
        return Err(LinkError::Protocol(format!("a message of {length} bytes, flag {compressed}")));
    }
    Ok((rest.len() >= length).then_some(length))
}

pub(super) fn check_headers(code: http::StatusCode, headers: &HeaderMap) -> Result<(), LinkError> {
    let grpc = headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    match status(headers) {
        Some(error) => Err(error),
        None if code == http::StatusCode::OK && grpc => Ok(()),
        None => Err(LinkError::Protocol(format!("HTTP status {code}"))),
    }
}

/// The gRPC status in the trailers, or in the headers of a response without a body.
pub(super) fn status(headers: &HeaderMap) -> Option<LinkError> {
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
    use http::header::HeaderValue;

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
