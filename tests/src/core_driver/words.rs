//! The core's answers in the words of the scripts.

use syncd_core::{Cause, ErrorKind, Grant, Holder, Party};

use crate::script::{Kind, Object};

/// Sessions' processes are numbered from here by their letters.
pub(super) const FIRST_PID: u32 = 1000;

fn letter(party: &Party) -> char {
    char::from((party.process.pid - FIRST_PID) as u8)
}

pub(super) fn lock_of<'a>(objects: &'a [Object], condition: &str) -> &'a String {
    let lock = objects.iter().find_map(|object| match &object.kind {
        Kind::Condition { lock } if object.name == condition => Some(lock),
        _ => None,
    });
    lock.expect("a declared Condition")
}

pub(super) fn granted(what: &str, grant: &Grant) -> String {
    let depth = if grant.depth > 1 { format!(" depth {}", grant.depth) } else { String::new() };
    let abandoned = grant.abandoned.as_ref();
    let abandoned = abandoned.map_or(String::new(), |by| format!(" abandoned {}", left(by)));
    format!("{what}{depth}{abandoned} @{}", grant.token.0)
}

fn left(abandonment: &syncd_core::Abandonment) -> String {
    format!("by {} {}", letter(&abandonment.by), cause(abandonment.cause))
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::Died => "died",
        Cause::Disconnected => "disconnected",
        Cause::Left => "left",
        Cause::Kicked => "kicked",
        Cause::Forced => "forced",
        Cause::Misbehaved => "misbehaved",
        Cause::Released => "released",
    }
}

pub(super) fn parties<'a>(before: &str, parties: impl Iterator<Item = &'a Party>) -> String {
    let letters: String = parties.map(|party| format!(" {}", letter(party))).collect();
    if letters.is_empty() { letters } else { format!("{before}{letters}") }
}

pub(super) fn refusal(kind: &ErrorKind) -> String {
    let held = |holders: &[Holder]| parties(" held by", holders.iter().map(|h| &h.party));
    match kind {
        ErrorKind::Invalid { field, .. } => format!("invalid {field}"),
        ErrorKind::NotFound { .. } => "not found".into(),
        ErrorKind::Exists => "exists".into(),
        ErrorKind::KindMismatch { .. } | ErrorKind::SpecMismatch { .. } => "kind mismatch".into(),
        ErrorKind::NotOwner { .. } => "not owner".into(),
        ErrorKind::OverReleased { .. } => "over-released".into(),
        ErrorKind::Stale => "stale".into(),
        ErrorKind::TimedOut { holders } => format!("timed out{}", held(holders)),
        ErrorKind::Cancelled => "cancelled".into(),
        ErrorKind::Deadlock { cycle } => parties("deadlock", cycle.edges.iter().map(|e| &e.waiter)),
        ErrorKind::Poisoned { by } => format!("poisoned {}", left(by)),
        ErrorKind::BrokenBarrier => "broken".into(),
        ErrorKind::Quota { field, .. } => format!("quota {field}"),
        ErrorKind::SessionLost => "session lost".into(),
    }
}
