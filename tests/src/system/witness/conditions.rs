//! Conditions from outside: each notify that a notifier was told of wakes one waiter, in order,
//! or is lost with one that died or gave up, and then only if nobody could have inherited it.
//! Rules R45 to R50.

use super::{Call, Moment, Sid, What, Witness};
use crate::system::{Checked, plan::Kind};

/// A wait that came to the daemon.
struct Wait {
    arrived: Moment,
    timeout: Option<u64>,
    recalled: Option<Moment>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Notified(Moment),
    Unnotified,
    /// Without the lock, at that moment: nobody was there any more to be woken.
    Gone(Moment),
    /// The lock that it went back to was poisoned.
    Poisoned,
    /// It waits to this day.
    Waits,
    /// Nothing came of it, since it was refused.
    Refused,
}

impl Wait {
    /// It was certainly in the condition's queue until then, unless it was notified.
    fn waited_until(&self, moment: Moment) -> bool {
        let in_time = self.timeout.is_none_or(|timeout| self.arrived.at + timeout > moment.at);
        let recalled = self.recalled.is_some_and(|when| when < moment);
        let gone = matches!(self.fate, Fate::Gone(when) if when < moment);
        in_time && !recalled && !gone && self.fate != Fate::Refused && self.fate != Fate::Poisoned
    }
}

impl Witness {
    /// A waiter is told how its wait ended.
    pub(super) fn woken(&mut self, call: &Call, notified: bool) -> Checked {
        let Some((arrived, decided)) = call.arrived.zip(call.decided) else {
            return Err(format!("{call:?} is woken before it came"));
        };
        self.count.woken += 1;
        let waited = decided.when.at - arrived.at;
        if notified {
            self.count.notified += 1;
        } else if call.recalled.is_none() && call.timeout.is_none_or(|timeout| waited < timeout) {
            return Err(format!("{call:?} is woken without a notify, before its time"));
        }
        Ok(())
    }

    fn fate(&self, sid: Sid, call: &Call) -> Fate {
        let ended = self.sessions[sid.0].ended;
        match (call.decided, call.given_up) {
            (Some(_), Some(when)) if call.undone => Fate::Gone(when),
            (Some(decided), _) if decided.granted && decided.notified => {
                Fate::Notified(decided.when)
            }
            (Some(decided), _) if decided.granted => Fate::Unnotified,
            (Some(decided), _) if decided.poisoned => Fate::Poisoned,
            (Some(_), Some(when)) => Fate::Gone(when),
            // Its session gave up the object.
            (Some(decided), None) if call.detached => Fate::Gone(decided.when),
            (Some(_), None) => Fate::Refused,
            (None, _) => ended.map_or(Fate::Waits, Fate::Gone),
        }
    }

    /// The run is over: as many were woken as were notified.
    pub(super) fn notifies_add_up(&mut self) -> Checked {
        for at in 0..self.objects.len() {
            if matches!(self.objects[at].kind, Kind::Condition { .. }) {
                self.condition_adds_up(at)?;
            }
        }
        Ok(())
    }

    fn condition_adds_up(&mut self, object: usize) -> Checked {
        let (mut waits, mut notifies) = (Vec::new(), Vec::new());
        for ((sid, _), call) in self.calls.iter().filter(|(_, call)| call.object == object) {
            let Some(arrived) = call.arrived else { continue };
            match call.what {
                What::Wait { .. } => waits.push(Wait {
                    arrived,
                    timeout: call.timeout,
                    recalled: call.recalled,
                    fate: self.fate(*sid, call),
                }),
                What::Notify { .. } => {
                    if let Some(decided) = call.decided.filter(|decided| !decided.refused) {
                        notifies.push((arrived, decided.count));
                    }
                }
                _ => {}
            }
        }
        waits.sort_by_key(|wait| wait.arrived);
        notifies.sort();
        let made: usize = notifies.iter().map(|(_, count)| *count as usize).sum();
        let notified = |wait: &&Wait| matches!(wait.fate, Fate::Notified(_));
        let woken = waits.iter().filter(notified).count();
        if woken > made {
            return Err(format!("{made} notifies have woken {woken}"));
        }
        let poisoned = waits.iter().filter(|wait| wait.fate == Fate::Poisoned).count();
        let lost_with = |wait: &&Wait| match wait.fate {
            Fate::Gone(when) => lost_with_it(wait, when, &waits, &notifies),
            _ => false,
        };
        let lost = poisoned + waits.iter().filter(lost_with).count();
        if made - woken > lost {
            return Err(format!(
                "of {made} notifies {woken} woke somebody, and {lost} at most may be lost"
            ));
        }
        self.count.passed_on +=
            waits.iter().filter(|w| matches!(w.fate, Fate::Gone(_))).count() as u64;
        in_order(&waits)
    }
}

/// Whether a waiter that went away may have taken a notify with it: there was one since it came,
/// and nobody waited any more who had waited before that.
fn lost_with_it(wait: &Wait, gone: Moment, waits: &[Wait], notifies: &[(Moment, u32)]) -> bool {
    let mut since = notifies.iter().filter(|(when, _)| *when > wait.arrived && *when < gone);
    let Some((first, _)) = since.next() else { return false };
    let heir = |other: &&Wait| {
        let before = other.arrived < *first && other.arrived != wait.arrived;
        let unserved = matches!(other.fate, Fate::Unnotified | Fate::Waits);
        before && unserved && other.waited_until(gone)
    };
    !waits.iter().any(|other| heir(&other))
}

/// Who came first is woken first, and nobody who waited on was passed over.
fn in_order(waits: &[Wait]) -> Checked {
    let mut last = None;
    for (at, wait) in waits.iter().enumerate() {
        let Fate::Notified(when) = wait.fate else { continue };
        if last.is_some_and(|last| when < last) {
            return Err(format!("the wait of {:?} is woken before an older one", wait.arrived));
        }
        last = Some(when);
        let passed_over = |other: &&Wait| {
            matches!(other.fate, Fate::Unnotified | Fate::Waits) && other.waited_until(when)
        };
        if let Some(other) = waits[..at].iter().find(passed_over) {
            return Err(format!(
                "the wait of {:?} is notified, the older one of {:?} is not: {:?}",
                wait.arrived, other.arrived, other.fate
            ));
        }
    }
    Ok(())
}
