//! A client process: owners above, the real protocol in the middle, and below it what a shell
//! does: it dials, writes what the connection takes, reads, and watches the clock.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use syncd_client::protocol::{End, Event, Protocol};
use syncd_proto::{
    PROTOCOL,
    v1::{Open, client_message::Request},
};

use super::{
    Checked,
    link::Link,
    witness::{Sid, sessions::Standing},
    world::World,
};

/// A place for a process, which may die and be started again.
pub(super) struct Process {
    pub pid: u32,
    pub is_running: bool,
    pub session: Option<Session>,
    pub owners: Vec<Owner>,
    /// No connection can be made before that time.
    pub partitioned: u64,
    /// The key of a session that was given up, for the next one to name.
    pub replaced: Vec<u8>,
    /// How readily it reads.
    pub pace: u32,
}

/// A session as its process has it.
pub(super) struct Session {
    pub sid: Sid,
    pub protocol: Protocol,
    /// The connection of the moment, and whether it is still being made.
    pub link: Option<usize>,
    /// Replies that there are, as far as the protocol has told.
    pub ready: HashSet<u64>,
    pub has_room: bool,
    /// By object.
    pub bindings: Vec<Binding>,
    /// Its end has been noticed.
    pub is_over: bool,
    pub is_closing: bool,
}

/// What a process has of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    None,
    /// Somebody attaches.
    Made,
    Bound(u32),
}

/// A thread or a task of a process.
pub(super) struct Owner {
    pub number: u64,
    /// The request that it waits for.
    pub pending: Option<u64>,
    pub holds: Vec<Held>,
    /// Objects of which it has permits that are nobody's.
    pub unowned: Vec<usize>,
    /// Barriers whose action it is to run.
    pub acting: Vec<usize>,
    /// Requests whose answers it will look at when they have all come.
    pub flood: Vec<u64>,
    /// Bare releases that it will make one after another.
    pub items: Option<(usize, u32)>,
}

/// A hold, as its owner has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub object: usize,
    pub token: u64,
    pub depth: u32,
    pub abandoned: bool,
}

impl Process {
    pub fn new(pid: u32, owners: u64, pace: u32) -> Self {
        let owner = |number| Owner {
            number,
            pending: None,
            holds: Vec::new(),
            unowned: Vec::new(),
            acting: Vec::new(),
            flood: Vec::new(),
            items: None,
        };
        Self {
            pid,
            is_running: true,
            session: None,
            owners: (1..=owners).map(owner).collect(),
            partitioned: 0,
            replaced: Vec::new(),
            pace,
        }
    }

    /// What its owners have is void.
    fn forget(&mut self) {
        for owner in &mut self.owners {
            owner.holds.clear();
            owner.unowned.clear();
            owner.acting.clear();
            owner.items = None;
        }
    }
}

