//! One connection: its peer, its place in the user's quota, and HTTP/2 with its limits.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use syncd_proto::socket::Socket;
use tokio::{
    sync::Notify,
    time::{Sleep, sleep, timeout},
};
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};
use tracing::{debug, warn};

mod answer;
mod last_words;
use answer::answer;
use last_words::LastWords;

use crate::{
    broker::Broker,
    clients::ClientUse,
    handover,
    panic::{self, Caught, Panicked},
    peer::{Peer, Unidentified},
    registry::{QuotaError, User},
};

/// The time for a connection's first request. It ends connections that never finish the handshake or
/// never make a request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

pub(crate) struct Connection {
    pub client: ClientUse,
    pub user: Arc<User>,
    _place: Place,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
    requested: Notify,
    calls: AtomicUsize,
}

/// How long a connection that is drained waits for the other end to close it.
const LINGER: Duration = Duration::from_millis(100);

/// The orders to a connection's task.
const SERVE: u8 = 0;
const DRAIN: u8 = 1;
const CUT: u8 = 2;

impl Connection {
    fn new(client: ClientUse, place: Place) -> Result<Arc<Self>, Unidentified> {
        let connection = Arc::new(Self {
            client,
            user: place.user.clone(),
            _place: place,
            order: AtomicU8::new(SERVE),
            waker: Mutex::new(None),
            requested: Notify::new(),
            calls: AtomicUsize::new(0),
        });
        if connection.client.connect(&connection) {
            Ok(connection)
        } else {
            Err(Unidentified::Exited)
        }
    }

    /// The connection of a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Status> {
        let unknown = || Status::unauthenticated("the process of this connection is unknown");
        request.extensions().get::<Arc<Self>>().cloned().ok_or_else(unknown)
    }

    /// Ends the connection when its calls have ended.
    pub fn drain(&self) {
        self.tell(DRAIN);
    }

    /// Ends the connection as soon as everything that the client has written is read.
    pub fn cut(&self) {
        self.tell(CUT);
    }

    fn is_cut(&self) -> bool {
        self.order.load(Ordering::Relaxed) == CUT
    }

    fn tell(&self, order: u8) {
        self.order.fetch_max(order, Ordering::Relaxed);
        let waker = panic::lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The current order; registers the task to be woken by the next.
    fn poll_order(&self, cx: &Context<'_>, obeyed: Option<u8>) -> u8 {
        let order = self.order.load(Ordering::Relaxed);
        if obeyed == Some(SERVE) && order == SERVE {
            return SERVE;
        }
        *panic::lock(&self.waker) = Some(cx.waker().clone());
        self.order.load(Ordering::Relaxed)
    }

    /// Whether no call is in progress. The end of the last one wakes a task that calls this after
    /// `poll_order`.
    fn is_at_rest(&self) -> bool {
        self.calls.load(Ordering::Acquire) == 0
    }
}

/// A connection's place in its user's quota.
struct Place {
    broker: Arc<Broker>,
    user: Arc<User>,
}

impl Place {
    /// `None`: the user is unknown, or has used up the quota of connections.
    fn take(broker: &Arc<Broker>, socket: &Socket) -> Option<Self> {
        let number = if cfg!(windows) { Some(0) } else { socket.peer().uid };
        let user = broker.registry.user(number?, &broker.settings.limits);
        user.connections.take(1).ok()?;
        Some(Self { broker: broker.clone(), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.user.connections.give_back(1);
        self.broker.registry.release_user(&self.user);
        self.broker.registry.changed.notify_one();
    }
}

/// A call in progress, until the last of its replies was written or dropped.
struct Call(Arc<Connection>);

impl Call {
    fn begin(connection: &Arc<Connection>) -> Result<Self, QuotaError> {
        connection.user.calls.take(1)?;
        connection.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Self(connection.clone()))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.user.calls.give_back(1);
        let was = self.0.calls.fetch_sub(1, Ordering::AcqRel);
        if was == 1 && self.0.order.load(Ordering::Relaxed) == DRAIN {
            self.0.tell(DRAIN);
        }
    }
}

/// The service of one connection: adds the [`Connection`] to each request's extensions.
struct Entrance {
    routes: Routes,
    connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.connection.requested.notify_one();
        let call = match Call::begin(&self.connection) {
            Ok(call) => call,
            Err(quota) => {
                let refused = Status::resource_exhausted(quota.to_string());
                return Box::pin(async move { Ok(refused.into_http()) });
            }
        };
        request.extensions_mut().insert(self.connection.clone());
        let mut routes = self.routes.clone();
        Box::pin(async move {
            let answered = Caught::new("a call", async move { routes.call(request).await }).await;
            let response = match answered {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(Panicked) => panicked().into_http(),
            };
            Ok(response.map(|body| Body::new(Replies { body, _call: call })))
        })
    }
}

