//! `status`, `ls`, `show` and `sessions`: one query of the daemon each.

use std::time::Duration;

use syncd_client::Inspector;
use syncd_proto::v1;
use tonic::Response;

use crate::{
    broker::reply,
    failure::Failure,
    text::{Ink, Screen, Table, count, plain, span},
    view::{Description, Holder, Object, Process, Quota, Session, Status},
};

/// `status`
pub async fn status(mut inspect: Inspector, screen: Screen) -> Result<(), Failure> {
    let status = Status::from(reply(inspect.status(v1::StatusRequest {})).await?);
    if screen.json {
        return Ok(screen.json(&status)?);
    }
    screen.line(format!(
        "{} {}, pid {}, up {}, {:.1} MiB, at {}",
        screen.paint(Ink::Bold, "syncd"),
        plain(&status.version),
        status.pid,
        seconds(status.uptime_s),
        status.memory_bytes as f64 / f64::from(1 << 20),
        plain(&status.endpoint),
    ))?;
    screen.line(format!(
        "{}, {}, {}, {}",
        count(status.sessions, "session"),
        count(status.objects, "object"),
        count(status.holds, "hold"),
        count(status.waiters, "waiter"),
    ))?;
    let c = &status.counters;
    screen.line(format!(
        "since the start: {}, {}, {}, {}, {}, {}, {}",
        count(c.requests, "request"),
        count(c.grants, "grant"),
        count(c.timeouts, "time-out"),
        count(c.notifies, "notify").replace("notifys", "notifies"),
        screen.paint(alarm(c.abandoned), format!("{} abandoned", c.abandoned)),
        screen.paint(alarm(c.sessions_lost), format!("{} lost", count(c.sessions_lost, "session"))),
        screen.paint(alarm(c.deadlocks), count(c.deadlocks, "deadlock")),
    ))?;
    match &status.journal {
        Some(journal) if journal.healthy => screen.line(format!(
            "journal in {}: {:.1} MiB, {} since the last snapshot",
            plain(&journal.directory),
            journal.bytes as f64 / f64::from(1 << 20),
            count(journal.records, "record"),
        ))?,
        Some(journal) => {
            let sick = format!(
                "journal in {} has a fault: {}",
                plain(&journal.directory),
                plain(&journal.error)
            );
            screen.line(screen.paint(Ink::Red, sick))?;
        }
        None => screen.line("no journal (--no-journal): all state is lost with the daemon")?,
    }
    if status.panics + status.log_lines_lost > 0 {
        let faults = format!(
            "{} (each ended a call, a session or a namespace), {} of the log lost",
            count(status.panics, "fault"),
            count(status.log_lines_lost, "line"),
        );
        screen.line(screen.paint(Ink::Red, faults))?;
    }
    for quota in status.quotas.iter().filter(|q| q.used >= q.limit / 5 * 4 && q.used > 0) {
        let Quota { field, used, limit } = quota;
        screen.line(screen.paint(Ink::Yellow, format!("{field}: {used} of {limit} are used")))?;
    }
    if status.namespaces.len() > 1 {
        let mut table = Table::new(&["NAMESPACE", ">SESSIONS", ">OBJECTS", ">HOLDS", ">WAITERS"]);
        for n in &status.namespaces {
            let numbers = [n.sessions, n.objects, n.holds, n.waiters];
            let [sessions, objects, holds, waiters] = numbers.map(|n| (Ink::Plain, n.to_string()));
            table.row([(Ink::Plain, plain(&n.namespace)), sessions, objects, holds, waiters]);
        }
        screen.line("")?;
        screen.table(&table)?;
    }
    Ok(())
}

