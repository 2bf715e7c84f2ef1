//! Connecting to a daemon: for inspection, which never starts one, and for work under a lock, which
//! does. Every inspection call has a time-out.

use std::{env, future::Future, time::Duration};

use syncd_client::{
    AcquireError, Builder, Client, ConnectError, CreateError, Inspector, SessionError, blocking,
};
use syncd_proto::Endpoint;
use tokio::time::timeout;
use tonic::{Response, Status};

use crate::{
    cli::Global,
    failure::Failure,
    text::{complain, plain},
};

/// How long a daemon may take to answer an inspection.
const PATIENCE: Duration = Duration::from_secs(5);

impl Global {
    /// The daemon's endpoint.
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        match &self.socket {
            Some(endpoint) => Ok(endpoint.clone()),
            None => {
                Endpoint::from_env_or_default().map_err(|e| Failure::Unreachable(e.to_string()))
            }
        }
    }
}

/// Connects for inspection. Doesn't start a daemon.
pub async fn inspect(endpoint: &Endpoint) -> Result<Inspector, Failure> {
    match timeout(PATIENCE, Inspector::connect(endpoint, false)).await {
        Ok(connected) => connected.map_err(not_connected),
        Err(_) => Err(silent()),
    }
}

/// Waits for the reply to an inspection call.
pub async fn reply<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(PATIENCE, call).await {
        Ok(reply) => Ok(reply?.into_inner()),
        Err(_) => Err(silent()),
    }
}

fn silent() -> Failure {
    Failure::Unreachable(format!("the daemon did not answer within {PATIENCE:?}: is it stopped?"))
}

/// A builder that starts a daemon if none listens: an installed `syncd`, else this program's own.
fn builder(global: &Global) -> Result<Builder, Failure> {
    let builder = Client::builder().endpoint(global.endpoint()?).namespace(&*global.namespace);
    Ok(match env::current_exe() {
        Ok(this) if !is_installed() => builder.daemon(this, ["daemon"]),
        _ => builder,
    })
}

/// A client; starts a daemon if none listens. Prints a note if the namespace may not be the one
/// that the user meant.
pub async fn client(global: &Global) -> Result<Client, Failure> {
    let client = builder(global)?.connect().await.map_err(not_connected)?;
    let similar = client.similar_namespaces().await.map_err(no_session)?;
    if let [first, ..] = &*similar {
        complain(format_args!(
            "note: namespace {:?} is private and empty; did you mean the shared one, \
             --namespace {}?",
            global.namespace,
            plain(&format!("shared/{first}"))
        ));
    }
    Ok(client)
}

/// A blocking client; starts a daemon if none listens.
pub fn blocking_client(global: &Global) -> Result<blocking::Client, Failure> {
    builder(global)?.connect_blocking().map_err(not_connected)
}

/// Whether the client library would find a `syncd` by itself.
fn is_installed() -> bool {
    let name = format!("syncd{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe().ok().and_then(|this| Some(this.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    env::var_os("SYNCD_DAEMON").is_some_and(|program| !program.is_empty())
        || beside.into_iter().chain(env::split_paths(&path)).any(|dir| dir.join(&name).is_file())
}

/// The failure for a session that couldn't be opened.
pub fn not_connected(error: ConnectError) -> Failure {
    match error {
        ConnectError::NoDaemon { endpoint, .. } => Failure::NoDaemon(endpoint),
        error => Failure::Unreachable(error.to_string()),
    }
}

/// The failure for an object that couldn't be created or attached to.
pub fn not_created(error: CreateError) -> Failure {
    match error {
        CreateError::Session(error) => no_session(error),
        error => Failure::Denied(error.to_string()),
    }
}

/// The failure for an acquire that failed for another reason than a time-out.
pub fn not_acquired(error: AcquireError) -> Failure {
    match error {
        AcquireError::Session(error) => no_session(error),
        error => Failure::Denied(error.to_string()),
    }
}

fn no_session(error: SessionError) -> Failure {
    match error {
        SessionError::Connect(error) => not_connected(*error),
        SessionError::Lost(why) => Failure::Unreachable(why.to_string()),
        error => Failure::Denied(error.to_string()),
    }
}
