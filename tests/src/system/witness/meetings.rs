//! Answers as their callers get them, and the objects at which processes meet without permits:
//! events and barriers.

use syncd_client::protocol::Failure;
use syncd_core::{Error, ErrorKind};
use syncd_proto::v1::{self, ErrorCode, server_message::Message};

use super::{Call, Moment, Sid, What, Witness};
use crate::system::{Checked, plan::Kind};

impl Witness {
    pub(super) fn meeting_arrived(
        &mut self,
        sid: Sid,
        owner: u64,
        object: usize,
        what: What,
        moment: Moment,
    ) {
        let object = &mut self.objects[object];
        match what {
            What::Set(set) => object.toggles.push((moment, set)),
            What::Meet => object.arrivals += 1,
            What::Report => drop(object.acting.remove(&(sid, owner))),
            What::Reset | What::Abort => object.acting.clear(),
            _ => {}
        }
    }

    pub(super) fn meeting_refused(&mut self, call: &Call, error: &Error) {
        let object = &mut self.objects[call.object];
        match (call.what, &error.kind) {
            (What::Set(_), _) => object.toggles.retain(|(when, _)| Some(*when) != call.arrived),
            // Who withdraws from a barrier may have been counted.
            (What::Meet, ErrorKind::Cancelled) => {}
            (What::Meet, ErrorKind::TimedOut { .. }) => {
                object.arrivals -= 1;
                object.acting.clear();
            }
            (What::Meet, _) => object.arrivals -= 1,
            _ => {}
        }
    }

    /// A party passes: as many as it takes must have come. Rule R52.
    pub(super) fn pass_decided(
        &mut self,
        sid: Sid,
        call: &Call,
        index: u32,
        run_action: bool,
    ) -> Checked {
        let object = &mut self.objects[call.object];
        let Kind::Barrier { parties } = object.kind else {
            return Err(format!("{call:?} passes a {:?}", object.kind));
        };
        object.firsts += u64::from(index == 0);
        if run_action {
            object.acting.insert((sid, call.owner));
        }
        if index >= parties || object.firsts * u64::from(parties) > object.arrivals {
            return Err(format!("{call:?} passes as number {index} of {parties}, too early"));
        }
        Ok(())
    }

    /// An owner gets its answer: it must be one that its call may have.
    pub fn answered(&mut self, sid: Sid, id: u64, result: &Result<Message, Failure>) -> Checked {
        let key = (sid, id);
        let Some(call) = self.calls.get_mut(&key) else {
            return Err(format!("{sid:?} has an answer to {id}, which nobody asked"));
        };
        if std::mem::replace(&mut call.collected, true) {
            return Err(format!("{sid:?} gets the answer to {id} twice"));
        }
        let call = *call;
        let message = match result {
            Ok(message) => message,
            Err(failure) => {
                if *failure == Failure::Overdue {
                    self.withdrawn(sid, id);
                }
                return self.failed(sid, &call, failure);
            }
        };
        match (call.what, message) {
            (_, Message::Error(error)) => self.refused(key, &call, error),
            (What::Acquire { .. }, Message::Granted(granted)) => self.granted(key, &call, granted),
            (What::Wait { .. }, Message::Woken(woken)) => {
                self.woken(&call, woken.notified)?;
                let granted = woken.granted.as_ref().ok_or("woken without the lock")?;
                self.granted(key, &call, granted)
            }
            (What::Attach, Message::Attached(_)) => Ok(()),
            (What::Meet, Message::BarrierPassed(_)) => {
                self.count.passed += 1;
                Ok(())
            }
            (What::Query, Message::State(state)) => self.state(sid, &call, state),
            (What::Notify { n }, Message::Done(done)) if done.count > n => {
                Err(format!("{} were notified by {call:?}", done.count))
            }
            (What::Await, Message::Done(_)) => self.event_was_set(&call),
            (What::Forget { token }, Message::Done(_)) => {
                self.forgotten(call.object, token);
                Ok(())
            }
            (
                What::Detach
                | What::Release { .. }
                | What::Bare
                | What::Mark
                | What::Notify { .. }
                | What::Set(_)
                | What::Report
                | What::Reset
                | What::Abort
                | What::Close,
                Message::Done(_),
            ) => Ok(()),
            _ => Err(format!("{call:?} is answered {message:?}")),
        }
    }

