//! The client's half of a session as a state machine: which requests are in flight, acknowledged,
//! withdrawn or to be undone, what a resume sends again, and what a lost session means to each
//! waiter. No sockets, threads, wakers, futures or clock: `handle_*` takes inputs, `poll_*` returns
//! outputs, and the calls that need the time take it as an argument.
//!
//! # Order of calls
//!
//! A shell owns a [`Protocol`] and a connection. After any `handle_*` call it
//!
//! 1. connects if [`poll_connect`](Protocol::poll_connect) returns true, and reports the result to
//!    [`handle_connected`](Protocol::handle_connected) or
//!    [`handle_disconnected`](Protocol::handle_disconnected);
//! 2. transmits the messages of [`poll_transmit`](Protocol::poll_transmit), in order, while the
//!    connection has room;
//! 3. wakes the waiters that [`poll_event`](Protocol::poll_event) names;
//! 4. calls [`handle_timeout`](Protocol::handle_timeout) at the time of
//!    [`poll_timeout`](Protocol::poll_timeout).
//!
//! Each arriving message goes to [`handle_message`](Protocol::handle_message), in order.
//!
//! # Exactly once
//!
//! The daemon numbers its messages and keeps each until it is acknowledged; the client numbers
//! its requests and keeps each until it is known to have arrived. A new connection begins with
//! both numbers, and each side sends what the other lacks. If a caller withdraws after its grant
//! was sent, a `Cancel` undoes the grant, provided that the daemon still keeps it: the client
//! doesn't acknowledge the grant before the `Cancel` is known to have arrived. A grant that was
//! acknowledged already is released by its token.

mod reconnect;
mod requests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    hash::BuildHasherDefault,
    time::{Duration, Instant},
};

use syncd_proto::v1::{self, ClientMessage, Open, Opened, ServerMessage};

pub use self::{reconnect::PATIENCE, requests::Undo};
use self::{
    reconnect::Retry,
    requests::{ById, Done, Timed, Waiting, Withdrawn},
};
use crate::error::SessionLost;

/// The number of untransmitted requests above which new ones have to wait.
pub const CROWD: usize = 1024;

/// The client's half of a session; see the [module](self).
pub struct Protocol {
    open: Open,
    opened: Option<Opened>,
    /// How long the session waits for a new daemon.
    patience: Duration,
    /// The latest time that a caller passed.
    clock: Instant,
    /// The daemon has announced its exit.
    is_leaving: bool,
    /// The client gave the session up, but a daemon may still keep it.
    is_given_up: bool,
    /// How many connections were made to resume the session.
    attempt: u64,
    refused: Option<Box<v1::Error>>,
    link: Link,
    /// The first message of a connection, and whether it has yet to be transmitted.
    greeting: ClientMessage,
    greet: bool,
    last_id: u64,
    last_seq: u64,
    /// The sequence number that the last queued request acknowledges.
    acked: u64,
    /// Requests not known to have arrived, oldest first. The first `transmitted` were transmitted
    /// on the current connection.
    sent: VecDeque<ClientMessage>,
    transmitted: usize,
    waiting: HashMap<u64, Waiting, BuildHasherDefault<ById>>,
    done: HashMap<u64, Done, BuildHasherDefault<ById>>,
    withdrawn: HashMap<u64, Withdrawn, BuildHasherDefault<ById>>,
    /// Replies that must not be acknowledged before the request that undoes them has arrived.
    pinned: Vec<Pin>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Requests with a time-out that are not known to have arrived.
    timed: VecDeque<Timed>,
    /// Fencing tokens of holds that were released by force.
    taken: HashSet<u64>,
    goodbye: Option<u64>,
    somebody_waits_for_room: bool,
    events: VecDeque<Event>,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The session is lost.
    Lost(SessionLost),
    /// The deadline passed without a reply. The request is withdrawn.
    Overdue,
}

/// What happened, for the shell to wake the waiters concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Protocol::poll_reply`] has this request's reply.
    Reply(u64),
    /// There is room for new requests again.
    Room,
    /// The session was opened or resumed.
    Up,
    /// The session is lost: all waits end.
    Lost,
}

/// How a connection ended, or an attempt at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The attempt failed for the given reason; another may succeed.
    Broken(String),
    /// As `Broken`, because no daemon listens.
    Absent(String),
    /// No further attempt can succeed.
    Final(SessionLost),
}

/// The reply `seq` isn't acknowledged before the request `until` has arrived.
struct Pin {
    until: u64,
    seq: u64,
}

enum Link {
    /// There is no connection; the next attempt is due at `Retry::at`.
    Down(Retry),
    /// A connection is being made, or waits for the reply to its greeting.
    Connecting(Retry),
    Up,
    Lost(SessionLost),
}

