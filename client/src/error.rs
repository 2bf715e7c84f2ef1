//! The errors: one enum for each kind of call. Most texts come from the daemon, which knows who
//! holds what.

mod lost;

use std::{io, time::Duration};

pub use self::lost::SessionLost;

use syncd_proto::{
    Endpoint,
    endpoint::EndpointError,
    v1::{self, ErrorCode},
};

use crate::{
    Abandonment, DeadlockEdge, Holder,
    session::{CallError, LinkError, OpenError},
    start::StartError,
};

/// No session could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// `$SYNCD_SOCKET` or the builder's endpoint is invalid.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No daemon listens, and this client may not start one.
    #[error("no daemon listens at {endpoint}: start syncd there, or allow it to be started")]
    NoDaemon {
        /// The endpoint that was tried.
        endpoint: Endpoint,
        /// The error of connect(2).
        source: io::Error,
    },
    /// No daemon listens, and starting one failed.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The connection failed, or the daemon can't be trusted.
    #[error("can't connect to the daemon at {endpoint}: {reason}")]
    Unreachable {
        /// The daemon's endpoint.
        endpoint: Endpoint,
        /// What failed.
        reason: String,
    },
    /// The daemon refused the session: another protocol version, a quota, another user.
    #[error("the daemon at {endpoint} refuses the session: {reason}")]
    Refused {
        /// The daemon's endpoint.
        endpoint: Endpoint,
        /// The daemon's reason.
        reason: String,
    },
    /// The daemon was too slow, or is stopped.
    #[error("no session with the daemon at {endpoint} within {after:?}: is it stopped?")]
    TimedOut {
        /// The daemon's endpoint.
        endpoint: Endpoint,
        /// The builder's `connect_timeout`.
        after: Duration,
    },
    /// The namespace or label is too long, or contains a NUL byte.
    #[error("{0}")]
    Invalid(String),
    /// The thread of [`on_lost`](crate::blocking::Client::on_lost) can't be started.
    #[error("can't start the thread that watches the session: {0}")]
    Thread(#[source] io::Error),
}

/// The errors that any call may return.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There was no session, and none could be opened.
    #[error(transparent)]
    Connect(Box<ConnectError>),
    /// The session was lost while the call was under way.
    #[error(transparent)]
    Lost(#[from] SessionLost),
    /// A signal handler asked to give up the call. Only for bindings to other languages: see
    /// [`raw`](crate::raw).
    #[error("the call was interrupted by a signal")]
    Interrupted,
    /// The daemon refused for a reason that this enum has no variant for.
    #[error("{text} ({code})")]
    Refused {
        /// The reason's name in the protocol, such as `QUOTA`.
        code: &'static str,
        /// The daemon's message.
        text: String,
    },
}