/// `ls`
pub async fn ls(
    mut inspect: Inspector,
    screen: Screen,
    mut request: v1::ListRequest,
) -> Result<(), Failure> {
    let mut objects = Vec::new();
    loop {
        let page = reply(inspect.list(request.clone())).await?;
        objects.extend(page.objects.into_iter().map(Object::from));
        request.page = page.next;
        if request.page.is_empty() {
            break;
        }
    }
    if screen.json {
        return Ok(screen.json(&objects)?);
    }
    if objects.is_empty() {
        return Ok(screen.line("no objects")?);
    }
    let mut table = Table::new(&["NAME", "KIND", "STATE", ">WAITING", "HELD BY", ">FOR"]);
    for object in &objects {
        let (by, since) = match &object.holder {
            None => Default::default(),
            Some(first) => (
                match object.holders {
                    0 | 1 => who(&first.process),
                    n => format!("{} and {} more", who(&first.process), n - 1),
                },
                seconds(first.held_s),
            ),
        };
        let waiting = match object.waiters {
            0 => (Ink::Plain, String::new()),
            n => (Ink::Yellow, n.to_string()),
        };
        table.row([
            (Ink::Bold, name(object)),
            (Ink::Plain, object.kind.clone()),
            state(object),
            waiting,
            (Ink::Plain, by),
            (Ink::Plain, since),
        ]);
    }
    Ok(screen.table(&table)?)
}

/// `show`
pub async fn show(
    mut inspect: Inspector,
    screen: Screen,
    request: v1::DescribeRequest,
) -> Result<(), Failure> {
    let it = Description::from(reply(inspect.describe(request)).await?);
    if screen.json {
        return Ok(screen.json(&it)?);
    }
    let object = &it.object;
    let (ink, state) = state(object);
    let mut facts = vec![
        format!("#{}", object.id),
        count(object.references.into(), "reference"),
        format!("namespace {}", plain(&object.namespace)),
    ];
    facts.extend(it.lock.as_ref().map(|lock| format!("lock {}", plain(lock))));
    facts.extend(
        (it.unowned > 0).then(|| format!("{} unowned", count(it.unowned.into(), "permit"))),
    );
    facts.extend(object.keep.then(|| "kept".into()));
    facts.extend(object.poison.then(|| "poisons".into()));
    screen.line(format!(
        "{}  {}, {}",
        screen.paint(Ink::Bold, name(object)),
        object.kind,
        screen.paint(ink, state)
    ))?;
    screen.line(screen.paint(Ink::Dim, facts.join(", ")))?;
    screen.line(screen.paint(Ink::Dim, format!("key {}", plain(&object.key))))?;

    if !it.holders.is_empty() {
        screen.heading("Held by")?;
        screen.table(&holders(&it.holders))?;
    }
    if !it.waiters.is_empty() {
        screen.heading("Waiting, in order of arrival")?;
        let mut table =
            Table::new(&[">PID", "COMMAND", ">SESSION", ">OWNER", ">SINCE", "FOR", "AT MOST"]);
        for w in &it.waiters {
            let limit =
                w.timeout_in_s.map_or("for ever".into(), |s| format!("{} more", seconds(s)));
            let [pid, command, session] = process(&w.process);
            table.row([
                pid,
                command,
                session,
                (Ink::Dim, owner(w.owner)),
                (Ink::Yellow, seconds(w.waited_s)),
                (Ink::Plain, w.what.clone()),
                (Ink::Plain, limit),
            ]);
        }
        screen.table(&table)?;
    }
    for a in &it.abandonments {
        screen.line(screen.paint(
            Ink::Red,
            format!(
                "\nabandoned by {} ({}) {} ago, after {}; the next owner will be told",
                who(&a.process),
                a.cause,
                seconds(a.ago_s),
                seconds(a.held_s)
            ),
        ))?;
    }
    for cycle in &it.deadlocks {
        screen.line(screen.paint(Ink::Red, "\nDeadlock"))?;
        for (edge, next) in cycle.iter().zip(cycle.iter().cycle().skip(1)) {
            screen.line(format!(
                "  {} has waited {} for {}, held by {} for {}",
                who(&edge.process),
                seconds(edge.waited_s),
                plain(&edge.object),
                who(&next.process),
                seconds(edge.held_s)
            ))?;
        }
    }
    Ok(())
}

