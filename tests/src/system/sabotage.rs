//! Faults that a client or a daemon could have, made on purpose between the real parts: the witness
//! must see each of them.

mod bugs;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use syncd_core::{
    Answer, Body, Cause, Handle, Input, Message, ObjectId, Output, RecordKind, Request, RequestId,
    SessionId, Spec,
};
use syncd_proto::v1::{
    ClientMessage, Release, ServerMessage, client_message::Request as Asked,
    server_message::Message as Wire,
};

pub use self::bugs::Bug;
use super::{link::Link, witness::Sid};

/// No session has so high a handle.
const NOTHING: Handle = Handle(u32::MAX);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Sabotage {
    bug: Option<Bug>,
    grace: u64,
    clients: BTreeMap<Sid, Client>,
    /// Messages that never left, by session: the others are numbered without a gap.
    muffled: BTreeMap<SessionId, BTreeSet<u64>>,
    disconnected: BTreeSet<SessionId>,
    /// The grace that goes on.
    stale: BTreeMap<SessionId, u64>,
    held_up: Option<Input>,
    /// A session was lost, and no request has come since.
    after_death: bool,
    /// Requests that were put in another's place.
    replaced: BTreeMap<(SessionId, RequestId), u32>,
    /// Whom a notify was passed on to.
    heirs: BTreeSet<SessionId>,
    told: BTreeMap<ObjectId, std::sync::Arc<syncd_core::Abandonment>>,
    releases: u64,
    /// Sessions that came back, and the numbers of requests that were made once more for them.
    restored: BTreeSet<SessionId>,
    doubled: BTreeMap<SessionId, Vec<u64>>,
}

/// A client's way to and from the link.
#[derive(Default)]
struct Client {
    highest: u64,
    written: VecDeque<ClientMessage>,
    resuming: bool,
    /// What it wrote, by id.
    asked: BTreeMap<u64, Asked>,
    seen: u64,
    shift: u64,
}

