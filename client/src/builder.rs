//! A client's settings: which daemon, which namespace, and how to connect.

use std::{
    ffi::{OsStr, OsString},
    sync::Arc,
    time::Duration,
};

use syncd_proto::{Endpoint, endpoint::namespace_from_env};

use crate::{
    Client, ConnectError, blocking, call::Call as _, client::Shared, error::check_length,
    session::protocol::PATIENCE, start::Daemon,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client's settings. Made by [`Client::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    endpoint: Option<Endpoint>,
    namespace: Option<String>,
    pub(crate) label: String,
    pub(crate) auto_start: bool,
    pub(crate) daemon: Option<Daemon>,
    pub(crate) connect_timeout: Duration,
    pub(crate) restart_timeout: Duration,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            endpoint: None,
            namespace: None,
            label: String::new(),
            auto_start: true,
            daemon: None,
            connect_timeout: CONNECT_TIMEOUT,
            restart_timeout: PATIENCE,
        }
    }

    /// The daemon's endpoint. Unset: [`Endpoint::from_env_or_default`].
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// The namespace: `""` is the user's own; `"jobs"` is the shared namespace of that name, or a
    /// private one if there is none; `"shared/jobs"` must be shared. At most 255 bytes. Unset:
    /// `$SYNCD_NAMESPACE`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// A label that `syncctl` and errors show beside the process id, instead of the command line.
    /// At most 255 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Whether to start a daemon if none listens. Default: true. `$SYNCD_NO_AUTOSTART`, if set and
    /// not empty, forbids it in any case.
    pub fn auto_start(mut self, allowed: bool) -> Self {
        self.auto_start = allowed;
        self
    }

    /// The command that starts a daemon; `--socket` and `--idle-exit` are appended. Unset:
    /// `$SYNCD_DAEMON`, a `syncd` beside this program, or the `syncd` on the path.
    pub fn daemon<A: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let args = args.into_iter().map(|arg| OsString::from(arg.as_ref())).collect();
        self.daemon = Some(Daemon { program: program.as_ref().to_owned(), args });
        self
    }

    /// How long opening a session may take, including the start of a daemon. Default: 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a session waits for the next daemon when its daemon is gone, for example during an
    /// upgrade. Meanwhile calls wait and holds stay held; after it the session is lost. Default:
    /// 60 s. Without a journal, the daemon's grace applies instead.
    pub fn restart_timeout(mut self, timeout: Duration) -> Self {
        self.restart_timeout = timeout;
        self
    }

    /// Connects a client for the blocking API.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_blocking(self) -> Result<blocking::Client, ConnectError> {
        blocking::Client::open(self.build()?)
    }

    /// Connects a client.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let client = Client { shared: self.build()? };
        client.shared.connected().run().await?;
        Ok(client)
    }

    pub(crate) fn build(self) -> Result<Arc<Shared>, ConnectError> {
        let namespace = self.namespace.clone().unwrap_or_else(namespace_from_env);
        check_length("the namespace", &namespace).map_err(ConnectError::Invalid)?;
        check_length("the label", &self.label).map_err(ConnectError::Invalid)?;
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Endpoint::from_env_or_default()?,
        };
        Ok(Shared::new(endpoint, namespace, self))
    }
}
