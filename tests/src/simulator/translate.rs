//! The core's messages in the model's words.

use syncd_core::{Abandonment, Answer, Body, ErrorKind, Grant, Message, ObjectId, Party};

use super::play::Player;
use crate::model::{Holder, Left, No, Said, Who, Word, cause_number};

impl Player<'_> {
    pub(super) fn who(&self, party: &Party) -> Result<Who, String> {
        Ok(Who { session: self.sid(party.session)?, owner: party.owner.0 })
    }

    pub(super) fn holder(&self, holder: &syncd_core::Holder) -> Result<Holder, String> {
        Ok(Holder {
            who: self.who(&holder.party)?,
            ticket: self.ticket(holder.token)?,
            held: holder.held.as_nanos() as u64,
            depth: holder.depth,
        })
    }

    pub(super) fn left(&self, left: &Abandonment) -> Result<Left, String> {
        Ok(Left {
            who: self.who(&left.by)?,
            ticket: self.ticket(left.token)?,
            held: left.held.as_nanos() as u64,
            at: left.at.0,
            cause: cause_number(left.cause),
        })
    }

    pub(super) fn said(&self, message: &Message) -> Result<Said, String> {
        Ok(match &message.body {
            Body::Reply(id, Ok(answer)) => Said::Reply(id.0, self.word(answer)?),
            Body::Reply(id, Err(error)) => {
                let object = error.object.as_ref().map(|label| self.oid(label.id)).transpose()?;
                Said::Reply(id.0, Word::Refused(object, no(self, &error.kind)?))
            }
            Body::HoldLost { owner, token, cause, .. } => {
                let (ticket, cause) = (self.ticket(*token)?, cause_number(*cause));
                Said::HoldLost { owner: owner.0, ticket, cause }
            }
            Body::SessionEnd(cause) => Said::End(cause_number(*cause)),
        })
    }

    fn word(&self, answer: &Answer) -> Result<Word, String> {
        let granted = |grant: &Grant, notified| {
            let left = grant.abandoned.as_deref().map(|left| self.left(left)).transpose()?;
            Ok(Word::Granted {
                ticket: self.ticket(grant.token)?,
                depth: grant.depth,
                left,
                notified,
            })
        };
        Ok(match answer {
            Answer::Done { count } => Word::Done(*count),
            Answer::Granted(grant) => return granted(grant, None),
            Answer::Woken { notified, grant } => return granted(grant, Some(*notified)),
            Answer::Attached(attachment) => {
                Word::Attached { object: self.oid_by_key(attachment)?, created: attachment.created }
            }
            Answer::BarrierPassed { index, run_action: acting } => {
                Word::Passed { index: *index, acting: *acting }
            }
            Answer::State(state) => Word::State {
                value: state.value,
                waiters: state.waiters,
                broken: state.broken,
                holders: state
                    .holders
                    .iter()
                    .map(|holder| self.holder(holder))
                    .collect::<Result<_, _>>()?,
            },
        })
    }

    fn oid_by_key(&self, attachment: &syncd_core::Attachment) -> Result<usize, String> {
        // The middle of a key is the object's id, also of one that is gone again.
        let key = attachment.key.to_string();
        let id = key.split('-').nth(1).and_then(|id| u64::from_str_radix(id, 16).ok());
        self.oid(ObjectId(id.ok_or("a key without an id")?))
    }
}

/// Why the core refuses, in the model's words.
fn no(player: &Player<'_>, kind: &ErrorKind) -> Result<No, String> {
    let holders = |holders: &[syncd_core::Holder]| {
        holders.iter().map(|holder| player.holder(holder)).collect::<Result<Vec<_>, _>>()
    };
    Ok(match kind {
        ErrorKind::Invalid { field, .. } => No::Invalid(field),
        ErrorKind::NotFound { .. } => No::NotFound,
        ErrorKind::Exists => No::Exists,
        ErrorKind::KindMismatch { .. } | ErrorKind::SpecMismatch { .. } => No::Mismatch,
        ErrorKind::NotOwner { holder } => {
            No::NotOwner(holder.as_ref().map(|holder| player.holder(holder)).transpose()?)
        }
        ErrorKind::OverReleased { .. } => No::OverReleased,
        ErrorKind::Stale => No::Stale,
        ErrorKind::TimedOut { holders: by } => No::TimedOut(holders(by)?),
        ErrorKind::Cancelled => No::Cancelled,
        ErrorKind::Deadlock { cycle } => {
            let edge = |edge: &syncd_core::Edge| {
                let nanos = |time: std::time::Duration| time.as_nanos() as u64;
                let object = player.oid(edge.object.id)?;
                Ok((player.who(&edge.waiter)?, object, nanos(edge.waited), nanos(edge.held)))
            };
            No::Deadlock(cycle.edges.iter().map(edge).collect::<Result<_, String>>()?)
        }
        ErrorKind::Poisoned { by } => No::Poisoned(player.left(by)?),
        ErrorKind::BrokenBarrier => No::Broken,
        ErrorKind::Quota { field, .. } => No::Quota(field),
        ErrorKind::SessionLost => return Err("a request is refused as of a lost session".into()),
    })
}
