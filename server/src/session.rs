//! `Broker.Session`: one stream that reads requests, passes them to the core, and yields the
//! replies, all in one task.

mod inbound;
mod opening;
mod rest;

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use syncd_core::{self as core, Body, Cause, Message, Time};
use syncd_proto::v1::{
    ClientMessage, ErrorCode, ServerMessage, broker_server, client_message,
    server_message::Message as Wire,
};
use tokio::sync::futures::OwnedNotified;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    broker::{Broker, Own},
    connection::Connection,
    convert,
    entry::is_growth,
    namespace,
    outbox::{End, Session, Standing},
    registry::QuotaError,
};
use inbound::{Asked, Inbound};
use rest::Rest;

/// How many messages, in and out, a stream handles before it yields to other tasks.
const TURN: usize = 256;

pub(crate) struct BrokerService(pub Arc<Broker>);

#[tonic::async_trait]
impl broker_server::Broker for BrokerService {
    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<ClientMessage>>,
    ) -> Result<Response<SessionStream>, Status> {
        let connection = Connection::of(&request)?;
        let closed = Box::pin(self.0.closed.clone().notified_owned());
        if self.0.is_closing() {
            return Err(shutting_down());
        }
        Ok(Response::new(SessionStream {
            broker: self.0.clone(),
            connection,
            state: State::Opening { inbound: request.into_inner(), closed },
            is_polled: false,
        }))
    }
}

fn shutting_down() -> Status {
    Status::unavailable("the daemon is shutting down")
}

/// The replies and pushes of one session, from its opening or a resume on.
pub(crate) struct SessionStream {
    broker: Arc<Broker>,
    connection: Arc<Connection>,
    state: State,
    /// Set during a poll; still set in `drop` after a panic.
    is_polled: bool,
}

enum State {
    Opening { inbound: Streaming<ClientMessage>, closed: Pin<Box<OwnedNotified>> },
    Open(Open),
    Over,
}

struct Open {
    session: Arc<Session>,
    /// The stream's number in the outbox.
    stream: u64,
    inbound: Inbound,
    /// Messages that weren't yielded yet, ordered by `seq`.
    queue: VecDeque<Message>,
    last_seq: u64,
    /// A request that takes several steps is pending: the next one isn't read.
    is_working: bool,
    /// How many messages were handled since the stream last yielded to other tasks.
    handled: usize,
}

impl Stream for SessionStream {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.is_polled = true;
        let polled = match this.state {
            State::Opening { .. } => this.poll_opening(cx).map(Some),
            State::Open(_) => this.poll_open(cx),
            State::Over => Poll::Ready(None),
        };
        this.is_polled = false;
        polled
    }
}

impl SessionStream {
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<Result<ServerMessage, Status>> {
        let State::Opening { inbound, closed } = &mut self.state else { return Poll::Pending };
        if closed.as_mut().poll(cx).is_ready() || self.broker.is_closing() {
            return self.end_with(shutting_down());
        }
        let first = match ready!(Pin::new(inbound).poll_next(cx)) {
            Some(Ok(message)) => message,
            Some(Err(status)) => return self.end_with(status),
            None => return self.end_with(Status::invalid_argument("the stream ended before Open")),
        };
        let State::Opening { inbound, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Poll::Pending;
        };
        let opened = match first.request {
            Some(client_message::Request::Open(open)) => self.open(open, inbound),
            _ => {
                let text = "request: the first message must be Open";
                Err(opening::refusal(ErrorCode::InvalidArgument, "request", text))
            }
        };
        let message = match opened {
            Ok((opened, open)) => {
                self.state = State::Open(open);
                Wire::Opened(opened)
            }
            Err(refused) => Wire::Error(refused),
        };
        Poll::Ready(Ok(ServerMessage { seq: 0, id: first.id, message: Some(message) }))
    }

    fn end_with<T>(&mut self, status: Status) -> Poll<Result<T, Status>> {
        self.state = State::Over;
        Poll::Ready(Err(status))
    }

