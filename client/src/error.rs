//! What can go wrong: one enum for each kind of call. The sentences are mostly the daemon's, which
//! knows who holds what.

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
    /// `$SYNCD_SOCKET`, or what the builder was given, is no endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Nobody listens, and no daemon may be started.
    #[error("no daemon listens at {endpoint}: start syncd there, or allow it to be started")]
    NoDaemon {
        /// Where it was looked for.
        endpoint: Endpoint,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens, and the daemon that was started didn't come up.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The connection can't be made, or must not be trusted.
    #[error("can't connect to the daemon at {endpoint}: {reason}")]
    Unreachable {
        /// Where it is.
        endpoint: Endpoint,
        /// What happened.
        reason: String,
    },
    /// The daemon doesn't want this session: another protocol, a quota, another user.
    #[error("the daemon at {endpoint} refuses the session: {reason}")]
    Refused {
        /// Where it is.
        endpoint: Endpoint,
        /// What it says.
        reason: String,
    },
    /// The daemon was too slow, or is stopped.
    #[error("no session with the daemon at {endpoint} within {after:?}: is it stopped?")]
    TimedOut {
        /// Where it is.
        endpoint: Endpoint,
        /// The builder's `connect_timeout`.
        after: Duration,
    },
    /// The builder was given a name that is too long, or has a NUL in it.
    #[error("{0}")]
    Invalid(String),
    /// There can't be the thread that waits for the session's loss.
    #[error("no thread that waits for the session's loss: {0}")]
    Thread(#[source] io::Error),
}

/// What can go wrong with any call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There was no session, and none could be opened.
    #[error(transparent)]
    Connect(Box<ConnectError>),
    /// The session was lost while the call was under way.
    #[error(transparent)]
    Lost(#[from] SessionLost),
    /// A signal's handler has asked for the call to be given up: for bindings to other languages
    /// alone, see [`raw`](crate::raw).
    #[error("the call was given up for a signal")]
    Interrupted,
    /// The daemon refused for a reason that has no name of its own here.
    #[error("{text} ({code})")]
    Refused {
        /// The wire's name of the reason, as in `QUOTA`.
        code: &'static str,
        /// The daemon's words.
        text: String,
    },
}

/// An object can't be created, attached to or unlinked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The name is taken by another kind of object, or by one with other numbers.
    #[error("{0}")]
    KindMismatch(String),
    /// The name is taken, and the options said `exclusive`.
    #[error("{0}")]
    Exists(String),
    /// There is no such object, or no longer.
    #[error("{0}")]
    NotFound(String),
    /// A name or a number is out of range.
    #[error("{0}")]
    Invalid(String),
    /// The token is of another daemon or namespace than the client.
    #[error("the token is of {token}, the client is of {client}: connect by the token instead")]
    Elsewhere {
        /// Namespace and endpoint of the token.
        token: String,
        /// Namespace and endpoint of the client.
        client: String,
    },
    /// As for any call.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Nothing was acquired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The time is over.
    #[error("{text}")]
    TimedOut {
        /// The daemon's words.
        text: String,
        /// Who held it then, oldest first, at most 16.
        held_by: Vec<Holder>,
    },
    /// Waiting would have closed a cycle.
    #[error("{text}")]
    Deadlock {
        /// The daemon's words.
        text: String,
        /// Each waits for the next, the last for the first, which is the caller.
        cycle: Vec<DeadlockEdge>,
    },
    /// An owner died, and the next one left it without marking it consistent.
    #[error("{text}")]
    Poisoned {
        /// The daemon's words.
        text: String,
        /// Who died.
        by: Option<Box<Abandonment>>,
    },
    /// As for any call.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// Nothing was released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// An RLock is released by its owner alone; and only an owner marks what is held.
    #[error("{0}")]
    NotOwner(String),
    /// A release beyond the maximum.
    #[error("{0}")]
    OverReleased(String),
    /// The hold was gone: released by somebody else, or taken by force.
    #[error("{0}")]
    Stale(String),
    /// As for any call.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A condition wasn't waited for, or notified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConditionError {
    /// The condition's lock isn't held by the guard.
    #[error("{0}")]
    NotOwner(String),
    /// As for any call.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A barrier wasn't passed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// It is broken: somebody's time-out, death, failed action, reset or abort.
    #[error("{0}")]
    Broken(String),
    /// This party's time is over, and the barrier is broken by it.
    #[error("{0}")]
    TimedOut(String),
    /// As for any call.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl AcquireError {
    /// Who held the object when the time was over, oldest first; else nobody.
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

/// The wire's limit on names, labels and namespaces, in bytes.
const LONGEST: usize = 255;

/// Says what is wrong with a name, label or namespace that no daemon takes.
pub(crate) fn check_length(what: &str, text: &str) -> Result<(), String> {
    match text {
        text if text.len() > LONGEST => {
            Err(format!("{what} has {} bytes, and may have {LONGEST}", text.len()))
        }
        text if text.contains('\0') => Err(format!("{what} has a NUL in it: {text:?}")),
        _ => Ok(()),
    }
}

/// Nobody listens there.
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

/// For the codes that a kind of call has no word for.
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
