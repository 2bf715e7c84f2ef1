//! `Broker.Session`: one stream that reads requests, has the core handle each at once, and
//! yields what comes of it, all in one task. Never here: what a request means.

mod opening;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_core::Stream;
use syncd_core::{Body, Cause, Message, Request as Asked, RequestId};
use syncd_proto::v1::{
    ClientMessage, ErrorCode, ServerMessage, broker_server, client_message,
    server_message::Message as Wire,
};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    broker::{Broker, Own},
    connection::Connection,
    convert,
    outbox::{Session, Standing},
};

/// How many requests without a reply a stream handles before it lets others have their turn.
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
        if self.0.is_closing() {
            return Err(leaving());
        }
        Ok(Response::new(SessionStream {
            broker: self.0.clone(),
            connection,
            inbound: request.into_inner(),
            state: State::Opening,
        }))
    }
}

fn leaving() -> Status {
    Status::unavailable("the daemon is shutting down")
}

/// The replies and pushes of one session, or of a part of its life.
pub(crate) struct SessionStream {
    broker: Arc<Broker>,
    connection: Arc<Connection>,
    inbound: Streaming<ClientMessage>,
    state: State,
}

enum State {
    Opening,
    Open(Open),
    Over,
}

struct Open {
    session: Arc<Session>,
    /// Its number among the streams of the session.
    stream: u64,
    /// Decided and not yet yielded, in the order of `seq`.
    queue: VecDeque<Message>,
    last_seq: u64,
    /// Its last request is still under way, and the next one waits for that.
    working: bool,
}

impl Stream for SessionStream {
    type Item = Result<ServerMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        match this.state {
            State::Opening => this.poll_opening(cx).map(Some),
            State::Open(_) => this.poll_open(cx),
            State::Over => Poll::Ready(None),
        }
    }
}

impl SessionStream {
    fn poll_opening(&mut self, cx: &mut Context<'_>) -> Poll<Result<ServerMessage, Status>> {
        let first = match ready!(Pin::new(&mut self.inbound).poll_next(cx)) {
            Some(Ok(message)) => message,
            Some(Err(status)) => return self.end_with(status),
            None => return self.end_with(Status::invalid_argument("the stream has no Open")),
        };
        if self.broker.is_closing() {
            return self.end_with(leaving());
        }
        let opened = match first.request {
            Some(client_message::Request::Open(open)) => self.open(open),
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
            Err(refused) => {
                self.state = State::Over;
                Wire::Error(*refused)
            }
        };
        Poll::Ready(Ok(ServerMessage { seq: 0, id: first.id, message: Some(message) }))
    }

    fn end_with<T>(&mut self, status: Status) -> Poll<Result<T, Status>> {
        self.state = State::Over;
        Poll::Ready(Err(status))
    }

    /// Nothing is read while anything is unsent, so a client that doesn't read its replies has
    /// to stop asking; and what others push to it is bounded by its outbox.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ServerMessage, Status>>> {
        let State::Open(open) = &mut self.state else { return Poll::Ready(None) };
        let mut now = None;
        for _ in 0..TURN {
            if let Some(message) = open.queue.pop_front() {
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
                Standing::Attached if open.queue.is_empty() => {}
                Standing::Attached => continue,
                Standing::Ended => {
                    self.state = State::Over;
                    return Poll::Ready(None);
                }
                Standing::Superseded => {
                    self.state = State::Over;
                    let status = Status::aborted("the session was resumed by another stream");
                    return Poll::Ready(Some(Err(status)));
                }
            }
            if self.broker.is_closing() {
                let last = convert::shutting_down(open.last_seq + 1);
                self.state = State::Over;
                return Poll::Ready(Some(Ok(last)));
            }
            if open.is_working() {
                if open.session.outbox.park(open.stream, cx.waker()) {
                    return Poll::Pending;
                }
                continue;
            }
            match Pin::new(&mut self.inbound).poll_next(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    let now = *now.get_or_insert_with(|| self.broker.now());
                    open.handle(&self.broker, now, message);
                }
                Poll::Ready(Some(Err(status))) => {
                    // A fault of the connection has a source; a message that isn't one has not.
                    let breach = std::error::Error::source(&status).is_none();
                    self.leave(breach.then_some(Cause::Misbehaved));
                    return Poll::Ready(Some(Err(status)));
                }
                Poll::Ready(None) => {
                    self.leave(None);
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    if open.session.outbox.park(open.stream, cx.waker()) {
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Handles what has come and was not read: a connection that breaks takes its streams along
    /// without asking what they still had to do.
    fn hear_out(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        let now = self.broker.now();
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut self.inbound).poll_next(&mut cx) {
            open.handle(&self.broker, now, message);
            open.queue.clear();
            while open.is_working() {
                let namespace = &open.session.namespace;
                self.broker.enter(namespace, now, None, |state| state.space.handle_work(now));
            }
        }
    }

    /// The stream is over and the session maybe not: it is disconnected, or lost if there is a
    /// cause.
    fn leave(&mut self, cause: Option<Cause>) {
        self.hear_out();
        let State::Open(open) = std::mem::replace(&mut self.state, State::Over) else { return };
        let now = self.broker.now();
        let session = &open.session;
        self.broker.enter(&session.namespace, now, None, |state| {
            if session.outbox.detach(open.stream) {
                match cause {
                    Some(cause) => drop(state.space.handle_lost(now, session.id, cause)),
                    None => state.space.handle_disconnect(now, session.id),
                }
            }
        });
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        if self.broker.is_closing() {
            self.connection.drain();
        } else {
            self.leave(None);
        }
    }
}

impl Open {
    fn is_working(&mut self) -> bool {
        self.working &= self.session.namespace.lock().space.is_working(self.session.id);
        self.working
    }

    fn handle(&mut self, broker: &Broker, now: syncd_core::Time, message: ClientMessage) {
        let asked = match convert::request(message.request, draw_secret) {
            Ok(asked) => asked,
            Err(convert::Invalid { field, why }) => Asked::Invalid { field, why },
        };
        let Open { session, stream, queue, working, .. } = self;
        let own = Own { session, stream: *stream, queue };
        broker.enter(&session.namespace, now, Some(own), |state| {
            if session.outbox.is_current(*stream) {
                state.counters.requests += 1;
                let id = RequestId(message.id);
                state.space.handle_request(now, session.id, id, message.ack, asked);
                *working = state.space.is_working(session.id);
            }
        });
    }
}

fn draw_secret() -> u64 {
    getrandom::u64().expect("the system has a source of chance")
}
