//! What a connection gets that isn't served: the reason, in answer to whatever it asks. Never
//! here: whether it is served.

use std::{convert::Infallible, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use syncd_proto::socket::Socket;
use tokio::time::timeout;
use tonic::Status;

/// Who hasn't asked and read by then doesn't want to know.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers each call with `status`, until the other end closes or its time is over.
pub(super) async fn answer(http: http2::Builder<TokioExecutor>, socket: Socket, status: Status) {
    let refuse = service_fn(move |_: Request<Incoming>| {
        let response = status.clone().into_http::<tonic::body::Body>();
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = timeout(PATIENCE, http.serve_connection(TokioIo::new(socket), refuse)).await;
}
