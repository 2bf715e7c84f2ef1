//! A client's settings: which daemon, which namespace, and how it gets there.

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

    /// Another daemon than the user's own.
    pub fn endpoint(mut self, endpoint: Endpoint) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    /// The namespace: `""` is the user's own, `"jobs"` the shared one of that name or a private
    /// one, `"shared/jobs"` never a private one. At most 255 bytes. Unset: `$SYNCD_NAMESPACE`.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// What people see beside the process id, instead of the command line. At most 255 bytes.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Whether to start a daemon where there is none. Unset: unless `$SYNCD_NO_AUTOSTART` is set.
    pub fn auto_start(mut self, allowed: bool) -> Self {
        self.auto_start = allowed;
        self
    }

    /// The command that starts a daemon; `--socket` and `--idle-exit` are appended. Without it,
    /// that is `$SYNCD_DAEMON`, a `syncd` beside this program, or the `syncd` on the path.
    pub fn daemon<A: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        let args = args.into_iter().map(|arg| OsString::from(arg.as_ref())).collect();
        self.daemon = Some(Daemon { program: program.as_ref().to_owned(), args });
        self
    }

    /// How long opening a session may take, the start of a daemon included. 10 s if unset.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a daemon may be away that its sessions outlive, as while it is upgraded: calls
    /// wait that long, and what is held stays held. Then the session is lost. 60 s if unset.
    pub fn restart_timeout(mut self, timeout: Duration) -> Self {
        self.restart_timeout = timeout;
        self
    }

    /// Connects, for the blocking API.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_blocking(self) -> Result<blocking::Client, ConnectError> {
        blocking::Client::open(self.build()?)
    }

    /// Connects.
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
