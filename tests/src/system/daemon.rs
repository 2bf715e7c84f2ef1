//! The daemon without its sockets: the streams, the outboxes and the registry of sessions as
//! `server/src/session.rs` has them, around the real core and the real conversion.

mod opening;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use syncd::convert;
use syncd_core::{
    Cause, Input, Message, Output, RecordKind, Request as Asked, RequestId, SessionId,
};
use syncd_proto::v1::ClientMessage;

use super::{
    Checked,
    broker::{Core, time},
    link::Link,
    plan::Plan,
    sabotage::Sabotage,
    trace::Trace,
    witness::Witness,
};

/// What the daemon's parts have to do with besides each other.
pub(super) struct Surroundings<'a> {
    pub now: u64,
    pub rng: &'a mut Rng,
    pub witness: &'a mut Witness,
    pub trace: &'a mut Trace,
    pub sabotage: &'a mut Sabotage,
    /// Links that the daemon cuts.
    pub cuts: &'a mut Vec<usize>,
}

/// See the [module](self).
pub(super) struct Daemon {
    pub core: Core,
    grace: u64,
    unsent: usize,
    streams: BTreeMap<usize, Stream>,
    sessions: BTreeMap<SessionId, Session>,
    /// Processes that were seen to exit.
    exited: BTreeSet<u32>,
    /// It was killed, and isn't back.
    pub is_away: bool,
}

/// One session, or a part of its life.
enum Stream {
    Opening,
    Open {
        session: SessionId,
        /// Its number among the streams of the session.
        number: u64,
        /// Decided and not yet written.
        queue: VecDeque<Message>,
    },
    Over,
}

struct Session {
    pid: u32,
    secret: [u8; 8],
    /// The number of the last stream that was attached, and its link.
    stream: u64,
    link: usize,
    attached: bool,
    /// The highest number of an attempt to resume it.
    attempt: u64,
    ended: bool,
    /// It has made a request, so its client knows of it.
    is_known: bool,
    outbox: VecDeque<Message>,
}

impl Daemon {
    pub fn new(plan: &Plan) -> Self {
        Self {
            core: Core::new(plan),
            grace: plan.grace,
            unsent: plan.unsent,
            streams: BTreeMap::new(),
            sessions: BTreeMap::new(),
            exited: BTreeSet::new(),
            is_away: false,
        }
    }

    /// Whether the stream of a link has something to do.
    pub fn has_turn(&self, at: usize, link: &Link) -> bool {
        if link.daemon_gone || !link.made || self.is_away {
            return false;
        }
        let waits = match self.streams.get(&at) {
            Some(Stream::Open { session, number, queue }) => {
                let session_ = &self.sessions[session];
                let news = !session_.outbox.is_empty() && session_.stream == *number;
                let over = session_.stream != *number || session_.ended;
                if (!queue.is_empty() || news) && !over {
                    return link.takes_down() || link.cut.is_some() || link.client_gone;
                }
                if over {
                    return true;
                }
                !self.core.is_working(*session)
            }
            _ => link.takes_down(),
        };
        waits && (!link.up.is_empty() || link.is_at_end_up())
    }

    /// Lets the stream of a link go on for some steps.
    pub fn turn(
        &mut self,
        at: usize,
        link: &mut Link,
        steps: usize,
        around: &mut Surroundings<'_>,
    ) -> Checked {
        let mut stream = self.streams.remove(&at).unwrap_or(Stream::Opening);
        for _ in 0..steps {
            let went_on = self.advance(at, &mut stream, link, around)?;
            if !went_on || matches!(stream, Stream::Over) {
                break;
            }
        }
        if matches!(stream, Stream::Over) {
            link.daemon_gone = true;
            link.up.clear();
        } else {
            self.streams.insert(at, stream);
        }
        Ok(())
    }

