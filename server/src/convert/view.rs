//! Conversion of the core's views and records to `inspect.proto`.

use syncd_core::{
    FencingToken, ObjectDetail, ObjectView, Record, RecordKind, SessionId, SessionView, Time,
    WaiterView,
};
use syncd_proto::v1;

use super::{
    message::{abandonment, cause, edges, holder, process as party},
    micros,
};

/// The most holders and waiters in a Describe reply, and object names in a session.
const DETAILS: usize = 1000;
const NAMES: usize = 100;

pub(crate) fn object(namespace: &str, view: &ObjectView) -> v1::Object {
    v1::Object {
        namespace: namespace.to_owned(),
        name: view.label.name.as_deref().unwrap_or_default().to_owned(),
        id: view.label.id.0,
        kind: view.kind.to_owned(),
        value: view.value,
        max: view.max,
        holders: view.holders,
        waiters: view.waiters,
        references: view.references,
        keep: view.keep,
        poison: view.poison,
        abandoned: !view.abandonments.is_empty() || (view.poison && view.broken),
        broken: view.broken,
        holder: view.holder.as_ref().map(holder),
        key: view.key.to_string(),
    }
}

pub(crate) fn describe(now: Time, namespace: &str, detail: &ObjectDetail) -> v1::DescribeReply {
    let abandonments = &detail.object.abandonments;
    v1::DescribeReply {
        object: Some(object(namespace, &detail.object)),
        holders: detail.holders.iter().take(DETAILS).map(holder).collect(),
        waiters: detail.waiters.iter().take(DETAILS).map(waiter).collect(),
        abandonments: abandonments.iter().map(|a| abandonment(now, a)).collect(),
        unowned: detail.object.unowned,
        lock: detail.lock.as_ref().map(ToString::to_string).unwrap_or_default(),
        deadlocks: detail
            .deadlock
            .iter()
            .map(|cycle| v1::Deadlock { cycle: edges(&cycle.edges), omitted: cycle.omitted })
            .collect(),
    }
}

fn waiter(view: &WaiterView) -> v1::Waiter {
    v1::Waiter {
        process: Some(party(&view.party)),
        owner: view.party.owner.0,
        waited_us: micros(view.waited),
        timeout_in_us: view.timeout_in.map(micros),
        what: view.what.to_owned(),
    }
}

pub(crate) fn process(session: SessionId, process: &syncd_core::Process) -> v1::Process {
    v1::Process {
        pid: process.pid,
        uid: process.uid,
        command: process.command.as_ref().into(),
        session: session.0,
    }
}

pub(crate) fn session(namespace: &str, view: &SessionView) -> v1::Session {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let names = |labels: &[syncd_core::Label]| -> Vec<String> {
        labels.iter().take(NAMES).map(ToString::to_string).collect()
    };
    v1::Session {
        namespace: namespace.to_owned(),
        id: view.id.0,
        process: Some(process(view.id, &view.process)),
        age_us: micros(view.age),
        connected: view.connected,
        holds: count(view.holds),
        waits: count(view.waits),
        references: count(view.references),
        holding: names(&view.holding),
        waiting: names(&view.waiting),
    }
}

/// Converts a record. `time_us`: its wall-clock time.
pub(crate) fn watch_event(event: &Record, time_us: u64) -> v1::WatchEvent {
    let mut wire = v1::WatchEvent {
        number: event.number,
        time_us,
        kind: event.kind.as_str().to_owned(),
        object: event.object.as_ref().map(ToString::to_string).unwrap_or_default(),
        object_id: event.object.as_ref().map(|label| label.id.0).unwrap_or_default(),
        process: event.party.as_ref().map(party),
        owner: event.party.as_ref().map(|party| party.owner.0).unwrap_or_default(),
        ..Default::default()
    };
    match &event.kind {
        RecordKind::Granted { token: FencingToken(token), .. }
        | RecordKind::Released { token: Some(FencingToken(token)), .. } => wire.token = *token,
        RecordKind::Abandoned { token, cause: why } => {
            wire.token = token.0;
            wire.set_cause(cause(*why));
        }
        RecordKind::SessionLost { cause: why } => wire.set_cause(cause(*why)),
        RecordKind::Deadlock { cycle } => {
            (wire.cycle, wire.cycle_omitted) = (edges(&cycle.edges), cycle.omitted);
        }
        _ => {}
    }
    wire
}