    /// Handles no request while a reply is unsent, so a client that doesn't read its replies is
    /// stopped by flow control; messages from other sessions are bounded by the outbox.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ServerMessage, Status>>> {
        let State::Open(open) = &mut self.state else { return Poll::Ready(None) };
        let mut now = None;
        while open.handled < TURN {
            if let Some(message) = open.queue.pop_front() {
                open.handled += 1;
                open.last_seq = message.seq;
                let last = matches!(message.body, Body::SessionEnd(_));
                let now = now.unwrap_or_else(|| self.broker.now());
                let message = convert::server_message(now, message);
                if last {
                    self.state = State::Over;
                }
                return Poll::Ready(Some(Ok(message)));
            }
            match open.session.outbox.collect(open.stream, &mut open.queue) {
                Standing::Ready => open.is_working = false,
                Standing::Attached => {}
                Standing::Ended(end) => {
                    let last = convert::failed(open.last_seq + 1);
                    self.state = State::Over;
                    return Poll::Ready((end == End::Failed).then_some(Ok(last)));
                }
                Standing::Superseded => {
                    self.state = State::Over;
                    let status = Status::aborted("the session was resumed by another stream");
                    return Poll::Ready(Some(Err(status)));
                }
            }
            if !open.queue.is_empty() {
                continue;
            }
            if self.broker.is_closing() {
                let last = convert::shutting_down();
                self.state = State::Over;
                return Poll::Ready(Some(Ok(last)));
            }
            let read = match open.is_working {
                true => Poll::Pending,
                false => open.inbound.poll(cx),
            };
            match read {
                Poll::Ready(Ok(())) => {
                    let now = *now.get_or_insert_with(|| self.broker.now());
                    open.handle(&self.broker, now);
                }
                Poll::Ready(Err(Some(status))) => {
                    // The status has a source if the connection failed, and none if a message was
                    // malformed.
                    let breach = std::error::Error::source(&status).is_none();
                    self.leave(breach.then_some(Cause::Misbehaved));
                    return Poll::Ready(Some(Err(status)));
                }
                Poll::Ready(Err(None)) => {
                    self.leave(None);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    if open.session.outbox.park(open.stream, cx.waker()) {
                        open.handled = 0;
                        return Poll::Pending;
                    }
                }
            }
        }
        open.handled = 0;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ends the stream: the session is disconnected, or lost if there is a `cause`.
    fn leave(&mut self, cause: Option<Cause>) {
        if let State::Open(open) = std::mem::replace(&mut self.state, State::Over) {
            Rest::leave(self.broker.clone(), self.connection.clone(), open, cause);
        }
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        if !self.broker.is_closing() {
            self.leave(self.is_polled.then_some(Cause::Misbehaved));
        }
    }
}

impl Open {
    /// Handles the requests that were read, up to one that takes several steps, or until other tasks
    /// must run.
    fn handle(&mut self, broker: &Broker, now: Time) {
        let Open { session, stream, inbound, queue, handled, .. } = self;
        let own = Own { session, stream: *stream, queue };
        let entered = broker.enter_for_several(&session.namespace, now, Some(own), |state, now| {
            if let Some(asked) = inbound.next() {
                *handled += 1;
                if session.outbox.is_current(*stream) {
                    ask(state, session, now, asked);
                }
            }
            match state.space.is_working(session.id) {
                false if inbound.is_next_read() => ControlFlow::Continue(false),
                is_working => ControlFlow::Break(is_working),
            }
        });
        // After the namespace's end nothing more is read; the outbox has the reason.
        self.is_working = entered.unwrap_or(true);
    }
}

fn ask(state: &mut namespace::State, session: &Session, now: Time, asked: Asked) {
    let Asked { id, ack, request } = asked;
    state.counters.requests += 1;
    let attaches = is_attachment(&request);
    let refused = is_growth(&request).then(|| refuse_growth(state, session)).flatten();
    state.space.handle_request(now, session.id, id, ack, refused.unwrap_or(request));
    if attaches {
        state.count_references(session, now);
    }
}

/// The request that the core handles instead if there is no room for what a request adds.
fn refuse_growth(state: &mut namespace::State, session: &Session) -> Option<core::Request> {
    if state.make_room().is_err() {
        let (field, why) = convert::NOT_KEPT;
        return Some(core::Request::Invalid { field, why });
    }
    let QuotaError { field, limit } =
        state.check_memory(&session.namespace, session.client.peer.user).err()?;
    Some(core::Request::OverQuota { field, limit: limit as u64 })
}

/// Whether a request may change its session's references.
fn is_attachment(request: &core::Request) -> bool {
    use core::Request::*;
    matches!(request, Create(_) | AttachName(_) | AttachKey(_) | Detach { .. })
}
