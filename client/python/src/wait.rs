//! The clients of this process, and waiting for a call of theirs with the GIL released and
//! signals served. Never here: what is waited for.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use pyo3::prelude::*;
use syncd_client::{
    Builder, Client, CreateError, ObjectOptions, Token,
    proto::v1::create::Spec,
    raw::{self, Call, Object},
};

use crate::failure::{Failure, report};

/// By namespace and endpoint; the user's own by None.
type Clients = BTreeMap<Option<(String, String)>, Client>;

static CLIENTS: Mutex<Clients> = Mutex::new(BTreeMap::new());

/// An object and the client that it is of.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) client: Client,
    pub(crate) object: Object,
}

impl Proxy {
    pub(crate) fn create(
        py: Python<'_>,
        name: &str,
        spec: Spec,
        options: impl FnOnce(ObjectOptions) -> ObjectOptions,
    ) -> PyResult<Result<Self, CreateError>> {
        let client = client(py, None)?;
        let options = options(match name {
            "" => client.anonymous(),
            name => client.object(name),
        });
        let created = wait(py, Object::create(options, spec, None))?;
        Ok(created.map(|object| Self { client, object }))
    }

    pub(crate) fn attach(py: Python<'_>, token: &str) -> PyResult<Self> {
        let token: Token = token.parse().map_err(|error| Failure::value(&error))?;
        let client = client(py, Some(&token))?;
        let object = wait(py, Object::attach(&client, &token))?.map_err(Failure::from)?;
        Ok(Self { client, object })
    }

    pub(crate) fn token(&self) -> String {
        self.object.token().to_string()
    }

    /// Name and token, as every Python class shows them.
    pub(crate) fn name(&self) -> Option<&str> {
        Some(self.object.name()).filter(|name| !name.is_empty())
    }

    pub(crate) fn wait<'a, T: Send + 'a>(&self, py: Python<'_>, call: Call<'a, T>) -> PyResult<T> {
        wait(py, call)
    }

    /// As `wait`, for a call whose errors have no meaning of their own here.
    pub(crate) fn get<'a, T: Send + 'a, E: Send + Into<Failure> + 'a>(
        &self,
        py: Python<'_>,
        call: Call<'a, Result<T, E>>,
    ) -> PyResult<T> {
        Ok(self.wait(py, call)?.map_err(E::into)?)
    }
}

pub(crate) fn client(py: Python<'_>, token: Option<&Token>) -> PyResult<Client> {
    let key = token.map(|token| (token.namespace().to_owned(), token.endpoint().to_string()));
    if let Some(client) = clients().get(&key) {
        return Ok(client.clone());
    }
    let client = raw::client(builder(py, token)?).map_err(|error| Failure::value(&error))?;
    // The user's own may be reached by a token too: by one session, then.
    let own = (String::new(), client.endpoint().to_string());
    let mut clients = clients();
    let client = clients.entry(Some(key.clone().unwrap_or(own))).or_insert(client).clone();
    Ok(clients.entry(key).or_insert(client).clone())
}

/// For the user's own daemon, or the one that a token is of.
pub(crate) fn builder(py: Python<'_>, token: Option<&Token>) -> PyResult<Builder> {
    let mut builder = Client::builder();
    if let Some(token) = token {
        builder = builder.namespace(token.namespace()).endpoint(token.endpoint().clone());
    }
    // What starts a daemon where none is installed.
    let command: Option<Vec<String>> = report(py)?.call_method0("daemon_command")?.extract()?;
    if let Some([program, arguments @ ..]) = command.as_deref() {
        builder = builder.daemon(program, arguments);
    }
    Ok(builder)
}

fn clients() -> MutexGuard<'static, Clients> {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a call. Signals are served meanwhile: a handler that raises withdraws it.
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

/// A time-out in seconds, as Python has it: below zero is zero, beyond all bounds is none.
pub(crate) fn seconds(timeout: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(timeout?.max(0.0)).ok()
}