impl World<'_> {
    /// Opens a session.
    pub fn begin(&mut self, at: usize) -> Checked {
        let sid = self.witness.begun(self.processes[at].pid);
        let replaces = std::mem::take(&mut self.processes[at].replaced);
        let replaces = if self.sabotage.replaces() { replaces } else { Vec::new() };
        let open = Open { protocol: PROTOCOL, replaces, ..Open::default() };
        self.processes[at].session = Some(Session {
            sid,
            protocol: Protocol::new(self.instant(self.now), open),
            link: None,
            ready: HashSet::new(),
            has_room: true,
            bindings: vec![Binding::None; self.plan.objects.len()],
            is_over: false,
            is_closing: false,
        });
        self.pump(at)
    }

    /// The time as the protocol counts it.
    pub fn instant(&self, micros: u64) -> Instant {
        self.origin + Duration::from_micros(micros)
    }

    /// And back, never too early.
    pub fn micros(&self, instant: Instant) -> u64 {
        (instant - self.origin).as_nanos().div_ceil(1000) as u64
    }

    /// All that a shell does of itself after each call of the protocol.
    pub fn pump(&mut self, at: usize) -> Checked {
        let now = self.instant(self.now);
        let process = &mut self.processes[at];
        let Some(session) = &mut process.session else { return Ok(()) };
        if session.protocol.poll_connect(now) {
            let number = self.next_link;
            self.next_link += 1;
            let link = Link::new(at, process.pid, session.sid, self.plan.window);
            self.links.insert(number, link);
            session.link = Some(number);
        }
        if let Some(link) = session.link.and_then(|number| self.links.get_mut(&number)) {
            while link.takes_up()
                && let Some(message) = session.protocol.poll_transmit()
            {
                let seen = &mut self.witness.sessions[session.sid.0];
                seen.written = seen.written.max(message.id);
                let written = self.sabotage.writes(session.sid, link, message.clone());
                for message in &written {
                    self.witness.written(session.sid, message)?;
                }
                written.into_iter().for_each(|message| link.send_up(message));
            }
        }
        while let Some(event) = session.protocol.poll_event() {
            match event {
                Event::Reply(id) => drop(session.ready.insert(id)),
                Event::Room => session.has_room = true,
                Event::Up => {
                    self.witness.up(session.sid);
                    let link = session.link.and_then(|number| self.links.get(&number));
                    if link.is_some_and(|link| link.cut.is_some() || link.daemon_gone) {
                        self.witness.broken(session.sid);
                    }
                }
                Event::Lost => {}
            }
        }
        match session.protocol.lost() {
            Some(why) if !session.is_over => {
                let (sid, why) = (session.sid, why.clone());
                session.is_over = true;
                if let Some(link) = session.link.take().and_then(|n| self.links.get_mut(&n)) {
                    link.client_gone = true;
                }
                process.forget();
                self.trace.note(self.now, ("lost", sid.0), || format!("{sid:?} is over: {why}"));
                let why_text = why.to_string();
                self.witness.lost(sid, why.undelivered_releases(), &why_text)
            }
            _ => Ok(()),
        }
    }

    /// A connection was being made: there it is, or not.
    pub fn dial(&mut self, at: usize) -> Checked {
        let (now, partitioned) = (self.instant(self.now), self.processes[at].partitioned);
        let is_away = self.daemon.is_away;
        let Some(session) = &mut self.processes[at].session else { return Ok(()) };
        let Some(number) = session.link else { return Ok(()) };
        let link = self.links.get_mut(&number).expect("it is being made");
        if self.now < partitioned || is_away {
            self.links.remove(&number);
            session.link = None;
            let end = match self.now < partitioned {
                true => End::Broken("unreachable".to_owned()),
                false => End::Absent("nobody".to_owned()),
            };
            session.protocol.handle_disconnected(now, end);
        } else {
            link.made = true;
            session.protocol.handle_connected();
        }
        self.trace.note(self.now, ("dial", at, self.now < partitioned), || {
            format!(
                "process {at} dials: {}",
                if self.now < partitioned || is_away { "nobody" } else { "there" }
            )
        });
        self.pump(at)
    }

    /// A client reads one message, or that there will be no more.
    pub fn read(&mut self, at: usize) -> Checked {
        let now = self.instant(self.now);
        let Some(session) = &mut self.processes[at].session else { return Ok(()) };
        let Some(number) = session.link else { return Ok(()) };
        let Some(link) = self.links.get_mut(&number) else { return Ok(()) };
        // A shell tells the time at each turn.
        let _ = session.protocol.poll_connect(now);
        if let Some(message) = link.down.pop_front() {
            for message in self.sabotage.reads(session.sid, message) {
                self.trace.note(self.now, (at, message.seq, message.id), || {
                    format!("process {at} reads {message:?}")
                });
                self.witness.received(session.sid, number, &message)?;
                session.protocol.handle_message(message);
            }
        } else if link.is_at_end_down() {
            link.client_gone = true;
            session.link = None;
            let sid = session.sid;
            self.witness.broken(sid);
            self.trace.note(self.now, ("cut", at), || format!("process {at} has lost {number}"));
            session.protocol.handle_disconnected(now, End::Broken("cut".to_owned()));
        }
        self.pump(at)
    }

    /// What is due by a client's clock is done.
    pub fn tick(&mut self, at: usize) -> Checked {
        let now = self.instant(self.now);
        if let Some(session) = &mut self.processes[at].session {
            session.protocol.handle_timeout(now);
        }
        self.pump(at)
    }

    /// When a client's clock has something to do.
    pub fn client_due(&self, at: usize) -> Option<u64> {
        let session = self.processes[at].session.as_ref()?;
        session.protocol.poll_timeout().map(|instant| self.micros(instant))
    }

    /// A process dies, with all that it hasn't written.
    pub fn die(&mut self, at: usize) {
        self.trace.note(self.now, ("dies", at), || format!("process {at} dies"));
        self.witness.died(self.processes[at].pid);
        let process = &mut self.processes[at];
        process.is_running = false;
        process.replaced.clear();
        let pid = process.pid;
        if let Some(session) = process.session.take() {
            self.witness.over(session.sid, Standing::Dead);
            self.links.retain(|_, link| link.pid != pid || link.made);
            for link in self.links.values_mut().filter(|link| link.pid == pid) {
                link.client_gone = true;
                link.down.clear();
            }
        }
        process.forget();
        for owner in &mut process.owners {
            (owner.pending, owner.flood) = (None, Vec::new());
        }
        self.dead.push(pid);
    }

    /// And is started again, as another.
    pub fn restart(&mut self, at: usize) -> Checked {
        self.trace.note(self.now, ("starts", at), || format!("process {at} starts"));
        self.next_pid += 1;
        self.processes[at].pid = self.next_pid;
        self.processes[at].is_running = true;
        self.begin(at)
    }

    /// A request that nobody waits for.
    pub fn post(&mut self, at: usize, request: Request) -> Checked {
        if let Some(session) = &mut self.processes[at].session {
            self.trace.note(self.now, ("post", at), || format!("process {at} posts {request:?}"));
            session.protocol.handle_post(request);
        }
        self.pump(at)
    }
}