/// `sessions`
pub async fn sessions(
    mut inspect: Inspector,
    screen: Screen,
    namespace: String,
) -> Result<(), Failure> {
    let found = reply(async { inspect.all_sessions(&namespace).await.map(Response::new) }).await?;
    let sessions: Vec<_> = found.into_iter().map(Session::from).collect();
    if screen.json {
        return Ok(screen.json(&sessions)?);
    }
    if sessions.is_empty() {
        return Ok(screen.line("no sessions")?);
    }
    let mut table =
        Table::new(&[">SESSION", ">PID", "COMMAND", ">AGE", "STATE", "HOLDS", "WAITS FOR"]);
    for s in &sessions {
        let [pid, command, session] = process(&s.process);
        let state = match s.connected {
            true => (Ink::Green, "connected".into()),
            false => (Ink::Red, "in grace".into()),
        };
        table.row([
            session,
            pid,
            command,
            (Ink::Plain, seconds(s.age_s)),
            state,
            (Ink::Plain, names(&s.holding, s.holds)),
            (Ink::Yellow, names(&s.waiting, s.waits)),
        ]);
    }
    Ok(screen.table(&table)?)
}

/// A table of holders.
pub fn holders(list: &[Holder]) -> Table {
    let mut table =
        Table::new(&[">PID", "COMMAND", ">SESSION", ">OWNER", ">FOR", ">TOKEN", ">DEPTH"]);
    for h in list {
        let [pid, command, session] = process(&h.process);
        table.row([
            pid,
            command,
            session,
            (Ink::Dim, owner(h.owner)),
            (Ink::Plain, seconds(h.held_s)),
            (Ink::Dim, h.token.to_string()),
            (Ink::Plain, h.depth.to_string()),
        ]);
    }
    table
}

/// A process in running text.
pub fn who(p: &Process) -> String {
    match p.command.is_empty() {
        true => format!("pid {}", p.pid),
        false => format!("pid {} ({})", p.pid, plain(&p.command)),
    }
}

/// Seconds, as [`span`] prints them.
pub fn seconds(s: f64) -> String {
    span(Duration::try_from_secs_f64(s).unwrap_or_default())
}

fn process(p: &Process) -> [(Ink, String); 3] {
    [
        (Ink::Bold, p.pid.to_string()),
        (Ink::Plain, plain(&p.command)),
        (Ink::Dim, p.session.to_string()),
    ]
}

/// An owner's number: decimal if it is small, else hexadecimal.
fn owner(number: u64) -> String {
    match number {
        0..=0xffff => number.to_string(),
        _ => format!("{number:x}"),
    }
}

fn name(object: &Object) -> String {
    object.name.as_deref().map_or_else(|| format!("#{}", object.id), plain)
}

fn names(some: &[String], all: u32) -> String {
    let mut text = some.iter().map(|name| plain(name)).collect::<Vec<_>>().join(", ");
    let more = (all as usize).saturating_sub(some.len());
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

fn state(object: &Object) -> (Ink, String) {
    let (free, max) = (object.value, object.max);
    let (ink, text) = match (object.kind.as_str(), free) {
        ("Lock" | "RLock", 0) => (Ink::Cyan, "held".into()),
        ("Lock" | "RLock", _) => (Ink::Green, "free".into()),
        ("BoundedSemaphore", 0) => (Ink::Cyan, format!("0 of {max} free")),
        ("BoundedSemaphore", _) => (Ink::Green, format!("{free} of {max} free")),
        ("Semaphore", 0) => (Ink::Cyan, "0 free".into()),
        ("Semaphore", _) => (Ink::Green, format!("{free} free")),
        ("Event", 0) => (Ink::Plain, "clear".into()),
        ("Event", _) => (Ink::Green, "set".into()),
        ("Barrier", _) => (Ink::Plain, format!("{free} of {max} waiting")),
        _ => (Ink::Plain, String::new()),
    };
    match (object.broken, object.abandoned) {
        (true, _) if object.kind == "Barrier" => (Ink::Red, "broken".into()),
        (true, _) => (Ink::Red, format!("{text}, poisoned")),
        (_, true) => (Ink::Red, format!("{text}, abandoned")),
        _ => (ink, text),
    }
}

fn alarm(n: u64) -> Ink {
    if n > 0 { Ink::Red } else { Ink::Plain }
}
