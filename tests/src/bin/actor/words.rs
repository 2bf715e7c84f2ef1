//! The client's answers in the words of the scripts.

use syncd_client::{
    Abandonment, AcquireError, BarrierError, Cause, ConditionError, CreateError, Hold,
    ReleaseError, SessionError, WaitOutcome,
};

use super::pids;

pub fn granted(what: &str, hold: &Hold) -> String {
    let depth = if hold.depth() > 1 { format!(" depth {}", hold.depth()) } else { "".into() };
    let abandoned = hold.abandoned();
    let abandoned = abandoned.map_or("".into(), |left| format!(" abandoned {}", by(left)));
    format!("{what}{depth}{abandoned} @{}", hold.fencing_token())
}

fn by(left: &Abandonment) -> String {
    let cause = match left.cause {
        Cause::Died => "died",
        Cause::Disconnected => "disconnected",
        Cause::Left => "left",
        Cause::Kicked => "kicked",
        Cause::Forced => "forced",
        _ => "otherwise",
    };
    format!("by pid:{} {cause}", left.process.pid)
}

pub fn woken(outcome: WaitOutcome) -> &'static str {
    if outcome.timed_out() { "unnotified" } else { "notified" }
}

pub fn not_acquired(error: AcquireError) -> String {
    match error {
        AcquireError::TimedOut { held_by, .. } => {
            format!("timed out{}", pids(" held by", held_by.iter().map(|h| h.process.pid)))
        }
        AcquireError::Deadlock { cycle, .. } => {
            pids("deadlock", cycle.iter().map(|edge| edge.process.pid))
        }
        AcquireError::Poisoned { by: Some(left), .. } => format!("poisoned {}", by(&left)),
        AcquireError::Session(error) => failed(error),
        other => other.to_string(),
    }
}

pub fn not_released(error: ReleaseError) -> String {
    match error {
        ReleaseError::NotOwner(_) => "not owner".into(),
        ReleaseError::OverReleased(_) => "over-released".into(),
        ReleaseError::Stale(_) => "stale".into(),
        ReleaseError::Session(error) => failed(error),
        other => other.to_string(),
    }
}

pub fn not_met(error: BarrierError) -> String {
    match error {
        BarrierError::Broken(_) => "broken".into(),
        BarrierError::TimedOut(_) => "timed out".into(),
        BarrierError::Session(error) => failed(error),
        other => other.to_string(),
    }
}

pub fn not_waited(error: ConditionError) -> String {
    match error {
        ConditionError::NotOwner(_) => "not owner".into(),
        ConditionError::Session(error) => failed(error),
        other => other.to_string(),
    }
}

pub fn not_created(error: CreateError) -> String {
    match error {
        CreateError::KindMismatch(_) => "kind mismatch".into(),
        CreateError::Exists(_) => "exists".into(),
        CreateError::NotFound(_) => "not found".into(),
        CreateError::Session(error) => failed(error),
        other => other.to_string(),
    }
}

pub fn failed(error: SessionError) -> String {
    match error {
        SessionError::Lost(_) => "session lost".into(),
        other => other.to_string(),
    }
}
