//! A connection between a client and the daemon: two queues of messages that arrive in order,
//! late, or, when it is cut, up to some point and no further. Each end learns of the cut by
//! itself, so the old connection's rest and the new one's beginning come in any order.

use std::collections::VecDeque;

use fastrand::Rng;
use syncd_proto::v1::{ClientMessage, ServerMessage};

use super::witness::Sid;

/// See the [module](self).
pub(super) struct Link {
    /// Whose it is.
    pub process: usize,
    pub pid: u32,
    pub sid: Sid,
    /// On the way to the daemon, and to the client.
    pub up: VecDeque<ClientMessage>,
    pub down: VecDeque<ServerMessage>,
    /// The client has it in use; before that it is being made.
    pub made: bool,
    /// When it broke: what is written from then on gets lost.
    pub cut: Option<u64>,
    /// When the daemon closed it.
    pub closed: Option<u64>,
    /// An end that has closed it, or seen that it is broken.
    pub client_gone: bool,
    pub daemon_gone: bool,
    /// How many messages fit in each direction.
    pub window: usize,
}

impl Link {
    pub fn new(process: usize, pid: u32, sid: Sid, window: usize) -> Self {
        Self {
            process,
            pid,
            sid,
            up: VecDeque::new(),
            down: VecDeque::new(),
            made: false,
            cut: None,
            closed: None,
            client_gone: false,
            daemon_gone: false,
            window,
        }
    }

    /// Breaks it: what is under way arrives up to some message.
    pub fn break_off(&mut self, now: u64, rng: &mut Rng) {
        if self.cut.is_none() {
            self.cut = Some(now);
            self.up.truncate(rng.usize(..=self.up.len()));
            self.down.truncate(rng.usize(..=self.down.len()));
        }
    }

    /// The client can write.
    pub fn takes_up(&self) -> bool {
        self.made && !self.client_gone && self.up.len() < self.window
    }

    pub fn takes_down(&self) -> bool {
        self.down.len() < self.window
    }

    pub fn send_up(&mut self, message: ClientMessage) {
        if self.cut.is_none() && !self.daemon_gone {
            self.up.push_back(message);
        }
    }

    pub fn send_down(&mut self, message: ServerMessage) {
        if self.cut.is_none() && !self.client_gone {
            self.down.push_back(message);
        }
    }

    /// Nothing more will come from the client.
    pub fn is_at_end_up(&self) -> bool {
        self.up.is_empty() && (self.cut.is_some() || self.client_gone)
    }

    /// Nothing more will come from the daemon.
    pub fn is_at_end_down(&self) -> bool {
        self.down.is_empty() && (self.cut.is_some() || self.daemon_gone)
    }
}
