//! The end of a session.

use syncd_proto::v1;

use crate::{Cause, session::LinkError};

/// A session is lost, and with it everything that it held. The next call opens a new one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session and everything that it held are lost: {text}{}", not_arrived(*undelivered))]
pub struct SessionLost {
    pub(crate) cause: Cause,
    pub(crate) text: String,
    pub(crate) undelivered: u32,
}

fn not_arrived(releases: u32) -> String {
    match releases {
        0 => String::new(),
        1 => "; 1 release may not have arrived".to_owned(),
        n => format!("; {n} releases may not have arrived"),
    }
}

impl SessionLost {
    /// Why the session was lost.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// How many releases of unowned permits may not have reached the daemon. (Holds ended with the
    /// session.)
    pub fn undelivered_releases(&self) -> u32 {
        self.undelivered
    }

    /// Whether the daemon or the connection failed, rather than somebody ending the session.
    pub(crate) fn is_accident(&self) -> bool {
        self.cause == Cause::Disconnected
    }

    fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into(), undelivered: 0 }
    }

    pub(crate) fn disconnected(text: &str) -> Self {
        Self::new(Cause::Disconnected, format!("the connection broke, and {text}"))
    }

    /// The daemon refused to open or resume the session.
    pub(crate) fn refused(text: String) -> Self {
        Self::new(Cause::Disconnected, text)
    }

    pub(crate) fn by_link(error: &LinkError) -> Self {
        let cause = match error {
            LinkError::Protocol(_) => Cause::Misbehaved,
            _ => Cause::Disconnected,
        };
        Self::new(cause, error.to_string())
    }

    pub(crate) fn by_daemon(end: &v1::SessionEnd) -> Self {
        let cause = Cause::from(end.cause());
        let text = if end.text.is_empty() { format!("it {cause}") } else { end.text.clone() };
        Self::new(cause, text)
    }

    /// A reply that doesn't fit its request.
    pub(crate) fn nonsense() -> Self {
        Self::new(Cause::Misbehaved, "the daemon sent a reply that doesn't fit the request")
    }

    pub(crate) fn closed() -> Self {
        Self::new(Cause::Left, "the client closed it")
    }

    pub(crate) fn forked() -> Self {
        Self::new(Cause::Left, "it belongs to the parent process")
    }
}
