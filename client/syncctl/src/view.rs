//! The types that `--json` prints: the protocol's messages with durations in seconds (the names
//! have the units) and null for what is absent. The field names are stable.

mod journal;

use std::time::Duration;

use serde::Serialize;
use syncd_proto::v1;

pub use journal::Journal;

/// A client process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Process {
    pub pid: u32,
    pub uid: u32,
    pub command: String,
    pub session: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    #[serde(flatten)]
    pub process: Process,
    pub owner: u64,
    pub token: u64,
    pub held_s: f64,
    pub depth: u32,
}

#[derive(Clone, Debug, Serialize)]
pub struct Waiter {
    #[serde(flatten)]
    pub process: Process,
    pub owner: u64,
    pub waited_s: f64,
    /// `null`: waits for ever.
    pub timeout_in_s: Option<f64>,
    pub what: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Abandonment {
    #[serde(flatten)]
    pub process: Process,
    pub owner: u64,
    pub token: u64,
    pub held_s: f64,
    pub ago_s: f64,
    pub cause: &'static str,
}

#[derive(Clone, Debug, Serialize)]
pub struct Edge {
    #[serde(flatten)]
    pub process: Process,
    pub owner: u64,
    pub object: String,
    pub waited_s: f64,
    pub held_s: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Object {
    pub namespace: String,
    /// `null`: anonymous.
    pub name: Option<String>,
    pub id: u64,
    pub kind: String,
    pub value: u32,
    pub max: u32,
    pub holders: u32,
    pub waiters: u32,
    pub references: u32,
    pub keep: bool,
    pub poison: bool,
    pub abandoned: bool,
    pub broken: bool,
    pub holder: Option<Holder>,
    pub key: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Description {
    pub object: Object,
    pub holders: Vec<Holder>,
    pub waiters: Vec<Waiter>,
    pub abandonments: Vec<Abandonment>,
    pub unowned: u32,
    /// A condition's lock.
    pub lock: Option<String>,
    pub deadlocks: Vec<Vec<Edge>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Session {
    pub namespace: String,
    #[serde(flatten)]
    pub process: Process,
    pub age_s: f64,
    pub connected: bool,
    pub holds: u32,
    pub waits: u32,
    pub references: u32,
    pub holding: Vec<String>,
    pub waiting: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub endpoint: String,
    pub uptime_s: f64,
    pub memory_bytes: u64,
    /// The memory that one user can make the daemon use, at most.
    pub user_bytes: u64,
    pub panics: u64,
    pub log_lines_lost: u64,
    /// `null`: the daemon has no journal.
    pub journal: Option<Journal>,
    pub quotas: Vec<Quota>,
    pub sessions: u64,
    pub objects: u64,
    pub holds: u64,
    pub waiters: u64,
    pub counters: Counters,
    pub namespaces: Vec<Namespace>,
}

/// A quota of the calling user.
#[derive(Clone, Debug, Serialize)]
pub struct Quota {
    pub field: String,
    pub used: u64,
    pub limit: u64,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Counters {
    pub requests: u64,
    pub grants: u64,
    pub releases: u64,
    pub timeouts: u64,
    pub cancels: u64,
    pub notifies: u64,
    pub abandoned: u64,
    pub sessions_lost: u64,
    pub deadlocks: u64,
    pub events: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Namespace {
    pub namespace: String,
    pub sessions: u64,
    pub objects: u64,
    pub holds: u64,
    pub waiters: u64,
    pub last_event: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct WatchEvent {
    pub number: u64,
    /// Since the Unix epoch, by the daemon's clock.
    pub time_us: u64,
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cycle: Vec<Edge>,
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

fn known<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

fn all<A, B: From<A>>(list: Vec<A>) -> Vec<B> {
    list.into_iter().map(B::from).collect()
}

/// A cause as one word; None if it is unspecified.
pub fn cause(cause: v1::Cause) -> Option<&'static str> {
    Some(match cause {
        v1::Cause::Unspecified => return None,
        v1::Cause::Died => "died",
        v1::Cause::Disconnected => "disconnected",
        v1::Cause::Left => "left",
        v1::Cause::Kicked => "kicked",
        v1::Cause::Forced => "forced",
        v1::Cause::Misbehaved => "misbehaved",
    })
}

impl From<v1::Process> for Process {
    fn from(v1::Process { pid, uid, command, session }: v1::Process) -> Self {
        Self { pid, uid, command, session }
    }
}

impl From<Option<v1::Process>> for Process {
    fn from(process: Option<v1::Process>) -> Self {
        process.unwrap_or_default().into()
    }
}

impl From<v1::Holder> for Holder {
    fn from(h: v1::Holder) -> Self {
        Self {
            process: h.process.into(),
            owner: h.owner,
            token: h.token,
            held_s: seconds(h.held_us),
            depth: h.depth,
        }
    }
}

impl From<v1::Waiter> for Waiter {
    fn from(w: v1::Waiter) -> Self {
        Self {
            process: w.process.into(),
            owner: w.owner,
            waited_s: seconds(w.waited_us),
            timeout_in_s: w.timeout_in_us.map(seconds),
            what: w.what,
        }
    }
}

impl From<v1::Abandonment> for Abandonment {
    fn from(a: v1::Abandonment) -> Self {
        Self {
            cause: cause(a.cause()).unwrap_or("unknown"),
            process: a.process.into(),
            owner: a.owner,
            token: a.token,
            held_s: seconds(a.held_us),
            ago_s: seconds(a.ago_us),
        }
    }
}

impl From<v1::DeadlockEdge> for Edge {
    fn from(e: v1::DeadlockEdge) -> Self {
        Self {
            process: e.process.into(),
            owner: e.owner,
            object: e.object,
            waited_s: seconds(e.waited_us),
            held_s: seconds(e.held_us),
        }
    }
}

impl From<v1::Object> for Object {
    fn from(o: v1::Object) -> Self {
        Self {
            namespace: o.namespace,
            name: known(o.name),
            id: o.id,
            kind: o.kind,
            value: o.value,
            max: o.max,
            holders: o.holders,
            waiters: o.waiters,
            references: o.references,
            keep: o.keep,
            poison: o.poison,
            abandoned: o.abandoned,
            broken: o.broken,
            holder: o.holder.map(Holder::from),
            key: o.key,
        }
    }
}

impl From<v1::DescribeReply> for Description {
    fn from(d: v1::DescribeReply) -> Self {
        Self {
            object: d.object.unwrap_or_default().into(),
            holders: all(d.holders),
            waiters: all(d.waiters),
            abandonments: all(d.abandonments),
            unowned: d.unowned,
            lock: known(d.lock),
            deadlocks: d.deadlocks.into_iter().map(|d| all(d.cycle)).collect(),
        }
    }
}

impl From<v1::Session> for Session {
    fn from(s: v1::Session) -> Self {
        Self {
            namespace: s.namespace,
            process: Process { session: s.id, ..s.process.into() },
            age_s: seconds(s.age_us),
            connected: s.connected,
            holds: s.holds,
            waits: s.waits,
            references: s.references,
            holding: s.holding,
            waiting: s.waiting,
        }
    }
}

impl From<v1::StatusReply> for Status {
    fn from(s: v1::StatusReply) -> Self {
        let c = s.counters.unwrap_or_default();
        Self {
            version: s.version,
            pid: s.pid,
            endpoint: s.endpoint,
            uptime_s: seconds(s.uptime_us),
            memory_bytes: s.memory_bytes,
            user_bytes: s.user_bytes,
            panics: s.panics,
            log_lines_lost: s.log_lines_lost,
            journal: s.journal.map(Journal::from),
            quotas: all(s.quotas),
            sessions: s.sessions,
            objects: s.objects,
            holds: s.holds,
            waiters: s.waiters,
            counters: Counters {
                requests: c.requests,
                grants: c.grants,
                releases: c.releases,
                timeouts: c.timeouts,
                cancels: c.cancels,
                notifies: c.notifies,
                abandoned: c.abandoned,
                sessions_lost: c.sessions_lost,
                deadlocks: c.deadlocks,
                events: c.events,
            },
            namespaces: all(s.namespaces),
        }
    }
}

impl From<v1::Quota> for Quota {
    fn from(q: v1::Quota) -> Self {
        Self { field: q.field, used: q.used, limit: q.limit }
    }
}

impl From<v1::NamespaceStatus> for Namespace {
    fn from(n: v1::NamespaceStatus) -> Self {
        Self {
            namespace: n.namespace,
            sessions: n.sessions,
            objects: n.objects,
            holds: n.holds,
            waiters: n.waiters,
            last_event: n.last_event,
        }
    }
}

impl From<v1::WatchEvent> for WatchEvent {
    fn from(e: v1::WatchEvent) -> Self {
        Self {
            cause: cause(e.cause()),
            number: e.number,
            time_us: e.time_us,
            kind: e.kind,
            object: match (e.object.is_empty(), e.object_id) {
                (true, 0) => None,
                (true, id) => Some(format!("#{id}")),
                (false, _) => Some(e.object),
            },
            process: e.process.map(Process::from),
            owner: known(e.owner),
            token: known(e.token),
            cycle: all(e.cycle),
        }
    }
}
