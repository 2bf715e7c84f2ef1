//! This process's clients, and waiting for their calls with the GIL released and Python's signal
//! handlers run.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use pyo3::prelude::*;
use syncd_client::{
    Builder, Client, CreateError, ObjectOptions, Token,
    proto::{endpoint::namespace_from_env, v1::create::Spec},
    raw::{self, Call, Object},
};

use crate::{
    aio,
    failure::{Failure, report},
};

/// Clients by namespace (as the caller named it) and endpoint.
pub(crate) type Clients = BTreeMap<(String, String), Client>;

static CLIENTS: Mutex<Clients> = Mutex::new(BTreeMap::new());

/// An object and its client.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) client: Client,
    pub(crate) object: Object,
}

impl Proxy {
    pub(crate) fn create(
        py: Python<'_>,
        name: &str,
        namespace: Option<&str>,
        spec: Spec,
        options: impl FnOnce(ObjectOptions) -> ObjectOptions,
    ) -> PyResult<Result<Self, CreateError>> {
        let client = client(py, namespace, None)?;
        let options = options(match name {
            "" => client.anonymous(),
            name => client.object(name),
        });
        let created = wait(py, Object::create(options, spec, None))?;
        Ok(created.map(|object| Self { client, object }))
    }

    pub(crate) fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let token: Token = token.parse().map_err(|error| Failure::value(&error))?;
        let client = client(py, None, Some(&token))?;
        let object = wait(py, Object::attach(&client, &token))?.map_err(Failure::from)?;
        Ok(Self { client, object })
    }

    pub(crate) fn token(&self) -> String {
        self.object.token().to_string()
    }

    /// The object's name; None if it is anonymous.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(self.object.name()).filter(|name| !name.is_empty())
    }

    pub(crate) fn wait<'a, T: Send + 'a>(&self, py: Python<'_>, call: Call<'a, T>) -> PyResult<T> {
        wait(py, call)
    }

    /// As `wait`, and converts the call's error to an exception.
    pub(crate) fn get<'a, T: Send + 'a, E: Send + Into<Failure> + 'a>(
        &self,
        py: Python<'_>,
        call: Call<'a, Result<T, E>>,
    ) -> PyResult<T> {
        Ok(self.wait(py, call)?.map_err(E::into)?)
    }
}

/// The blocking client for a token's daemon and namespace, or for the user's daemon and `namespace`
/// (by default the environment's).
pub(crate) fn client(
    py: Python<'_>,
    namespace: Option<&str>,
    token: Option<&Token>,
) -> PyResult<Client> {
    client_among(&CLIENTS, py, namespace, token)
}

/// As [`client`], from a given set of clients: one for each namespace and daemon.
pub(crate) fn client_among(
    clients: &Mutex<Clients>,
    py: Python<'_>,
    namespace: Option<&str>,
    token: Option<&Token>,
) -> PyResult<Client> {
    let lock = || clients.lock().unwrap_or_else(PoisonError::into_inner);
    let named = token.map(Token::namespace).or(namespace);
    let named = named.map_or_else(namespace_from_env, str::to_owned);
    // Without a token, the endpoint is looked up only once.
    let given = token.map(|token| token.endpoint().to_string()).unwrap_or_default();
    let given = (named.clone(), given);
    if let Some(client) = lock().get(&given) {
        return Ok(client.clone());
    }
    let builder = builder(py, &named, token)?;
    let client = raw::client(builder).map_err(|error| Failure::value(&error))?;
    // A token may name the user's own daemon: share its client, and so its session.
    let found = (named, client.endpoint().to_string());
    let mut clients = lock();
    let client = clients.entry(found).or_insert(client).clone();
    Ok(clients.entry(given).or_insert(client).clone())
}

/// A builder for a client of the user's daemon, or of a token's.
fn builder(py: Python<'_>, namespace: &str, token: Option<&Token>) -> PyResult<Builder> {
    let mut builder = Client::builder().namespace(namespace);
    if let Some(token) = token {
        builder = builder.endpoint(token.endpoint().clone());
    }
    // The command that starts a daemon if none is installed.
    let command: Option<Vec<String>> = report(py)?.call_method0("daemon_command")?.extract()?;
    if let Some([program, arguments @ ..]) = command.as_deref() {
        builder = builder.daemon(program, arguments);
    }
    Ok(builder)
}

/// Waits for a call, and runs Python's signal handlers meanwhile. If one raises, the call is
/// withdrawn and the exception returned.
pub(crate) fn wait<'a, T: Send + 'a>(py: Python<'_>, call: Call<'a, T>) -> PyResult<T> {
    let mut raised = None;
    let done = py.detach(|| {
        call.wait(&mut || match Python::try_attach(|py| py.check_signals()) {
            Some(Ok(())) => false,
            // None: the interpreter is gone.
            served => {
                raised = served.and_then(Result::err);
                true
            }
        })
    });
    raised.map_or(Ok(done), Err)
}

/// How long flushing may take at the interpreter's exit.
const AT_EXIT: Duration = Duration::from_secs(1);

/// Sends what is unsent, before the interpreter exits.
#[pyfunction]
pub(crate) fn at_exit(py: Python<'_>) {
    let all = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for client in all.into_values() {
        // An error reports lost releases, and there is no caller left.
        let _ = py.detach(|| raw::flush(&client, AT_EXIT, &mut || false));
    }
    aio::end(py, AT_EXIT);
}

/// Converts a time-out in seconds: a negative one is zero, one that overflows is None (no limit).
pub(crate) fn seconds(timeout: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(timeout?.max(0.0)).ok()
}
