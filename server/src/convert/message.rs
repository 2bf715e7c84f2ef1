//! Conversion of replies and pushes to the protocol.

use syncd_core::{
    Abandonment, Answer, Body, Cause, Class, Edge, Error, ErrorKind, Grant, Holder, Message, Party,
    Reply, Spec, State, Time,
};
use syncd_proto::v1::{self, ErrorCode, attached, server_message::Message as Wire};

use super::micros;

/// Converts a message; `now` is for durations such as "ago".
pub fn server_message(now: Time, message: Message) -> v1::ServerMessage {
    let (id, body) = match message.body {
        Body::Reply(id, reply) => (id.0, answer(now, reply)),
        Body::HoldLost { handle, owner, token, cause } => (
            0,
            Wire::HoldLost(v1::HoldLost {
                handle: handle.0,
                owner: owner.0,
                token: token.0,
                cause: self::cause(cause).into(),
            }),
        ),
        Body::SessionEnd(cause) => (
            0,
            Wire::SessionEnd(v1::SessionEnd {
                cause: self::cause(cause).into(),
                text: format!("the session is over: {}", cause_text(cause)),
                shutting_down: false,
            }),
        ),
    };
    v1::ServerMessage { seq: message.seq, id, message: Some(body) }
}

/// The push that announces the daemon's exit. It has no sequence number: the session's numbered
/// messages continue with the next daemon.
pub(crate) fn shutting_down() -> v1::ServerMessage {
    let end = v1::SessionEnd {
        cause: v1::Cause::Unspecified.into(),
        text: "the daemon is shutting down".into(),
        shutting_down: true,
    };
    v1::ServerMessage { seq: 0, id: 0, message: Some(Wire::SessionEnd(end)) }
}

/// The push that ends a session whose namespace failed.
pub(crate) fn failed(seq: u64) -> v1::ServerMessage {
    let end = v1::SessionEnd {
        cause: v1::Cause::Unspecified.into(),
        text: format!("the session is over: {}", crate::broker::FAILED),
        shutting_down: false,
    };
    v1::ServerMessage { seq, id: 0, message: Some(Wire::SessionEnd(end)) }
}

/// The field and the reason of a request that the journal has no room for. The core gets it as an
/// invalid request, the client as a quota.
pub(crate) const NOT_KEPT: (&str, &str) = (
    "journal",
    "it has no room, so nothing new can be granted: free space on its filesystem (syncctl status \
     shows its directory); releases go on",
);

fn answer(now: Time, reply: Reply) -> Wire {
    match reply {
        Ok(Answer::Done { count }) => Wire::Done(v1::Done { count }),
        Ok(Answer::Granted(grant)) => Wire::Granted(granted(now, grant)),
        Ok(Answer::Woken { notified, grant }) => {
            Wire::Woken(v1::Woken { notified, granted: Some(granted(now, grant)) })
        }
        Ok(Answer::Attached(attachment)) => Wire::Attached(v1::Attached {
            handle: attachment.handle.0,
            key: attachment.key.to_string(),
            created: attachment.created,
            name: attachment.name.as_deref().unwrap_or_default().to_owned(),
            spec: Some(spec(attachment.spec)),
        }),
        Ok(Answer::BarrierPassed { index, run_action }) => {
            Wire::BarrierPassed(v1::BarrierPassed { index, run_action })
        }
        Ok(Answer::State(State { value, waiters, broken, holders })) => Wire::State(v1::State {
            value,
            waiters,
            broken,
            holders: holders.iter().map(holder).collect(),
        }),
        Err(refused) => Wire::Error(Box::new(error(now, &refused))),
    }
}

fn granted(now: Time, grant: Grant) -> v1::Granted {
    v1::Granted {
        token: grant.token.0,
        depth: grant.depth,
        abandoned: grant.abandoned.map(|a| Box::new(abandonment(now, &a))),
    }
}

fn spec(spec: Spec) -> attached::Spec {
    match spec {
        Spec::SemLock { class, value, max } => {
            let class = match class {
                Class::Lock => v1::SemLockClass::Lock,
                Class::RLock => v1::SemLockClass::Rlock,
                Class::Semaphore => v1::SemLockClass::Semaphore,
                Class::BoundedSemaphore => v1::SemLockClass::BoundedSemaphore,
            };
            attached::Spec::SemLock(v1::SemLockSpec { class: class.into(), value, max })
        }
        Spec::Condition { lock } => attached::Spec::Condition(v1::ConditionSpec { lock: lock.0 }),
        Spec::Event => attached::Spec::Event(v1::EventSpec {}),
        Spec::Barrier { parties } => attached::Spec::Barrier(v1::BarrierSpec { parties }),
    }
}