impl Sabotage {
    pub fn new(bug: Option<Bug>, grace: u64) -> Self {
        Self { bug, grace, ..Self::default() }
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub fn replaces(&self) -> bool {
        !self.is(Bug::GivenUpIsKept)
    }

    pub fn hears_superseded(&self) -> bool {
        self.is(Bug::SupersededIsHeard)
    }

    /// A client writes a message: what goes on the link.
    pub fn writes(&mut self, sid: Sid, _: &Link, mut message: ClientMessage) -> Vec<ClientMessage> {
        let Some(bug) = self.bug else { return vec![message] };
        let client = self.clients.entry(sid).or_default();
        if let Some(Asked::Open(open)) = &mut message.request {
            client.resuming = !open.resume_key.is_empty();
            if client.resuming && bug == Bug::ResumeSkipsAMessage {
                open.resume_seq += 1;
            }
            open.resume_seq = open.resume_seq.saturating_sub(client.shift);
            return vec![message];
        }
        message.ack = message.ack.saturating_sub(client.shift);
        let again = message.id <= client.highest;
        client.highest = client.highest.max(message.id);
        client.written.push_back(message.clone());
        if client.written.len() > 4 {
            client.written.pop_front();
        }
        if bug == Bug::TimeAwayForgotten && !again {
            client.asked.extend(message.request.clone().map(|request| (message.id, request)));
        }
        let first = std::mem::take(&mut client.resuming);
        let is_release = matches!(message.request, Some(Asked::Release(Release { .. })));
        match (&mut message.request, bug) {
            (_, Bug::ResumeSendsNothing) if again => vec![],
            (_, Bug::ResumeForgetsReleases) if again && is_release => vec![],
            (_, Bug::ResumeSendsTwice) if first => client.written.iter().cloned().collect(),
            (Some(Asked::Cancel(cancel)), Bug::CancelNotSent) if cancel.give_back => vec![],
            (Some(Asked::Cancel(cancel)), Bug::CancelKeepsTheGrant) => {
                cancel.give_back = false;
                vec![message]
            }
            (_, Bug::AckAhead) => {
                message.ack += 2;
                vec![message]
            }
            (Some(request), Bug::TimeAwayForgotten) if again => {
                let before = client.asked.get(&message.id);
                before.into_iter().for_each(|before| *request = before.clone());
                vec![message]
            }
            _ => vec![message],
        }
    }

    /// A message came by the link: what the client gets.
    pub fn reads(&mut self, sid: Sid, mut message: ServerMessage) -> Vec<ServerMessage> {
        let Some(bug) = self.bug else { return vec![message] };
        let client = self.clients.entry(sid).or_default();
        if let (Some(Wire::Opened(opened)), Bug::PatienceTooLong) = (&mut message.message, bug) {
            opened.grace_us *= 3;
        }
        if let (Some(Wire::Opened(opened)), Bug::GivesUpAtARestart) = (&mut message.message, bug) {
            (opened.grace_us, opened.outlives_daemon) = (0, false);
        }
        if bug == Bug::RepliesTwice && message.seq > 0 {
            if message.seq <= client.seen {
                client.shift += 1;
                message.seq = client.seen + client.shift;
                return vec![message];
            }
            client.seen = message.seq;
            message.seq += client.shift;
        }
        vec![message]
    }

    /// A session is resumed: how many messages the core is to believe it has.
    pub fn resumes(&mut self, _: u64, session: SessionId, received: u64) -> u64 {
        self.disconnected.remove(&session);
        self.spoken(session, received)
    }

    /// Which of the core's messages a client means, who knows nothing of the muffled ones.
    fn spoken(&self, session: SessionId, mut seq: u64) -> u64 {
        for muffled in self.muffled.get(&session).into_iter().flatten() {
            seq += u64::from(*muffled <= seq);
        }
        seq
    }

    /// The last request that the core has handled: as its client numbers them.
    pub fn handled(&self, session: SessionId, last: RequestId) -> RequestId {
        let doubled = self.doubled.get(&session).into_iter().flatten();
        RequestId(last.0 - doubled.filter(|id| **id <= last.0).count() as u64)
    }

    /// A request's number, as the core is to know it.
    fn renumbered(&self, session: SessionId, id: RequestId) -> RequestId {
        let doubled = self.doubled.get(&session).into_iter().flatten();
        RequestId(doubled.fold(id.0, |id, doubled| id + u64::from(*doubled <= id)))
    }

    /// Numbers a request as the core is to know it; gives back one that is to be made besides.
    fn renumbers(&mut self, input: &mut Input) -> Option<Input> {
        let Input::Request { session, id, ack, request } = input else { return None };
        if let Request::Cancel { request: named, .. } = request {
            *named = self.renumbered(*session, *named);
        }
        *id = self.renumbered(*session, *id);
        let is_bare = matches!(request, Request::Release { token: None, quiet: true, .. });
        if !(is_bare && self.restored.remove(session)) {
            return None;
        }
        let next = RequestId(id.0 + 1);
        self.doubled.entry(*session).or_default().push(next.0);
        let (session, ack, request) = (*session, *ack, request.clone());
        Some(Input::Request { session, id: next, ack, request })
    }

    /// A call of the core is to be made: which are.
    pub fn goes_in(&mut self, now: u64, mut input: Input) -> Vec<Input> {
        let Some(bug) = self.bug else { return vec![input] };
        if let Input::Request { session, ack, .. } = &mut input {
            *ack = self.spoken(*session, *ack);
            self.after_death = false;
        }
        self.after_death |= matches!(input, Input::Lost { cause: Cause::Died, .. });
        if bug == Bug::ReleasesAnewAfterARestart {
            if let Input::Restored(session) = &input {
                self.restored.insert(*session);
            }
            let again = self.renumbers(&mut input);
            return std::iter::once(input).chain(again).collect();
        }
        match (&mut input, bug) {
            (Input::Restored(session), Bug::RestartCountsTheGrace) => {
                return vec![Input::Disconnect(*session)];
            }
            (Input::Disconnect(session), Bug::NoGrace) => {
                let lost = Input::Lost { session: *session, cause: Cause::Disconnected };
                return vec![input, lost];
            }
            (Input::Disconnect(session), _) => {
                self.disconnected.insert(*session);
                self.stale.insert(*session, now);
            }
            (Input::Lost { cause: Cause::Died, .. }, Bug::DeathUnnoticed) => return vec![],
            (Input::Request { .. } | Input::Timeout, Bug::StaleGrace) => {
                let due = self.stale.iter().find(|(_, since)| now > **since + self.grace);
                if let Some((&session, _)) = due {
                    self.stale.remove(&session);
                    return vec![input, Input::Lost { session, cause: Cause::Disconnected }];
                }
            }
            (Input::Request { session, id, request, .. }, _) => match (request, bug) {
                (Request::Acquire(acquire), Bug::OutOfOrder) if acquire.timeout.is_none() => {
                    return match self.held_up.take() {
                        Some(held_up) => self.swapped(held_up, input),
                        None => {
                            self.held_up = Some(input);
                            vec![]
                        }
                    };
                }
                (Request::Release { token: None, quiet: true, .. }, Bug::UnownedPermitLost) => {
                    self.releases += 1;
                    if self.releases.is_multiple_of(3) {
                        return vec![];
                    }
                }
                (Request::Notify { n: Some(n), .. }, Bug::NotifyDoubled) => {
                    self.replaced.insert((*session, *id), *n);
                    *n += 1;
                }
                (Request::Acquire(acquire), Bug::TimeOutEarly) => {
                    acquire.timeout = acquire.timeout.map(|timeout| timeout / 2);
                }
                (Request::Create(create), Bug::BarrierEarly) => {
                    if let Spec::Barrier { parties } = &mut create.spec {
                        *parties = (*parties - 1).max(1);
                    }
                }
                (asked @ Request::Goodbye, Bug::GoodbyeUnheeded) => {
                    *asked = Request::Detach { handle: NOTHING, quiet: false };
                    self.replaced.insert((*session, *id), 0);
                }
                (asked @ Request::EventSet { .. }, Bug::SetUndone) => {
                    if let Request::EventSet { handle } = *asked {
                        *asked = Request::Query { handle };
                        self.replaced.insert((*session, *id), 0);
                    }
                }
                _ => {}
            },
            _ => {}
        }
        match self.held_up.take() {
            Some(held_up) => vec![held_up, input],
            None => vec![input],
        }
    }

    /// Two acquires of different sessions change places; those of one would give it away.
    fn swapped(&self, first: Input, second: Input) -> Vec<Input> {
        let session = |input: &Input| match input {
            Input::Request { session, .. } => Some(*session),
            _ => None,
        };
        if session(&first) == session(&second) { vec![first, second] } else { vec![second, first] }
    }

    /// Something came out of the core: what is handed on.
    pub fn comes_out(&mut self, input: &Input, outputs: Vec<Output>) -> Vec<Output> {
        let Some(bug) = self.bug else { return outputs };
        let gone = matches!(
            input,
            Input::Lost { .. }
                | Input::Timeout
                | Input::Request { request: Request::Cancel { .. }, .. }
        );
        if bug == Bug::NotifyDiesWithItsTarget && gone {
            self.note_heirs(&outputs);
        }
        let mut objects = self.objects_granted(&outputs).into_iter();
        let mut handed_on = Vec::new();
        for output in outputs {
            let Output::Send { session, mut message } = output else {
                handed_on.push(output);
                continue;
            };
            let object = if is_grant(&message) { objects.next() } else { None };
            let muffled = self.muffled.get(&session).is_some_and(|all| all.contains(&message.seq));
            if muffled || self.muffles(bug, input, session, &message) {
                self.muffled.entry(session).or_default().insert(message.seq);
                continue;
            }
            self.falsifies(bug, session, object, &mut message);
            let before =
                self.muffled.get(&session).map_or(0, |all| all.range(..message.seq).count());
            message.seq -= before as u64;
            handed_on.push(Output::Send { session, message });
        }
        handed_on
    }

    /// The objects of the grants among the outputs, in order.
    fn objects_granted(&self, outputs: &[Output]) -> Vec<ObjectId> {
        let granted = |output: &Output| match output {
            Output::Record(record) if matches!(record.kind, RecordKind::Granted { .. }) => {
                record.object.as_ref().map(|label| label.id)
            }
            _ => None,
        };
        outputs.iter().filter_map(granted).collect()
    }

    fn note_heirs(&mut self, outputs: &[Output]) {
        for output in outputs {
            if let Output::Record(record) = output
                && record.kind == RecordKind::Notified
                && let Some(party) = &record.party
            {
                self.heirs.insert(party.session);
            }
        }
    }

    fn muffles(&self, bug: Bug, input: &Input, to: SessionId, message: &Message) -> bool {
        match bug {
            Bug::DisconnectedIsNotTold => self.disconnected.contains(&to),
            Bug::HoldLostUntold => matches!(message.body, Body::HoldLost { .. }),
            Bug::DeathNotGrantedOn => match input {
                Input::Lost { session, .. } => to != *session && is_grant(message),
                _ => self.after_death && is_grant(message),
            },
            _ => false,
        }
    }

    fn falsifies(
        &mut self,
        bug: Bug,
        session: SessionId,
        object: Option<ObjectId>,
        message: &mut Message,
    ) {
        let Body::Reply(id, reply) = &mut message.body else { return };
        *id = self.handled(session, *id);
        match (&mut *reply, bug) {
            (Ok(Answer::Woken { notified, .. }), Bug::NotifyDiesWithItsTarget) => {
                *notified &= !self.heirs.remove(&session);
            }
            (Ok(Answer::Granted(grant) | Answer::Woken { grant, .. }), Bug::AbandonmentUntold) => {
                grant.abandoned = None;
            }
            (Ok(Answer::Granted(grant) | Answer::Woken { grant, .. }), Bug::AbandonmentTwice) => {
                let Some(object) = object else { return };
                match grant.abandoned.clone() {
                    Some(left) => drop(self.told.insert(object, left)),
                    None => grant.abandoned = self.told.remove(&object),
                }
            }
            (Ok(Answer::Done { count }), Bug::NotifyDoubled) => {
                if let Some(n) = self.replaced.get(&(session, *id)) {
                    *count = (*count).min(*n);
                }
            }
            (answer, Bug::SetUndone | Bug::GoodbyeUnheeded)
                if self.replaced.contains_key(&(session, *id)) =>
            {
                *answer = Ok(Answer::Done { count: 0 });
            }
            _ => {}
        }
    }
}

fn is_grant(message: &Message) -> bool {
    matches!(&message.body, Body::Reply(_, Ok(Answer::Granted(_) | Answer::Woken { .. })))
}