/// An object can't be created, attached to or unlinked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name belongs to another kind of object, or to one with another initial value, lock or
    /// number of parties.
    #[error("{0}")]
    KindMismatch(String),
    /// The name is taken, and the options said `exclusive`.
    #[error("{0}")]
    Exists(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// A name or a number is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The token names another daemon or namespace than the client's.
    #[error(
        "the token names {token}, but the client uses {client}: connect with the token instead"
    )]
    Elsewhere {
        /// Namespace and endpoint of the token.
        token: String,
        /// Namespace and endpoint of the client.
        client: String,
    },
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Nothing was acquired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The time-out expired.
    #[error("{text}")]
    TimedOut {
        /// The daemon's message.
        text: String,
        /// Who held the object then, oldest first, at most 16.
        held_by: Vec<Holder>,
    },
    /// Waiting would have closed a cycle.
    #[error("{text}")]
    Deadlock {
        /// The daemon's message.
        text: String,
        /// The cycle: each waits for the next, the last for the first. The first is the caller.
        cycle: Vec<DeadlockEdge>,
    },
    /// An owner died, and the next one released the lock without marking it consistent.
    #[error("{text}")]
    Poisoned {
        /// The daemon's message.
        text: String,
        /// The hold of the owner that died.
        by: Option<Box<Abandonment>>,
    },
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Nothing was released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The caller isn't the owner of the RLock, or of the held lock that it marks consistent.
    #[error("{0}")]
    NotOwner(String),
    /// A release beyond the maximum.
    #[error("{0}")]
    OverReleased(String),
    /// The hold was gone: released by another caller, or by force.
    #[error("{0}")]
    Stale(String),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A wait or notify of a condition failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConditionError {
    /// The guard doesn't hold the condition's lock.
    #[error("{0}")]
    NotOwner(String),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A party didn't pass a barrier.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The barrier is broken: by a party's time-out, death or failed action, a reset or an abort.
    #[error("{0}")]
    Broken(String),
    /// This party's time-out expired, which breaks the barrier.
    #[error("{0}")]
    TimedOut(String),
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl AcquireError {
    /// Who held the object when the time-out expired, oldest first; empty for other errors.
    pub fn held_by(&self) -> &[Holder] {
        match self {
            Self::TimedOut { held_by, .. } => held_by,
            _ => &[],
        }
    }
}

impl ConnectError {
    pub(crate) fn of(endpoint: &Endpoint, error: OpenError) -> Self {
        let endpoint = endpoint.clone();
        match error {
            OpenError::Link(LinkError::Io(source)) if is_absent(&source) => {
                Self::NoDaemon { endpoint, source }
            }
            OpenError::Link(error @ LinkError::Status { .. }) => {
                Self::Refused { endpoint, reason: error.to_string() }
            }
            OpenError::Link(error) => Self::Unreachable { endpoint, reason: error.to_string() },
            OpenError::Refused(error) => Self::Refused { endpoint, reason: error.text },
            OpenError::Overdue | OpenError::Interrupted => {
                Self::Unreachable { endpoint, reason: "the attempt was given up".to_owned() }
            }
        }
    }
}

/// The protocol's limit on names, labels and namespaces, in bytes.
const LONGEST: usize = 255;

/// Checks a name, label or namespace; the error says what is wrong with it.
pub(crate) fn check_length(what: &str, text: &str) -> Result<(), String> {
    match text {
        text if text.len() > LONGEST => {
            Err(format!("{what} is {} bytes long; the limit is {LONGEST}", text.len()))
        }
        text if text.contains('\0') => Err(format!("{what} contains a NUL byte: {text:?}")),
        _ => Ok(()),
    }
}

/// Whether connect(2) failed because nobody listens.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl From<ConnectError> for SessionError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Box::new(error))
    }
}

impl From<SessionLost> for CallError {
    fn from(why: SessionLost) -> Self {
        Self::Session(why.into())
    }
}

impl From<ConnectError> for CallError {
    fn from(error: ConnectError) -> Self {
        Self::Session(error.into())
    }
}

impl From<SessionError> for CallError {
    fn from(error: SessionError) -> Self {
        Self::Session(error)
    }
}

/// The error for a code that a call's own enum has no variant for.
fn refused(error: v1::Error) -> SessionError {
    let name = error.code().as_str_name();
    SessionError::Refused {
        code: name.strip_prefix("ERROR_CODE_").unwrap_or(name),
        text: error.text,
    }
}

impl From<CallError> for SessionError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Session(error) => error,
            CallError::Refused(error) => refused(*error),
        }
    }
}

macro_rules! from_call_error {
    ($face:ident, $error:ident: $($code:ident => $made:expr),+ $(,)?) => {
        impl From<CallError> for $face {
            fn from(error: CallError) -> Self {
                match error {
                    CallError::Session(error) => Self::Session(error),
                    CallError::Refused($error) => match $error.code() {
                        $(ErrorCode::$code => $made,)+
                        _ => Self::Session(refused(*$error)),
                    },
                }
            }
        }
    };
}

from_call_error!(CreateError, error:
    KindMismatch => Self::KindMismatch(error.text),
    Exists => Self::Exists(error.text),
    NotFound => Self::NotFound(error.text),
    InvalidArgument => Self::Invalid(error.text),
);

from_call_error!(AcquireError, error:
    TimedOut => Self::TimedOut {
        text: error.text,
        held_by: error.holders.into_iter().map(Holder::from).collect(),
    },
    Deadlock => Self::Deadlock {
        text: error.text,
        cycle: error.cycle.into_iter().map(DeadlockEdge::from).collect(),
    },
    Poisoned => Self::Poisoned {
        text: error.text,
        by: error.abandoned.map(|by| Box::new(by.into())),
    },
);

from_call_error!(ReleaseError, error:
    NotOwner => Self::NotOwner(error.text),
    OverReleased => Self::OverReleased(error.text),
    Stale => Self::Stale(error.text),
);

from_call_error!(ConditionError, error:
    NotOwner => Self::NotOwner(error.text),
);

from_call_error!(BarrierError, error:
    BrokenBarrier => Self::Broken(error.text),
    TimedOut => Self::TimedOut(error.text),
);