    fn refused(&mut self, key: (Sid, u64), call: &Call, error: &v1::Error) -> Checked {
        let kind = self.objects[call.object].kind;
        let waited = call.arrived.zip(call.decided).map(|(from, to)| to.when.at - from.at);
        let may = match error.code() {
            ErrorCode::TimedOut => {
                self.count.timed_out += 1;
                call.timeout.is_some_and(|timeout| waited.is_some_and(|waited| waited >= timeout))
                    && self.was_not_set_in_time(call)
            }
            ErrorCode::Cancelled => {
                self.count.cancelled += 1;
                call.recalled.is_some() || call.detached
            }
            ErrorCode::Deadlock => {
                self.count.deadlocks += 1;
                matches!(call.what, What::Acquire { careful: true, .. })
            }
            ErrorCode::Poisoned => {
                self.count.poisoned += 1;
                match kind {
                    Kind::Condition { lock } => self.objects[lock].kind.poisons(),
                    kind => kind.poisons(),
                }
            }
            ErrorCode::BrokenBarrier => matches!(call.what, What::Meet | What::Report),
            ErrorCode::NotFound => call.detached || !self.is_attached(key.0, call.object),
            ErrorCode::OverReleased => {
                call.what == What::Bare && matches!(kind, Kind::Lock { stolen: true, .. })
            }
            ErrorCode::Stale => match call.what {
                What::Release { token } | What::Forget { token } => self.was_taken(token),
                _ => false,
            },
            ErrorCode::NotOwner => match call.what {
                // Whoever believed to hold it when it called must have lost it since.
                What::Wait { .. } | What::Notify { .. } | What::Mark => {
                    self.has_lost_some(key.0, call.object)
                }
                What::Release { token } => self.was_taken(token),
                What::Report => true,
                _ => false,
            },
            _ => false,
        };
        if may { Ok(()) } else { Err(format!("{call:?} is refused: {error:?}")) }
    }

    fn is_attached(&self, sid: Sid, object: usize) -> bool {
        self.sessions[sid.0].handles.values().any(|attached| *attached == object)
    }

    /// What a Query says must agree with what its own caller believes.
    fn state(&self, sid: Sid, call: &Call, state: &v1::State) -> Checked {
        let kind = self.objects[call.object].kind;
        let wrong = |why: &str| Err(format!("{call:?} of {kind:?} is told {state:?}: {why}"));
        match kind {
            Kind::Lock { .. } | Kind::RLock { .. } => {
                let held = self.held_by(sid, call.owner, call.object);
                let told = state.holders.first().map(|holder| holder.token);
                if held.is_some() && held != told {
                    return wrong("its caller holds it");
                }
            }
            Kind::Semaphore { permits, .. } if state.value > permits => {
                return wrong("so many there never were");
            }
            _ => {}
        }
        let waits = state.value > 0 && state.waiters > 0;
        if kind.is_semlock() && waits && !self.is_piecemeal {
            return wrong("somebody waits while a permit is free");
        }
        Ok(())
    }

    /// The event was set when the wait arrived, or later. Rule R51.
    fn event_was_set(&self, call: &Call) -> Checked {
        let Some((arrived, decided)) = call.arrived.zip(call.decided) else {
            return Err(format!("{call:?} is answered before it came"));
        };
        let toggles = &self.objects[call.object].toggles;
        let before = toggles.iter().rfind(|(when, _)| *when < arrived).is_some_and(|(_, set)| *set);
        let since = |(when, set): &(Moment, bool)| *set && *when > arrived && *when < decided.when;
        if before || toggles.iter().any(since) {
            return Ok(());
        }
        Err(format!("{call:?} is woken, and nobody set it: {toggles:?}"))
    }

    fn was_not_set_in_time(&self, call: &Call) -> bool {
        let (What::Await, Some(arrived)) = (call.what, call.arrived) else { return true };
        let end = arrived.at + call.timeout.unwrap_or(0);
        let toggles = &self.objects[call.object].toggles;
        let before = toggles.iter().rfind(|(when, _)| *when < arrived).is_some_and(|(_, set)| *set);
        !before && !toggles.iter().any(|(when, set)| *set && *when > arrived && when.at < end)
    }

    /// All is quiet: nobody waits for a set event, or at a full barrier. Rules R51, R52.
    pub(super) fn nobody_waits_in_vain(&self) -> Checked {
        let waits = |call: &&Call| {
            call.arrived.is_some() && call.decided.is_none() && call.given_up.is_none()
        };
        for (at, object) in self.objects.iter().enumerate() {
            let calls = self.calls.iter().filter(|((sid, _), call)| {
                call.object == at && self.sessions[sid.0].ended.is_none()
            });
            let waiting: Vec<&Call> = calls.map(|(_, call)| call).filter(waits).collect();
            match object.kind {
                Kind::Event => {
                    let set = object.toggles.last().is_some_and(|(_, set)| *set);
                    let last_set =
                        object.toggles.iter().rfind(|(_, set)| *set).map(|(when, _)| *when);
                    let missed = |call: &&&Call| {
                        call.what == What::Await && (set || call.arrived < last_set)
                    };
                    if let Some(call) = waiting.iter().find(missed) {
                        return Err(format!("{call:?} waits for an event that was set"));
                    }
                }
                Kind::Barrier { parties } if object.acting.is_empty() => {
                    let there = waiting.iter().filter(|call| call.what == What::Meet).count();
                    if there >= parties as usize {
                        return Err(format!("{there} wait at a barrier of {parties}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