    /// Nothing is read while anything is unwritten.
    fn advance(
        &mut self,
        at: usize,
        stream: &mut Stream,
        link: &mut Link,
        around: &mut Surroundings<'_>,
    ) -> Result<bool, String> {
        let Stream::Open { session, number, queue } = stream else {
            return self.open_stream(at, stream, link, around);
        };
        let (id, number) = (*session, *number);
        let broken = link.cut.is_some() || link.client_gone;
        if broken {
            // What has come is heard out; nobody reads an answer.
            queue.clear();
        }
        if let Some(message) = queue.front() {
            if !link.takes_down() {
                return Ok(false);
            }
            let message = convert::server_message(time(around.now), message.clone());
            queue.pop_front();
            link.send_down(message);
            return Ok(true);
        }
        let registered = self.sessions.get_mut(&id).expect("a stream's session");
        if registered.stream != number && !around.sabotage.hears_superseded() {
            *stream = Stream::Over;
            return Ok(true);
        }
        if registered.stream == number && !registered.outbox.is_empty() {
            queue.append(&mut registered.outbox);
            return Ok(true);
        }
        if registered.ended {
            *stream = Stream::Over;
            return Ok(true);
        }
        if self.core.is_working(id) {
            return Ok(false);
        }
        match link.up.pop_front() {
            Some(message) => {
                let own = self.handle(id, message, around)?;
                if registered_is(&self.sessions, id, number) {
                    queue.extend(own);
                }
            }
            None if link.is_at_end_up() => {
                *stream = Stream::Over;
                let session = self.sessions.get_mut(&id).expect("a stream's session");
                if session.stream == number && session.attached && !session.ended {
                    session.attached = false;
                    session.outbox.clear();
                    around.trace.note(around.now, ("away", id), || format!("daemon: {id:?} away"));
                    around.witness.away(id);
                    let outputs = self.core.call(Input::Disconnect(id), around);
                    self.hand_out(outputs, None, around)?;
                }
            }
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Hands a request to the core; returns what is for the session itself.
    fn handle(
        &mut self,
        id: SessionId,
        message: ClientMessage,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Message>, String> {
        around.witness.arrived(id, &message)?;
        around.trace.note(around.now, (id, message.id, message.ack), || {
            format!("daemon: {id:?} asks {message:?}")
        });
        let secret = around.rng.u64(..);
        let request = match convert::request(message.request, || secret) {
            Ok(request) => request,
            Err(convert::Invalid { field, why }) => Asked::Invalid { field, why },
        };
        let (request_id, ack) = (RequestId(message.id), message.ack);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.is_known = true;
        }
        let input = Input::Request { session: id, id: request_id, ack, request };
        let outputs = self.core.call(input, around);
        self.hand_out(outputs, Some(id), around)
    }

    /// What is for `own` is returned, the rest goes where it belongs.
    fn hand_out(
        &mut self,
        outputs: Vec<Output>,
        own: Option<SessionId>,
        around: &mut Surroundings<'_>,
    ) -> Result<Vec<Message>, String> {
        let (mut mine, mut overrun) = (Vec::new(), Vec::new());
        for output in outputs {
            match output {
                Output::Send { session, message } => {
                    around.witness.decided(session, &message)?;
                    around.trace.note(around.now, (session, message.seq), || {
                        format!("daemon: to {session:?} {message:?}")
                    });
                    let Some(other) = self.sessions.get_mut(&session) else { continue };
                    if own == Some(session) {
                        mine.push(message);
                    } else if other.attached && other.outbox.len() < self.unsent {
                        other.outbox.push_back(message);
                    } else if other.attached && !overrun.contains(&session) {
                        other.outbox.clear();
                        around.cuts.push(other.link);
                        overrun.push(session);
                    }
                }
                Output::Record(record) => {
                    around.witness.recorded(&record);
                    let ends = matches!(
                        record.kind,
                        RecordKind::SessionLost { .. } | RecordKind::SessionClosed
                    );
                    if let (true, Some(party)) = (ends, &record.party)
                        && let Some(session) = self.sessions.get_mut(&party.session)
                    {
                        session.ended = true;
                        around.witness.ended(party.session);
                    }
                }
                Output::Ready { .. } => {}
            }
        }
        for session in overrun {
            around.witness.dropped(session);
            let lost = Input::Lost { session, cause: Cause::Misbehaved };
            let outputs = self.core.call(lost, around);
            self.hand_out(outputs, None, around)?;
        }
        Ok(mine)
    }

    /// It is killed: what it has decided is known, and what it hadn't sent is gone.
    pub fn die(&mut self, links: &mut BTreeMap<usize, Link>, around: &mut Surroundings<'_>) {
        self.is_away = true;
        self.streams.clear();
        for link in links.values_mut().filter(|link| link.made && !link.daemon_gone) {
            link.break_off(around.now, around.rng);
            link.closed.get_or_insert(around.now);
            link.daemon_gone = true;
            link.up.clear();
        }
        for (id, session) in self.sessions.iter_mut().filter(|(_, session)| !session.ended) {
            session.outbox.clear();
            if std::mem::take(&mut session.attached) {
                around.witness.away(*id);
            }
        }
    }

    /// The next one has what the last one had: its sessions keep what they hold.
    pub fn come_back(&mut self, around: &mut Surroundings<'_>) -> Checked {
        self.is_away = false;
        self.core.restart()?;
        let there = self.sessions.iter_mut().filter(|(_, session)| !session.ended);
        let there: Vec<(SessionId, bool)> = there
            .map(|(id, session)| {
                session.attempt = 0;
                (*id, session.is_known)
            })
            .collect();
        for (session, is_known) in there {
            // Whose opening may never have been heard of has nothing, and nobody who would end it.
            let input = match is_known {
                true => Input::Restored(session),
                false => Input::Disconnect(session),
            };
            let outputs = self.core.call(input, around);
            self.hand_out(outputs, None, around)?;
        }
        Ok(())
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, around: &mut Surroundings<'_>) -> Checked {
        let outputs = self.core.call(Input::Timeout, around);
        self.hand_out(outputs, None, around).map(drop)
    }

    /// A process was seen to exit: what it had written is read, then its sessions are lost.
    pub fn reap(
        &mut self,
        pid: u32,
        links: &mut BTreeMap<usize, Link>,
        around: &mut Surroundings<'_>,
    ) -> Checked {
        self.exited.insert(pid);
        for (&at, link) in links.iter_mut().filter(|(_, link)| link.pid == pid && link.made) {
            while !link.daemon_gone {
                self.work_off(around)?;
                self.turn(at, link, 1, around)?;
            }
        }
        let theirs = |session: &Session| session.pid == pid && !session.ended;
        let sessions: Vec<SessionId> =
            self.sessions.iter().filter(|(_, s)| theirs(s)).map(|(id, _)| *id).collect();
        for session in sessions {
            self.lose(session, Cause::Died, around)?;
        }
        Ok(())
    }

    /// Continues what the core has begun, to its end.
    fn work_off(&mut self, around: &mut Surroundings<'_>) -> Checked {
        while self.core.has_work() {
            self.handle_timeout(around)?;
        }
        Ok(())
    }

    /// Ends a session by somebody's will, or by its process's death.
    pub fn lose(
        &mut self,
        session: SessionId,
        cause: Cause,
        around: &mut Surroundings<'_>,
    ) -> Checked {
        let outputs = self.core.call(Input::Lost { session, cause }, around);
        self.hand_out(outputs, None, around).map(drop)
    }

    /// Takes an object from all who hold it.
    pub fn force(&mut self, object: &str, around: &mut Surroundings<'_>) -> Checked {
        let Some(object) = self.core.find(object) else { return Ok(()) };
        let outputs = self.core.call(Input::ForceRelease(object), around);
        self.hand_out(outputs, None, around).map(drop)
    }
}

fn registered_is(sessions: &BTreeMap<SessionId, Session>, id: SessionId, number: u64) -> bool {
    sessions[&id].stream == number
}
