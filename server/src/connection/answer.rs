//! Answers a refused connection's calls with the reason.

use std::{convert::Infallible, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use syncd_proto::socket::Socket;
use tokio::time::timeout;
use tonic::Status;

/// How long a refused connection may stay open.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers each call with `status`, until the client closes or the time is up.
pub(super) async fn answer(http: http2::Builder<TokioExecutor>, socket: Socket, status: Status) {
    let refuse = service_fn(move |_: Request<Incoming>| {
        let response = status.clone().into_http::<tonic::body::Body>();
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = timeout(PATIENCE, http.serve_connection(TokioIo::new(socket), refuse)).await;
}
