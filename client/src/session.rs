//! A session as objects and guards use it, whether threads or tasks wait for it. [`protocol`] has
//! the meaning of messages, [`transport`] the bytes; the two shells that wait are
//! [`blocking`](crate::blocking) and [`tasks`](crate::tasks).

pub mod protocol;
pub(crate) mod transport;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use syncd_proto::{
    Endpoint,
    v1::{self, Open, client_message::Request, server_message::Message},
};

use self::protocol::{Failure, Protocol};
pub(crate) use self::transport::LinkError;
use crate::{
    blocking,
    client::Shared,
    error::{SessionError, SessionLost},
    fork,
    start::{Again, Missed},
    tasks,
};

/// One session, and the shell that drives it.
#[derive(Debug)]
pub(crate) enum Session {
    Threads(blocking::Session),
    Tasks(tasks::Session),
}

/// A session's state that can be read without its mutex, which a forked child must not lock.
#[derive(Debug)]
pub(crate) struct Facts {
    generation: u32,
    id: AtomicU64,
    lost: AtomicBool,
    /// Releases were lost with the session, and no call has reported it yet.
    untold: AtomicBool,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum CallError {
    Refused(Box<v1::Error>),
    Session(SessionError),
}

/// Why a session couldn't be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    Link(LinkError),
    Refused(Box<v1::Error>),
    /// The client's deadline passed.
    Overdue,
    /// A signal handler asked to give up.
    Interrupted,
}

impl Session {
    pub(crate) fn facts(&self) -> &Facts {
        match self {
            Self::Threads(session) => session.facts(),
            Self::Tasks(session) => session.facts(),
        }
    }

    /// False if the session is lost, or is a parent process's: what it held is no longer held.
    pub(crate) fn is_usable(&self) -> bool {
        self.facts().is_usable()
    }

    /// Whether the hold still exists, as far as is known. Reads what has arrived, without waiting.
    pub(crate) fn has_hold(&self, token: u64) -> bool {
        let is_taken = |protocol: &mut Protocol| protocol.is_taken(token);
        self.is_usable()
            && match self {
                Self::Threads(session) => !session.look(is_taken),
                Self::Tasks(session) => !session.look(is_taken),
            }
            && self.is_usable()
    }

    /// None if the hold is gone, as [`has_hold`](Self::has_hold) says; else whether
    /// [`post`](Self::post) can send its release without waiting.
    pub(crate) fn has_room_for(&self, token: u64) -> Option<bool> {
        if !self.is_usable() {
            return None;
        }
        let look =
            |protocol: &mut Protocol| (!protocol.is_taken(token)).then(|| protocol.poll_room());
        let room = match self {
            Self::Threads(session) => session.look(look),
            Self::Tasks(session) => session.look(look),
        };
        room.filter(|_| self.is_usable())
    }

    /// Sends a request that has no reply: before returning, if the socket has room.
    pub(crate) fn post(&self, request: Request) {
        if self.is_usable() {
            match self {
                Self::Threads(session) => session.post(request),
                Self::Tasks(session) => session.post(request),
            }
        }
    }

    /// Shared namespaces with a similar name, if the session's namespace was private and new.
    pub(crate) fn similar_namespaces(&self) -> Vec<String> {
        let similar = |protocol: &mut Protocol| {
            protocol.opened().map(|opened| opened.similar.clone()).unwrap_or_default()
        };
        match self {
            _ if !self.facts().is_ours() => Vec::new(),
            Self::Threads(session) => session.look(similar),
            Self::Tasks(session) => session.look(similar),
        }
    }

    /// The resume key that the next session has to name, if this one was given up and a daemon may
    /// still have it; else empty.
    pub(crate) fn replaced(&self) -> Vec<u8> {
        let replaced = |protocol: &mut Protocol| protocol.poll_replaced().unwrap_or(&[]).to_vec();
        match self {
            _ if !self.facts().is_ours() => Vec::new(),
            Self::Threads(session) => session.look(replaced),
            Self::Tasks(session) => session.look(replaced),
        }
    }

    /// Why the session is lost, if it is.
    pub(crate) fn why_lost(&self) -> Option<SessionLost> {
        if !self.facts().is_ours() {
            return Some(SessionLost::forked());
        }
        let lost = |protocol: &mut Protocol| protocol.lost().cloned();
        match self {
            Self::Threads(session) => session.look(lost),
            Self::Tasks(session) => session.look(lost),
        }
    }