impl Protocol {
    /// A session to be opened. `open` has its namespace and label.
    pub fn new(now: Instant, open: Open) -> Self {
        Self {
            open,
            opened: None,
            patience: PATIENCE,
            clock: now,
            is_leaving: false,
            is_given_up: false,
            attempt: 0,
            refused: None,
            link: Link::Down(Retry::first(now)),
            greeting: ClientMessage::default(),
            greet: false,
            last_id: 0,
            last_seq: 0,
            acked: 0,
            sent: VecDeque::new(),
            transmitted: 0,
            waiting: HashMap::default(),
            done: HashMap::default(),
            withdrawn: HashMap::default(),
            pinned: Vec::new(),
            deadlines: BTreeSet::new(),
            timed: VecDeque::new(),
            taken: HashSet::new(),
            goodbye: None,
            somebody_waits_for_room: false,
            events: VecDeque::new(),
        }
    }

    /// Handles a message that arrived on the current connection.
    pub fn handle_message(&mut self, message: ServerMessage) {
        match &self.link {
            Link::Connecting(_) => self.handle_greeting(message.message),
            Link::Up if message.seq > self.last_seq => self.dispatch(message),
            _ => {}
        }
    }

    /// The next message to transmit on the current connection.
    pub fn poll_transmit(&mut self) -> Option<&ClientMessage> {
        if std::mem::take(&mut self.greet) {
            return Some(&self.greeting);
        }
        if !matches!(self.link, Link::Up) || self.transmitted >= self.sent.len() {
            return None;
        }
        self.transmitted += 1;
        if self.somebody_waits_for_room && !self.is_crowded() {
            self.somebody_waits_for_room = false;
            self.events.push_back(Event::Room);
        }
        self.sent.get(self.transmitted - 1)
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) has a message.
    pub fn has_transmit(&self) -> bool {
        self.greet || (matches!(self.link, Link::Up) && self.transmitted < self.sent.len())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The daemon's reply to `Open`; None until the session is open.
    pub fn opened(&self) -> Option<&Opened> {
        self.opened.as_ref()
    }

    /// The error with which the daemon refused `Open`.
    pub fn refused(&self) -> Option<&v1::Error> {
        self.refused.as_deref()
    }

    /// Why the session is lost, if it is.
    pub fn lost(&self) -> Option<&SessionLost> {
        match &self.link {
            Link::Lost(why) => Some(why),
            _ => None,
        }
    }

    /// Whether the session is open or resumed on the current connection.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up)
    }

    /// Whether a queued message waits to be transmitted, on this connection or the next.
    pub fn is_unsent(&self) -> bool {
        self.lost().is_none() && (self.greet || self.transmitted < self.sent.len())
    }

    /// Whether so many requests are untransmitted that new ones have to wait.
    pub fn is_crowded(&self) -> bool {
        self.sent.len() - self.transmitted > CROWD && self.lost().is_none()
    }

    /// Whether a new request may be made. If not, [`Event::Room`] follows.
    pub fn poll_room(&mut self) -> bool {
        let crowded = self.is_crowded();
        self.somebody_waits_for_room |= crowded;
        !crowded
    }

    /// Whether the hold of this token was released by force.
    pub fn is_taken(&self, token: u64) -> bool {
        !self.taken.is_empty() && self.taken.contains(&token)
    }

    /// Ends the client's half of the session, without telling the daemon.
    pub fn handle_abort(&mut self, why: SessionLost) {
        self.lose(why);
    }

    /// The resume key that the next session has to name as replaced, if this one was given up and a
    /// daemon may still keep it: the daemon would keep it for as long as this process lives.
    pub fn poll_replaced(&self) -> Option<&[u8]> {
        let opened = self.opened.as_ref().filter(|_| self.is_given_up)?;
        Some(&opened.resume_key)
    }

    fn lose(&mut self, mut why: SessionLost) {
        if self.lost().is_some() {
            return;
        }
        if self.goodbye.is_some() {
            why = SessionLost::closed();
        }
        why.undelivered = self.unowned_releases();
        self.link = Link::Lost(why);
        self.greet = false;
        self.transmitted = 0;
        self.sent.clear();
        self.waiting.clear();
        self.withdrawn.clear();
        self.pinned.clear();
        self.deadlines.clear();
        self.timed.clear();
        self.events.push_back(Event::Lost);
    }
}

impl std::fmt::Debug for Protocol {
    /// Omits the resume key, which is a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protocol")
            .field("session", &self.opened.as_ref().map(|opened| opened.session))
            .field("up", &self.is_up())
            .field("lost", &self.lost())
            .field("last_id", &self.last_id)
            .field("last_seq", &self.last_seq)
            .field("unconfirmed", &self.sent.len())
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}
