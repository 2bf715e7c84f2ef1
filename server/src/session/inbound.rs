//! A client's requests, read a little ahead: those that arrive together are handled together.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream as _;
use syncd_core::{Request, RequestId};
use syncd_proto::v1::ClientMessage;
use tonic::{Status, Streaming};

use crate::convert;

/// The most requests that are read ahead.
const AHEAD: usize = 16;

pub(super) struct Inbound {
    stream: Streaming<ClientMessage>,
    /// Requests that were read and not yet handled. An end is the last entry.
    read: VecDeque<Read>,
}

enum Read {
    Asked(Asked),
    Broken(Status),
    End,
}

/// A request, converted for the core.
pub(super) struct Asked {
    pub id: RequestId,
    pub ack: u64,
    pub request: Request,
}

/// The end of the requests: the status of a stream that failed, `None` for one that ended.
pub(super) type End = Option<Status>;

impl Inbound {
    pub fn new(stream: Streaming<ClientMessage>) -> Self {
        Self { stream, read: VecDeque::new() }
    }

    /// Reads what has arrived. Ready with `Ok` if there is a request.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while self.read.len() < AHEAD
            && matches!(self.read.back(), None | Some(Read::Asked(_)))
            && let Poll::Ready(read) = Pin::new(&mut self.stream).poll_next(cx)
        {
            self.read.push_back(match read {
                Some(Ok(message)) => Read::Asked(asked(message)),
                Some(Err(status)) => Read::Broken(status),
                None => Read::End,
            });
        }
        match self.read.front() {
            None => {
                self.read = VecDeque::new();
                Poll::Pending
            }
            Some(Read::Asked(_)) => Poll::Ready(Ok(())),
            Some(Read::Broken(_) | Read::End) => Poll::Ready(Err(match self.read.pop_front() {
                Some(Read::Broken(status)) => Some(status),
                _ => None,
            })),
        }
    }

    pub fn is_next_read(&self) -> bool {
        matches!(self.read.front(), Some(Read::Asked(_)))
    }

    /// The next request, if it was read.
    pub fn next(&mut self) -> Option<Asked> {
        match self.read.pop_front()? {
            Read::Asked(asked) => Some(asked),
            end => {
                self.read.push_front(end);
                None
            }
        }
    }
}

fn asked(message: ClientMessage) -> Asked {
    let request = match convert::request(message.request, draw_secret) {
        Ok(request) => request,
        Err(convert::Invalid { field, why }) => Request::Invalid { field, why },
    };
    Asked { id: RequestId(message.id), ack: message.ack, request }
}

fn draw_secret() -> u64 {
    getrandom::u64().expect("the system has a source of random numbers")
}