pub fn error(now: Time, error: &Error) -> v1::Error {
    let code = match &error.kind {
        ErrorKind::Invalid { field, .. } if *field == NOT_KEPT.0 => ErrorCode::Quota,
        ErrorKind::Invalid { .. } => ErrorCode::InvalidArgument,
        ErrorKind::NotFound { .. } => ErrorCode::NotFound,
        ErrorKind::Exists => ErrorCode::Exists,
        ErrorKind::KindMismatch { .. } | ErrorKind::SpecMismatch { .. } => ErrorCode::KindMismatch,
        ErrorKind::NotOwner { .. } => ErrorCode::NotOwner,
        ErrorKind::OverReleased { .. } => ErrorCode::OverReleased,
        ErrorKind::Stale => ErrorCode::Stale,
        ErrorKind::TimedOut { .. } => ErrorCode::TimedOut,
        ErrorKind::Cancelled => ErrorCode::Cancelled,
        ErrorKind::Deadlock { .. } => ErrorCode::Deadlock,
        ErrorKind::Poisoned { .. } => ErrorCode::Poisoned,
        ErrorKind::BrokenBarrier => ErrorCode::BrokenBarrier,
        ErrorKind::Quota { .. } => ErrorCode::Quota,
        ErrorKind::SessionLost => ErrorCode::SessionLost,
    };
    let mut wire = v1::Error {
        code: code.into(),
        text: error.to_string(),
        object: error.object.as_ref().map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    };
    match &error.kind {
        ErrorKind::Invalid { field, .. } | ErrorKind::Quota { field, .. } => {
            wire.field = (*field).into();
        }
        ErrorKind::NotOwner { holder: Some(first) } => wire.holders = vec![holder(first)],
        ErrorKind::TimedOut { holders } => wire.holders = holders.iter().map(holder).collect(),
        ErrorKind::Deadlock { cycle } => {
            (wire.cycle, wire.cycle_omitted) = (edges(&cycle.edges), cycle.omitted);
        }
        ErrorKind::Poisoned { by } => wire.abandoned = Some(abandonment(now, by)),
        _ => {}
    }
    wire
}

pub(super) fn abandonment(now: Time, abandonment: &Abandonment) -> v1::Abandonment {
    v1::Abandonment {
        process: Some(process(&abandonment.by)),
        owner: abandonment.by.owner.0,
        held_us: micros(abandonment.held),
        ago_us: micros(now.since(abandonment.at)),
        cause: cause(abandonment.cause).into(),
        token: abandonment.token.0,
    }
}

pub(super) fn process(party: &Party) -> v1::Process {
    v1::Process {
        pid: party.process.pid,
        uid: party.process.uid,
        command: party.process.command.as_ref().into(),
        session: party.session.0,
    }
}

pub(crate) fn holder(holder: &Holder) -> v1::Holder {
    v1::Holder {
        process: Some(process(&holder.party)),
        owner: holder.party.owner.0,
        token: holder.token.0,
        held_us: micros(holder.held),
        depth: holder.depth,
    }
}

pub(super) fn edges(cycle: &[Edge]) -> Vec<v1::DeadlockEdge> {
    let edge = |edge: &Edge| v1::DeadlockEdge {
        process: Some(process(&edge.waiter)),
        owner: edge.waiter.owner.0,
        object: edge.object.to_string(),
        waited_us: micros(edge.waited),
        held_us: micros(edge.held),
    };
    cycle.iter().map(edge).collect()
}

pub(super) fn cause(cause: Cause) -> v1::Cause {
    match cause {
        Cause::Died => v1::Cause::Died,
        Cause::Disconnected => v1::Cause::Disconnected,
        Cause::Left => v1::Cause::Left,
        Cause::Kicked => v1::Cause::Kicked,
        Cause::Forced => v1::Cause::Forced,
        Cause::Misbehaved => v1::Cause::Misbehaved,
        // A release by another owner is no failure, so the protocol has no cause for it.
        Cause::Released => v1::Cause::Unspecified,
    }
}

/// Why a session ended, as text.
pub(crate) fn cause_text(cause: Cause) -> &'static str {
    match cause {
        Cause::Died => "its process died",
        Cause::Disconnected => "its connection ended and was not resumed",
        Cause::Kicked => "it was kicked",
        Cause::Misbehaved => "it read too slowly or broke the protocol",
        Cause::Left | Cause::Forced | Cause::Released => "it left",
    }
}
