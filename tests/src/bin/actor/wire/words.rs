//! The wire's answers in the words of the scripts.

use syncd_proto::v1::{Abandonment, Cause, Error, ErrorCode, Granted};

use crate::pids;

pub(super) fn granted(what: &str, grant: &Granted) -> String {
    let depth = if grant.depth > 1 { format!(" depth {}", grant.depth) } else { "".into() };
    let abandoned = grant.abandoned.as_ref();
    let abandoned = abandoned.map_or("".into(), |left| format!(" abandoned {}", by(left)));
    format!("{what}{depth}{abandoned} @{}", grant.token)
}

fn by(left: &Abandonment) -> String {
    let pid = left.process.as_ref().map_or(0, |process| process.pid);
    let cause = match left.cause() {
        Cause::Died => "died",
        Cause::Disconnected => "disconnected",
        Cause::Left => "left",
        Cause::Kicked => "kicked",
        Cause::Forced => "forced",
        _ => "otherwise",
    };
    format!("by pid:{pid} {cause}")
}

pub(super) fn refusal(error: &Error) -> String {
    let holders = error.holders.iter().filter_map(|holder| Some(holder.process.as_ref()?.pid));
    let cycle = error.cycle.iter().filter_map(|edge| Some(edge.process.as_ref()?.pid));
    match error.code() {
        ErrorCode::InvalidArgument => format!("invalid {}", error.field),
        ErrorCode::NotFound => "not found".into(),
        ErrorCode::Exists => "exists".into(),
        ErrorCode::KindMismatch => "kind mismatch".into(),
        ErrorCode::NotOwner => "not owner".into(),
        ErrorCode::OverReleased => "over-released".into(),
        ErrorCode::Stale => "stale".into(),
        ErrorCode::TimedOut => format!("timed out{}", pids(" held by", holders)),
        ErrorCode::Cancelled => "cancelled".into(),
        ErrorCode::Deadlock => pids("deadlock", cycle),
        ErrorCode::Poisoned => {
            format!("poisoned {}", error.abandoned.as_ref().map_or("".into(), by))
        }
        ErrorCode::BrokenBarrier => "broken".into(),
        ErrorCode::Quota => format!("quota {}", error.field),
        ErrorCode::SessionLost => "session lost".into(),
        other => format!("{}: {}", other.as_str_name(), error.text),
    }
}