    /// Why the session was lost, if releases were lost with it and no call has reported that yet.
    pub(crate) fn take_untold(&self) -> Option<SessionLost> {
        let facts = self.facts();
        (facts.is_ours() && facts.untold.swap(false, Relaxed)).then(|| self.why_lost())?
    }

    /// The session of threads.
    ///
    /// # Panics
    /// If it is a session of tasks.
    pub(crate) fn threads(&self) -> &blocking::Session {
        match self {
            Self::Threads(session) => session,
            Self::Tasks(_) => unreachable!("the client's session was opened by a task"),
        }
    }

    /// The session of tasks.
    ///
    /// # Panics
    /// If it is a session of threads.
    pub(crate) fn tasks(&self) -> &tasks::Session {
        match self {
            Self::Tasks(session) => session,
            Self::Threads(_) => unreachable!("the client's session was opened by a thread"),
        }
    }
}

impl Facts {
    pub(crate) fn new() -> Self {
        Self {
            generation: fork::generation(),
            id: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            untold: AtomicBool::new(false),
        }
    }

    /// False in a child of the process that opened the session.
    pub(crate) fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.is_ours() && !self.lost.load(Relaxed)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id.load(Relaxed)
    }

    /// Called with a call's result: if it reports the lost session, no other call needs to.
    pub(crate) fn tell(&self, reply: &Result<Message, CallError>) {
        if matches!(reply, Err(CallError::Session(SessionError::Lost(_)))) {
            self.untold.store(false, Relaxed);
        }
    }

    /// Copies the session's id and its loss from the protocol.
    pub(crate) fn note(&self, protocol: &Protocol) {
        if let Some(opened) = protocol.opened() {
            self.id.store(opened.session, Relaxed);
        }
        if let Some(why) = protocol.lost()
            && !self.lost.load(Relaxed)
        {
            self.untold.store(why.undelivered > 0, Relaxed);
            self.lost.store(true, Relaxed);
        }
    }
}

/// The parameters of a new session.
pub(crate) struct Opening<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) open: Open,
    pub(crate) patience: Duration,
    /// Starts the daemon again when it is gone; None if that is not allowed.
    pub(crate) again: Option<Again>,
}

impl<'a> Opening<'a> {
    /// A client's next session, which replaces the one that it had.
    pub(crate) fn of(client: &'a Shared) -> Self {
        let config = &client.config;
        let open = Open {
            protocol: syncd_proto::PROTOCOL,
            namespace: client.namespace.clone(),
            label: config.label.clone(),
            replaces: client.slot().replaced(),
            ..Open::default()
        };
        let again = || Again::new(&client.endpoint, config.daemon.as_ref());
        Self {
            endpoint: &client.endpoint,
            open,
            patience: config.restart_timeout,
            again: client.may_start().then(again),
        }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        let mut protocol = Protocol::new(Instant::now(), self.open.clone());
        protocol.set_patience(self.patience);
        protocol
    }
}

/// Handles a failed connection attempt: if the session outlives its daemon and none listens, starts
/// one. Returns true if a daemon listens now, so that the caller can connect at once. If starting
/// failed, `error` becomes the reason.
pub(crate) fn is_back(
    protocol: &Protocol,
    again: Option<&mut Again>,
    now: Instant,
    error: &mut LinkError,
) -> bool {
    let is_missed = protocol.outlives_daemon() && error.is_absent();
    let Some(again) = again.filter(|_| is_missed) else { return false };
    match again.miss(now) {
        Missed::Up => return true,
        Missed::Awaited => {}
        Missed::Failed(why) => {
            let absent = std::io::Error::new(std::io::ErrorKind::NotFound, why);
            *error = LinkError::Io(absent);
        }
    }
    false
}

/// Converts a reply to a call's result.
pub(crate) fn answer(reply: Result<Message, Failure>) -> Result<Message, CallError> {
    match reply {
        Ok(Message::Error(error)) => Err(CallError::Refused(error)),
        Ok(message) => Ok(message),
        Err(Failure::Lost(why)) => Err(why.into()),
        Err(Failure::Overdue) => Err(CallError::overdue()),
    }
}

impl CallError {
    /// The call's deadline passed without a reply from the daemon.
    pub(crate) fn overdue() -> Self {
        let text = "timed out, and the daemon has not answered: is it stopped?";
        Self::refused(v1::ErrorCode::TimedOut, text)
    }

    /// An error that the client makes in the daemon's place.
    pub(crate) fn refused(code: v1::ErrorCode, text: &str) -> Self {
        let (code, text) = (code.into(), text.to_owned());
        Self::Refused(Box::new(v1::Error { code, text, ..v1::Error::default() }))
    }
}
