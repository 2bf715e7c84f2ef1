//! One session's half of the wire protocol as a state machine: which requests are in flight,
//! acknowledged, withdrawn or to be undone, what a resume sends again, and what a lost session
//! means to each waiter. No sockets, threads, wakers, futures or clock: `handle_*` puts things
//! in, `poll_*` takes things out, and the time comes in with the calls that need it.
//!
//! # Order of calls
//!
//! A shell owns a [`Protocol`] and a connection. After any `handle_*` call it
//!
//! 1. makes a connection when [`poll_connect`](Protocol::poll_connect) says so, and reports it by
//!    [`handle_connected`](Protocol::handle_connected) or
//!    [`handle_disconnected`](Protocol::handle_disconnected);
//! 2. transmits what [`poll_transmit`](Protocol::poll_transmit) gives, in that order, for as long
//!    as the connection takes it;
//! 3. wakes whom [`poll_event`](Protocol::poll_event) names;
//! 4. calls [`handle_timeout`](Protocol::handle_timeout) at the time of
//!    [`poll_timeout`](Protocol::poll_timeout).
//!
//! Everything that arrives goes to [`handle_message`](Protocol::handle_message), in order.
//!
//! # Exactly once
//!
//! The daemon numbers its messages and keeps each until it is acknowledged; the client numbers
//! its requests and keeps each until it is known to have arrived. A new connection begins with
//! both numbers, and each side sends what the other lacks. A grant that its caller no longer
//! wants is undone by a `Cancel` as long as the daemon keeps the grant, so it isn't acknowledged
//! before that `Cancel` is known to have arrived. One that was acknowledged is released by name.

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

/// Requests queued and not yet transmitted above which new ones are to wait.
pub const CROWD: usize = 1024;

/// See the [module](self).
pub struct Protocol {
    open: Open,
    opened: Option<Opened>,
    /// How long a daemon may be away that its sessions outlive.
    patience: Duration,
    /// The last time that was told.
    clock: Instant,
    /// The daemon has said that it leaves.
    is_leaving: bool,
    /// The daemon may still have it, or the next one, and only this process can end it.
    is_given_up: bool,
    /// How many connections were made to resume it.
    attempt: u64,
    refused: Option<Box<v1::Error>>,
    link: Link,
    /// What a new connection begins with; and whether it is still to be transmitted.
    greeting: ClientMessage,
    greet: bool,
    last_id: u64,
    last_seq: u64,
    /// What the last queued request acknowledges.
    acked: u64,
    /// Not known to have arrived, oldest first. The first `transmitted` of them are on their way
    /// by the connection of the moment.
    sent: VecDeque<ClientMessage>,
    transmitted: usize,
    waiting: HashMap<u64, Waiting, BuildHasherDefault<ById>>,
    done: HashMap<u64, Done, BuildHasherDefault<ById>>,
    withdrawn: HashMap<u64, Withdrawn, BuildHasherDefault<ById>>,
    /// Replies that must not be acknowledged before the request (by id) has arrived that undoes
    /// them.
    pinned: Vec<Pin>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Requests with a time-out of their own that are not known to have arrived.
    timed: VecDeque<Timed>,
    /// Tokens of holds that were taken away.
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
    /// Its deadline is over, and the daemon hasn't answered. It is withdrawn.
    Overdue,
}

/// Somebody to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is something for [`Protocol::poll_reply`] of this request.
    Reply(u64),
    /// There is room for new requests again.
    Room,
    /// The session was opened or resumed.
    Up,
    /// The session is lost: nobody need wait for anything.
    Lost,
}

/// How a connection ended, or an attempt at one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Another attempt may succeed. In a few words, why this one didn't.
    Broken(String),
    /// The same, and no daemon is there.
    Absent(String),
    /// None will.
    Final(SessionLost),
}

struct Pin {
    until: u64,
    seq: u64,
}

enum Link {
    /// There is none: one is to be made at a time, unless the session is to be given up by then.
    Down(Retry),
    /// One is being made, or waits for the answer to its greeting.
    Connecting(Retry),
    Up,
    Lost(SessionLost),
}

impl Protocol {
    /// A session to be opened. `open` says in which namespace, and by what label.
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

    /// Something arrived by the connection of the moment.
    pub fn handle_message(&mut self, message: ServerMessage) {
        match &self.link {
            Link::Connecting(_) => self.handle_greeting(message.message),
            Link::Up if message.seq > self.last_seq => self.dispatch(message),
            _ => {}
        }
    }

    /// The next message to transmit, as by the connection of the moment.
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

    /// Whether [`poll_transmit`](Self::poll_transmit) has something.
    pub fn has_transmit(&self) -> bool {
        self.greet || (matches!(self.link, Link::Up) && self.transmitted < self.sent.len())
    }

    /// The next to be told of something.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the session was opened as; none before it was.
    pub fn opened(&self) -> Option<&Opened> {
        self.opened.as_ref()
    }

    /// What `Open` was refused with.
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

    /// Whether there is a connection whose greeting was answered.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up)
    }

    /// Whether something queued waits to be transmitted, by this connection or the next.
    pub fn is_unsent(&self) -> bool {
        self.lost().is_none() && (self.greet || self.transmitted < self.sent.len())
    }

    /// Whether there are so many requests to transmit that new ones are to wait.
    pub fn is_crowded(&self) -> bool {
        self.sent.len() - self.transmitted > CROWD && self.lost().is_none()
    }

    /// Whether a new request may be made. If not, [`Event::Room`] tells when.
    pub fn poll_room(&mut self) -> bool {
        let crowded = self.is_crowded();
        self.somebody_waits_for_room |= crowded;
        !crowded
    }

    /// Whether the hold of this token was taken away.
    pub fn is_taken(&self, token: u64) -> bool {
        !self.taken.is_empty() && self.taken.contains(&token)
    }

    /// Ends the session here, whatever the daemon may think of it.
    pub fn handle_abort(&mut self, why: SessionLost) {
        self.lose(why);
    }

    /// What a session opened in this one's place names, if this one was given up and a daemon may
    /// still have it: as its process lives, nobody else would end it.
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
    /// Without the resume key, which is a secret.
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