fn panicked() -> Status {
    Status::internal("the daemon failed in this call: see its log")
}

/// The replies of a call.
struct Replies {
    body: Body,
    _call: Call,
}

impl http_body::Body for Replies {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = panic::caught("a stream", || Pin::new(&mut self.body).poll_frame(cx));
        polled.unwrap_or_else(|Panicked| {
            self.body = Body::empty();
            Poll::Ready(Some(Err(panicked())))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(
    broker: Arc<Broker>,
    routes: Routes,
    socket: Socket,
    peer: Result<Peer, Unidentified>,
) {
    let Some(place) = Place::take(&broker, &socket) else { return };
    #[cfg(unix)]
    if handover::is_successor(&broker, &socket).await {
        return handover::answer(broker, socket).await;
    }
    let client = match peer {
        Ok(peer) => ClientUse::of(&broker, peer, &place.user).await,
        Err(refusal) => Err(refusal),
    };
    let connection = match client {
        Ok(client) => Connection::new(client, place).map_err(|refusal| (refusal, None)),
        Err(refusal) => Err((refusal, Some(place))),
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err((refusal, place)) => {
            let peer = socket.peer();
            if let Some(suppressed) = broker.refusals.due() {
                let (pid, user) = (peer.pid, peer.uid);
                warn!(pid, user, suppressed, "connection refused: {refusal}");
            }
            if !matches!(refusal, Unidentified::Exited) {
                // It counts against the quota while it is told why.
                answer(limits(), socket, Status::unauthenticated(refusal.to_string())).await;
            }
            drop(place);
            return;
        }
    };
    if broker.is_closing() {
        return;
    }
    let entrance = Entrance { routes, connection: connection.clone() };
    let socket = LastWords::of(socket, connection.clone());
    let mut http = pin!(limits().serve_connection(TokioIo::new(socket), entrance));
    let (mut obeyed, mut lingering) = (None, None::<Pin<Box<Sleep>>>);
    let mut serving = pin!(poll_fn(|cx| {
        let order = connection.poll_order(cx, obeyed);
        if order == DRAIN && obeyed != Some(DRAIN) {
            http.as_mut().graceful_shutdown();
        }
        obeyed = Some(order);
        // Before polling HTTP/2, which must still write what a call said last.
        let at_rest = connection.is_at_rest();
        let polled = http.as_mut().poll(cx);
        // The connection is drained when it has no calls and everything is written. HTTP/2's
        // graceful shutdown would also wait for the client, which may be stopped or not reading.
        let drained = order == DRAIN && at_rest && connection.is_at_rest();
        let over = polled.is_pending()
            && drained
            // A client that reads may be writing, too; closing at once could make its write fail
            // before it has read everything.
            && lingering
                .get_or_insert_with(|| Box::pin(sleep(LINGER)))
                .as_mut()
                .poll(cx)
                .is_ready();
        if over { Poll::Ready(Ok(())) } else { polled }
    }));
    let first = timeout(FIRST_REQUEST, async {
        tokio::select! {
            biased;
            result = serving.as_mut() => Some(result),
            () = connection.requested.notified() => None,
        }
    });
    let result = match first.await {
        Ok(None) => serving.await,
        Ok(Some(result)) => result,
        Err(_) => {
            if let Some(suppressed) = broker.refusals.due() {
                let pid = connection.client.peer.pid;
                warn!(pid, suppressed, "connection closed: no request within {FIRST_REQUEST:?}");
            }
            return;
        }
    };
    if let Err(error) = result {
        debug!(pid = connection.client.peer.pid, %error, "connection ended");
    }
}

/// HTTP/2's limits. Without keep-alive PINGs: a stopped or busy process answers none but is alive,
/// and the kernel reports the end of a local socket at once.
fn limits() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(256)
        .max_local_error_reset_streams(1024)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(16 << 10)
        .initial_connection_window_size(1 << 20)
        .initial_stream_window_size(256 << 10)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .auto_date_header(false);
    http
}

/// The largest buffer of a stream's unwritten replies, in bytes.
pub(crate) const MAX_SEND_BUFFER: usize = 64 << 10;
