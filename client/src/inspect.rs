//! Inspection of a daemon: a connection for the generated `Inspect` client.

use std::{
    future::Future,
    io,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use syncd_proto::{
    Endpoint,
    socket::{self, Socket},
    v1::{self, inspect_client::InspectClient},
};
use tonic::{
    Status,
    codegen::{Service, http::Uri},
    transport::Channel,
};

use crate::{ConnectError, error::is_absent, start};

/// How long to wait for a daemon that is being started.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection for inspection and administration, without a session. It dereferences to the
/// generated client: see `syncd/v1/inspect.proto` for the calls.
#[derive(Clone, Debug)]
pub struct Inspector(InspectClient<Channel>);

impl Inspector {
    /// Connects to a daemon. If none listens, starts one if `auto_start` is true and
    /// `$SYNCD_NO_AUTOSTART` is unset.
    ///
    /// # Errors
    /// [`NoDaemon`](ConnectError::NoDaemon) if none listens and none may be started,
    /// [`Start`](ConnectError::Start) if starting one failed,
    /// [`Unreachable`](ConnectError::Unreachable) if the connection failed.
    pub async fn connect(endpoint: &Endpoint, auto_start: bool) -> Result<Self, ConnectError> {
        let unreachable = |error: &dyn std::error::Error| ConnectError::Unreachable {
            endpoint: endpoint.clone(),
            reason: error.to_string(),
        };
        match socket::connect(endpoint).await {
            Err(error) if is_absent(&error) && auto_start && start::is_allowed() => {
                start::ensure(endpoint, None, PATIENCE).await?;
            }
            Err(source) if is_absent(&source) => {
                return Err(ConnectError::NoDaemon { endpoint: endpoint.clone(), source });
            }
            Err(error) => return Err(unreachable(&error)),
            Ok(_) => {}
        }
        // HTTP needs an authority; the connector ignores it.
        let channel = tonic::transport::Endpoint::from_static("http://syncd")
            .connect_with_connector(Connector(endpoint.clone()))
            .await
            .map_err(|error| unreachable(&error))?;
        Ok(Self(InspectClient::new(channel)))
    }
}

impl Inspector {
    /// All sessions of a namespace, oldest first. It reads page by page: a session that opens or
    /// ends meanwhile may or may not be listed.
    ///
    /// # Errors
    /// The status of the first call that failed.
    pub async fn all_sessions(&mut self, namespace: &str) -> Result<Vec<v1::Session>, Status> {
        let mut request =
            v1::SessionsRequest { namespace: namespace.to_owned(), ..Default::default() };
        let mut sessions = Vec::new();
        loop {
            let reply = self.0.sessions(request.clone()).await?.into_inner();
            sessions.extend(reply.sessions);
            if reply.next.is_empty() {
                return Ok(sessions);
            }
            request.page = reply.next;
        }
    }
}

impl Deref for Inspector {
    type Target = InspectClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Inspector {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

struct Connector(Endpoint);

impl Service<Uri> for Connector {
    type Response = TokioIo<Socket>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let endpoint = self.0.clone();
        Box::pin(async move { socket::connect(&endpoint).await.map(TokioIo::new) })
    }
}
