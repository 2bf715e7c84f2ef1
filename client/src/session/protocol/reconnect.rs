//! Reconnecting: when to connect, the greeting of a connection, when to give the session up, and
//! how the time without a daemon counts against time-outs.

use std::time::{Duration, Instant};

use syncd_proto::v1::{ClientMessage, Open, client_message::Request, server_message::Message};

use super::{End, Event, Link, Protocol};
use crate::error::SessionLost;

/// How long the session waits for a new daemon by default: enough for a service manager's restart
/// or a package's upgrade on a slow disk.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The first pause between two attempts to resume; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(1);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The state of the attempts to connect.
#[derive(Clone)]
pub(super) struct Retry {
    /// When the next attempt is due.
    pub at: Instant,
    pause: Duration,
    /// When the last connection broke; None for a session that was never opened.
    since: Option<Instant>,
    /// The earliest time from which a daemon may count the grace.
    grace_from: Instant,
    /// The daemon is gone, so that none counts the grace.
    is_gone: bool,
    /// There is a connection, and its greeting has no reply yet.
    is_heard: bool,
    pub reason: String,
}

impl Retry {
    pub(super) fn first(now: Instant) -> Self {
        let reason = "no connection was made".to_owned();
        Self {
            at: now,
            pause: PAUSE,
            since: None,
            grace_from: now,
            is_gone: false,
            is_heard: false,
            reason,
        }
    }
}

impl Protocol {
    /// Sets how long the session waits for a new daemon. Default: [`PATIENCE`].
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether to connect now. True once for each attempt.
    pub fn poll_connect(&mut self, now: Instant) -> bool {
        self.tell(now);
        let spread = self.spread();
        match &mut self.link {
            Link::Down(retry) if now >= retry.at => {
                let mut retry = retry.clone();
                retry.at = now + retry.pause.mul_f64(spread);
                retry.pause = (retry.pause * 2).min(LONGEST_PAUSE);
                self.link = Link::Connecting(retry);
                true
            }
            _ => false,
        }
    }

    fn tell(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
        self.note_time();
    }

    /// A factor from 0.75 to 1.25 for pauses, so that the clients of a lost daemon don't all
    /// reconnect at once. It is derived from the resume key and the attempt, not random.
    fn spread(&self) -> f64 {
        let key = self.opened.iter().flat_map(|opened| &opened.resume_key);
        let seed = key.fold(self.attempt, |seed, byte| {
            (seed ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
        });
        0.75 + (seed >> 40) as f64 / (1_u64 << 25) as f64
    }

    /// A connection was made.
    pub fn handle_connected(&mut self) {
        let Link::Connecting(retry) = &mut self.link else { return };
        retry.is_heard = true;
        // Resume from what was acknowledged, not from what was received: a Cancel that was lost
        // with the connection must still be able to undo its grant.
        let open = match &self.opened {
            None => self.open.clone(),
            Some(opened) => {
                self.attempt += 1;
                Open {
                    resume_key: opened.resume_key.clone(),
                    resume_seq: self.acked,
                    attempt: self.attempt,
                    replaces: Vec::new(),
                    ..self.open.clone()
                }
            }
        };
        self.greeting = ClientMessage { id: 0, ack: 0, request: Some(Request::Open(open)) };
        self.greet = true;
        self.transmitted = 0;
    }

    /// The connection ended, or couldn't be made.
    pub fn handle_disconnected(&mut self, now: Instant, end: End) {
        let (reason, is_absent) = match end {
            End::Final(why) => return self.lose(why),
            End::Broken(reason) => (reason, false),
            End::Absent(reason) => (reason, true),
        };
        self.greet = false;
        self.transmitted = 0;
        let is_leaving = std::mem::take(&mut self.is_leaving);
        self.link = match std::mem::replace(&mut self.link, Link::Up) {
            Link::Lost(why) => Link::Lost(why),
            Link::Down(retry) | Link::Connecting(retry) => {
                // The daemon behind that connection may have resumed the session, and counts the
                // grace from now on.
                let is_counting = retry.is_gone && retry.is_heard && !is_absent;
                let grace_from = if is_counting { now } else { retry.grace_from };
                let is_gone = is_absent || (retry.is_gone && !is_counting);
                Link::Down(Retry { reason, is_gone, grace_from, is_heard: false, ..retry })
            }
            Link::Up => {
                let (since, is_gone) = (Some(now), is_leaving);
                Link::Down(Retry { since, is_gone, reason, ..Retry::first(now) })
            }
        };
    }

    /// When to give up a session that has no connection.
    ///
    /// While its daemon may be alive, that is before the daemon's grace ends: the holder must stop
    /// before the daemon grants the lock to another. If the daemon is gone and the session outlives
    /// it, nobody can get the lock, so the session waits for its patience; nor does the next daemon
    /// grant it while the connection that resumes the session is open.
    fn end(&self, retry: &Retry) -> Option<Instant> {
        let (since, opened) = (retry.since?, self.opened.as_ref()?);
        let waits = opened.outlives_daemon && retry.is_gone;
        let grace = Duration::from_micros(opened.grace_us) * 3 / 4;
        match waits {
            true => since.checked_add(self.patience.max(grace)),
            false => retry.grace_from.checked_add(grace),
        }
    }

    pub(super) fn handle_greeting(&mut self, answer: Option<Message>) {
        match answer {
            Some(Message::Opened(opened)) => {
                self.arrived(opened.last_id);
                match &mut self.opened {
                    // A new daemon may have other settings.
                    Some(known) => {
                        known.grace_us = opened.grace_us;
                        known.outlives_daemon = opened.outlives_daemon;
                    }
                    None => self.opened = Some(opened),
                }
                self.count_time_away();
                self.link = Link::Up;
                self.events.push_back(Event::Up);
            }
            Some(Message::Error(error)) => {
                let text = error.text.clone();
                self.refused = Some(error);
                self.lose(SessionLost::refused(text));
            }
            _ => self.lose(SessionLost::nonsense()),
        }
    }

    /// Whether the session survives its daemon's death.
    pub fn outlives_daemon(&self) -> bool {
        self.opened.as_ref().is_some_and(|opened| opened.outlives_daemon)
    }

    /// Whether the session's goodbye is delivered; `is_unsent`: something hasn't reached the socket.
    /// A daemon that is killed loses what is in its socket. That matters only to a session that the
    /// next daemon keeps, for which the reply is needed.
    pub fn is_delivered(&mut self, goodbye: u64, is_unsent: bool) -> bool {
        match self.outlives_daemon() {
            true => self.poll_reply(goodbye).is_some(),
            false => !is_unsent,
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) and [`poll_connect`](Self::poll_connect)
    /// next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = match &self.link {
            Link::Down(retry) => Some(self.end(retry).map_or(retry.at, |end| end.min(retry.at))),
            Link::Connecting(retry) => self.end(retry),
            Link::Up | Link::Lost(_) => None,
        };
        let request = self.deadlines.first().map(|(at, _)| *at);
        link.into_iter().chain(request).min()
    }

    /// Gives up the session and ends requests whose deadlines have passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.tell(now);
        if let Link::Down(retry) | Link::Connecting(retry) = &self.link
            && self.end(retry).is_some_and(|end| now >= end)
        {
            let why = SessionLost::disconnected(&retry.reason);
            self.is_given_up = self.outlives_daemon();
            self.lose(why);
        }
        while let Some(&(at, id)) = self.deadlines.first()
            && at <= now
        {
            self.expire(id);
        }
    }
}
