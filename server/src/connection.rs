//! One connection: who it is, how many a user may have, and HTTP/2 with its limits. Never here:
//! what a request says.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use syncd_proto::socket::Socket;
use tokio::{sync::Notify, time::timeout};
use tonic::{Status, body::Body, codegen::Service as _, service::Routes};
use tracing::{debug, warn};

use crate::{
    broker::{Broker, QuotaError},
    peer::PeerUse,
};

mod answer;
use answer::answer;

/// A connection's first request must have come by then: so one that never finishes its
/// handshake, or never asks for anything, goes.
const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// Why a connection isn't served.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "the daemon can't see your process, which is in another process namespace (a container's, \
         say), and could not notice its death: run it in the daemon's (docker run --pid=host), or a \
         daemon of your own, at another SYNCD_SOCKET"
    )]
    Foreign,
    #[error("the system doesn't tell who it is")]
    Nobody,
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error("its process can't be watched: {0}")]
    Process(#[from] io::Error),
    #[error("its process has exited")]
    Exited,
}

pub(crate) struct Connection {
    pub peer: PeerUse,
    /// Whose it is: the user's number; 0 on Windows, where the pipe is for its owner alone.
    pub user: u32,
    broker: Arc<Broker>,
    order: AtomicU8,
    waker: Mutex<Option<Waker>>,
    requested: Notify,
}

/// Who has a connection that no request is under way on: its task, and its entrance. A request
/// and its stream of replies each have it too.
const AT_REST: usize = 2;

/// What the connection's task is told.
const SERVE: u8 = 0;
const DRAIN: u8 = 1;
const CUT: u8 = 2;

impl Connection {
    fn admit(broker: &Arc<Broker>, socket: &Socket) -> Result<Arc<Self>, Refusal> {
        let peer = socket.peer();
        let user = if cfg!(windows) { Some(0) } else { peer.uid };
        let user = user.ok_or(Refusal::Nobody)?;
        let pid = peer.pid.ok_or(Refusal::Foreign)?;
        let peer = PeerUse::of(broker, socket, pid, user)?;
        broker.connect(user)?;
        let connection = Arc::new(Self {
            peer,
            user,
            broker: broker.clone(),
            order: AtomicU8::new(SERVE),
            waker: Mutex::new(None),
            requested: Notify::new(),
        });
        if connection.peer.connect(&connection) { Ok(connection) } else { Err(Refusal::Exited) }
    }

    /// The connection that a request came by.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>, Status> {
        let unknown = || Status::unauthenticated("the system doesn't tell who you are");
        request.extensions().get::<Arc<Self>>().cloned().ok_or_else(unknown)
    }

    /// Ends when its streams have ended: to be called again when one has.
    pub fn drain(&self) {
        self.tell(DRAIN);
    }

    /// Ends at once, when what has been written to it so far is read.
    pub fn cut(&self) {
        self.tell(CUT);
    }

    fn tell(&self, order: u8) {
        self.order.fetch_max(order, Ordering::Relaxed);
        let waker = self.waker.lock().expect("nothing panics here").take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The order, and a wake-up when there is another.
    fn poll_order(&self, cx: &Context<'_>, obeyed: Option<u8>) -> u8 {
        let order = self.order.load(Ordering::Relaxed);
        if obeyed == Some(SERVE) && order == SERVE {
            return SERVE;
        }
        *self.waker.lock().expect("nothing panics here") = Some(cx.waker().clone());
        self.order.load(Ordering::Relaxed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.broker.disconnect(self.user);
    }
}

/// Puts the connection beside each request that comes by it.
struct Entrance {
    routes: Routes,
    connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for Entrance {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = <Routes as tonic::codegen::Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.connection.requested.notify_one();
        request.extensions_mut().insert(self.connection.clone());
        self.routes.clone().call(request)
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(broker: Arc<Broker>, routes: Routes, socket: Socket) {
    let connection = match Connection::admit(&broker, &socket) {
        Ok(connection) => connection,
        Err(Refusal::Quota(_)) => return,
        Err(refusal) => {
            let peer = socket.peer();
            warn!(pid = peer.pid, user = peer.uid, "connection refused: {refusal}");
            // A connection all the same, as long as it is told why.
            if let Some(user) = peer.uid
                && broker.connect(user).is_ok()
            {
                let status = Status::unauthenticated(refusal.to_string());
                answer(limits(), socket, status).await;
                broker.disconnect(user);
            }
            return;
        }
    };
    if broker.is_closing() {
        return;
    }
    let entrance = Entrance { routes, connection: connection.clone() };
    let mut http = pin!(limits().serve_connection(TokioIo::new(socket), entrance));
    let mut obeyed = None;
    let mut serving = pin!(poll_fn(|cx| {
        let order = connection.poll_order(cx, obeyed);
        if order == DRAIN && obeyed != Some(DRAIN) {
            http.as_mut().graceful_shutdown();
        }
        obeyed = Some(order);
        let polled = http.as_mut().poll(cx);
        // Drained is what has no stream, all of it said and written. HTTP/2 would have the client
        // confirm that, which it can't while it is stopped or has nothing to read for.
        let drained = order == DRAIN && Arc::strong_count(&connection) == AT_REST;
        if polled.is_pending() && (drained || order == CUT) { Poll::Ready(Ok(())) } else { polled }
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
            let peer = &connection.peer;
            warn!(pid = peer.pid, "connection closed: no request within {FIRST_REQUEST:?}");
            return;
        }
    };
    if let Err(error) = result {
        debug!(pid = connection.peer.pid, %error, "connection ended");
    }
}

/// No keep-alive PINGs: a stopped process, or one that blocks elsewhere and reads nothing for an
/// hour, answers none and is alive all the same; and of a local socket's end the kernel tells at
/// once.
fn limits() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(256)
        .max_local_error_reset_streams(1024)
        .max_pending_accept_reset_streams(20)
        .max_header_list_size(16 << 10)
        .initial_connection_window_size(1 << 20)
        .initial_stream_window_size(256 << 10)
        .max_send_buf_size(256 << 10)
        .auto_date_header(false);
    http
}
