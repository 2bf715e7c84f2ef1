//! The `Inspect` service: reads namespaces, and forces releases where the caller may.

mod watching;

use std::sync::Arc;

use syncd_core::{Cause, ListQuery, ObjectId, SessionId, Space, Time};
use syncd_proto::v1::{
    self, DescribeReply, DescribeRequest, ForceReleaseReply, ForceReleaseRequest, JournalStatus,
    KickReply, KickRequest, ListReply, ListRequest, NamespaceStatus, SessionsReply,
    SessionsRequest, StatusReply, StatusRequest, WatchRequest, inspect_server,
};
use tonic::{Request, Response, Status};

use crate::{
    broker::{Broker, NoNamespace, Over},
    connection::Connection,
    convert::{self, micros},
    journal::Store as _,
    limits, log,
    namespace::{Address, AddressError, Counters, Namespace},
    panic,
    registry::QuotaError,
};
use watching::{Watch, Watching};

/// The most objects in the reply to List, and sessions in the reply to Sessions; also the default.
const PAGE: u32 = 1000;
/// The most namespaces that are searched for one page.
const NAMESPACES: usize = 100;
/// The most namespaces in the reply to Status.
const MOST_NAMESPACES: usize = 1000;
/// The most sessions that are read under one lock.
const SESSIONS_AT_ONCE: usize = 32;
/// The page of Sessions ends once it has this many names of objects: the longest stay below
/// `MAX_REPLY`, with those of one more session.
const NAMES: usize = 4096;
/// The most ended holds in the reply to a ForceRelease.
const NAMED: usize = 1000;

pub(crate) struct InspectService(pub Arc<Broker>);

type Answer<T> = Result<Response<T>, Status>;

impl InspectService {
    fn address(&self, user: u32, text: &str) -> Result<Address, Status> {
        Address::resolve(text, user, &self.0.settings.shared).map_err(|error| match error {
            AddressError::Malformed => Status::invalid_argument(error.to_string()),
            AddressError::Denied(_) => Status::permission_denied(error.to_string()),
            AddressError::NotShared(_) => Status::not_found(error.to_string()),
        })
    }

    /// One namespace by name; `None` if it is the caller's default one and isn't in use.
    fn namespace(&self, user: u32, text: &str) -> Result<Option<Arc<Namespace>>, Status> {
        let address = self.address(user, text)?;
        match self.0.registry.namespaces.get(&address) {
            Some(found) => Ok(Some(found.clone())),
            None if text.is_empty() => Ok(None),
            None => Err(Status::not_found(format!("no namespace '{address}' is in use"))),
        }
    }

    /// The namespaces that `user` may see, sorted by address.
    fn visible(&self, user: u32) -> Vec<Arc<Namespace>> {
        let namespaces = self.0.registry.namespaces.iter();
        let mut visible: Vec<Arc<Namespace>> =
            namespaces.filter(|n| n.key().is_visible_to(user)).map(|n| n.clone()).collect();
        visible.sort_by(|a, b| a.address.cmp(&b.address));
        visible
    }

    /// The namespaces that a listing call covers: the one that it names, or all for root.
    fn listed(&self, user: u32, text: &str) -> Result<Vec<Arc<Namespace>>, Status> {
        if user == 0 && text.is_empty() {
            return Ok(self.visible(user));
        }
        Ok(self.namespace(user, text)?.into_iter().collect())
    }

    /// Where the page with the token `page` begins: the index in `namespaces`, and the last entry
    /// of the page before, if that ended within this namespace.
    fn begin<'a>(
        &self,
        user: u32,
        namespaces: &[Arc<Namespace>],
        page: &'a str,
    ) -> Result<(usize, Option<&'a str>), Status> {
        match page.split_once('\n') {
            Some((from, after)) => {
                let from = self.address(user, from)?;
                let begin = namespaces.partition_point(|n| n.address < from);
                let is_there = namespaces.get(begin).is_some_and(|n| n.address == from);
                Ok((begin, (is_there && !after.is_empty()).then_some(after)))
            }
            None if page.is_empty() => Ok((0, None)),
            None => Err(Status::invalid_argument("page: give the `next` of an earlier reply")),
        }
    }

    /// Calls `see` with the object that `text` names, under the namespace's lock.
    fn object<T>(
        &self,
        user: u32,
        namespace: &str,
        text: &str,
        see: impl FnOnce(&Namespace, &mut Space, ObjectId, Time) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let none = || Status::not_found(format!("no object '{text}': give a name, #id or key"));
        let namespace = self.namespace(user, namespace)?.ok_or_else(none)?;
        let entered = self.0.enter(&namespace, self.0.now(), None, |state, now| {
            let object = state.space.find(text).ok_or_else(none)?;
            see(&namespace, &mut state.space, object, now)
        });
        entered.unwrap_or_else(|Over| Err(none()))
    }

    /// Checks that `user` may make a forceful call: the namespace's owner, root, the daemon's user,
    /// or the user of all processes `concerned` (`None`: unknown).
    fn may_force(
        &self,
        user: u32,
        namespace: &Namespace,
        mut concerned: impl Iterator<Item = Option<u32>>,
    ) -> Result<(), Status> {
        let may = user == 0
            || namespace.address.owner == Some(user)
            || user == daemon_user()
            || concerned.all(|owner| owner == Some(user));
        may.then_some(()).ok_or_else(|| {
            Status::permission_denied(
                "this belongs to another user: only they, root and the daemon's user may do this",
            )
        })
    }
}

#[cfg(unix)]
fn daemon_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(windows)]
fn daemon_user() -> u32 {
    0
}

#[tonic::async_trait]
impl inspect_server::Inspect for InspectService {
    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusReply> {
        let user = Connection::of(&request)?.user.number;
        let mut reply = StatusReply {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            endpoint: self.0.settings.endpoint.clone(),
            uptime_us: micros(self.0.clock.uptime()),
            memory_bytes: resident_memory(),
            user_bytes: self.0.settings.limits.user_bytes() as u64,
            panics: panic::count(),
            log_lines_lost: log::dropped(),
            ..Default::default()
        };
        reply.quotas = limits::quotas(&self.0, user);
        reply.journal = self.0.settings.journal.as_ref().map(|directory| JournalStatus {
            directory: directory.path().display().to_string(),
            error: self.0.doubts.first().unwrap_or_default(),
            ..Default::default()
        });
        let mut counters = Counters::default();
        for retired in &self.0.registry.retired {
            if retired.key().is_none_or(|owner| user == 0 || owner == user) {
                counters.add(&retired);
            }
        }
        let visible = self.visible(user);
        reply.namespaces_omitted = visible.len().saturating_sub(MOST_NAMESPACES) as u64;
        for namespace in visible {
            let (totals, counted, kept) = {
                let state = namespace.lock();
                let kept = state.store.as_ref().map(|journal| journal.status());
                (state.space.totals(), state.counters, kept)
            };
            if let (Some(journal), Some(kept)) = (&mut reply.journal, kept) {
                journal.bytes += kept.bytes;
                journal.records += kept.records;
                journal.snapshot_bytes += kept.snapshot_bytes;
                journal.last_snapshot_us = journal.last_snapshot_us.max(kept.snapshot_at);
                if let Some(error) = kept.error.filter(|_| journal.error.is_empty()) {
                    journal.error = error;
                }
            }
            counters.add(&counted);
            let status = NamespaceStatus {
                namespace: namespace.address.to_string(),
                sessions: totals.sessions as u64,
                objects: totals.objects as u64,
                holds: totals.holds as u64,
                waiters: totals.waiters as u64,
                last_event: totals.last_number,
            };
            reply.sessions += status.sessions;
            reply.objects += status.objects;
            reply.holds += status.holds;
            reply.waiters += status.waiters;
            if reply.namespaces.len() < MOST_NAMESPACES {
                reply.namespaces.push(status);
            }
        }
        reply.counters = Some(v1::Counters {
            requests: counters.requests,
            grants: counters.grants,
            releases: counters.releases,
            timeouts: counters.timeouts,
            cancels: counters.cancels,
            notifies: counters.notifies,
            abandoned: counters.abandoned,
            sessions_lost: counters.sessions_lost,
            deadlocks: counters.deadlocks,
            events: counters.events,
        });
        Ok(Response::new(reply))
    }

    async fn list(&self, request: Request<ListRequest>) -> Answer<ListReply> {
        let user = Connection::of(&request)?.user.number;
        let asked = request.into_inner();
        let limit = if asked.limit == 0 { PAGE } else { asked.limit.min(PAGE) } as usize;
        let namespaces = self.listed(user, &asked.namespace)?;
        let (begin, mut after) = self.begin(user, &namespaces, &asked.page)?;
        let mut reply = ListReply::default();
        for (looked_into, namespace) in namespaces[begin..].iter().enumerate() {
            let shown = namespace.address.to_string();
            let limit = limit - reply.objects.len();
            if limit == 0 || looked_into == NAMESPACES {
                reply.next = format!("{shown}\n");
                break;
            }
            let query =
                ListQuery { prefix: &asked.prefix, busy: asked.busy, after: after.take(), limit };
            let (objects, next) = namespace.lock().space.list(self.0.now(), query);
            reply.objects.extend(objects.iter().map(|object| convert::object(&shown, object)));
            if let Some(next) = next {
                reply.next = format!("{shown}\n{next}");
                break;
            }
        }
        Ok(Response::new(reply))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Answer<DescribeReply> {
        let user = Connection::of(&request)?.user.number;
        let asked = request.into_inner();
        self.object(user, &asked.namespace, &asked.object, |namespace, space, object, now| {
            let detail = space.describe(now, object).expect("found under the same lock");
            Ok(Response::new(convert::describe(now, &namespace.address.to_string(), &detail)))
        })
    }

    async fn sessions(&self, request: Request<SessionsRequest>) -> Answer<SessionsReply> {
        let user = Connection::of(&request)?.user.number;
        let asked = request.into_inner();
        let limit = if asked.limit == 0 { PAGE } else { asked.limit.min(PAGE) } as usize;
        let namespaces = self.listed(user, &asked.namespace)?;
        let (begin, after) = self.begin(user, &namespaces, &asked.page)?;
        let mut after = match after.map(str::parse) {
            Some(Ok(after)) => Some(SessionId(after)),
            Some(Err(_)) => {
                return Err(Status::invalid_argument("page: give the `next` of an earlier reply"));
            }
            None => None,
        };
        let mut reply = SessionsReply::default();
        let mut names = 0;
        'page: for (looked_into, namespace) in namespaces[begin..].iter().enumerate() {
            let shown = namespace.address.to_string();
            loop {
                let limit = (limit - reply.sessions.len()).min(SESSIONS_AT_ONCE);
                if limit == 0 || names >= NAMES || looked_into == NAMESPACES {
                    let after = after.map(|id| id.0.to_string()).unwrap_or_default();
                    reply.next = format!("{shown}\n{after}");
                    break 'page;
                }
                let sessions = namespace.lock().space.sessions(self.0.now(), after, limit);
                names += sessions.iter().map(|s| s.holding.len() + s.waiting.len()).sum::<usize>();
                reply.sessions.extend(sessions.iter().map(|view| convert::session(&shown, view)));
                after = sessions.last().filter(|_| sessions.len() == limit).map(|last| last.id);
                if after.is_none() {
                    break;
                }
            }
        }
        Ok(Response::new(reply))
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Watch> {
        let user = Connection::of(&request)?.user.clone();
        let WatchRequest { namespace, prefix } = request.into_inner();
        if prefix.len() > syncd_core::MAX_NAME {
            return Err(Status::invalid_argument("prefix: longer than any name"));
        }
        let address = self.address(user.number, &namespace)?;
        let exhausted = |quota: QuotaError| Status::resource_exhausted(quota.to_string());
        let no_namespace = |why: NoNamespace| Status::resource_exhausted(why.to_string());
        let place = Watching::begin(user).map_err(exhausted)?;
        loop {
            if self.0.is_closing() {
                return Err(Status::unavailable("the daemon is shutting down"));
            }
            let namespace = self.0.namespace(&address).map_err(no_namespace)?;
            // Under the lock, so that the namespace isn't retired meanwhile.
            let begun = self
                .0
                .enter(&namespace, self.0.now(), None, |_, _| namespace.watches.watch(&prefix));
            let Ok(key) = begun else { continue };
            return Ok(Response::new(Watch::new(self.0.clone(), namespace, key, place)));
        }
    }

    async fn force_release(
        &self,
        request: Request<ForceReleaseRequest>,
    ) -> Answer<ForceReleaseReply> {
        let user = Connection::of(&request)?.user.number;
        let asked = request.into_inner();
        self.object(user, &asked.namespace, &asked.object, |namespace, space, object, now| {
            let detail = space.describe(now, object).expect("found under the same lock");
            // Holders beyond those listed may be of any user.
            let unnamed = (detail.object.holders as usize > detail.holders.len()).then_some(None);
            let named = detail.holders.iter().map(|holder| Some(holder.party.process.uid));
            self.may_force(user, namespace, named.chain(unnamed))?;
            let released = space.handle_force_release(now, object).expect("found above").first;
            let released = released.iter().take(NAMED).map(convert::holder).collect();
            Ok(Response::new(ForceReleaseReply { released }))
        })
    }

    async fn kick(&self, request: Request<KickRequest>) -> Answer<KickReply> {
        let user = Connection::of(&request)?.user.number;
        let KickRequest { namespace, session } = request.into_inner();
        let none = || Status::not_found(format!("no session {session} in this namespace"));
        let namespace = self.namespace(user, &namespace)?.ok_or_else(none)?;
        let entered = self.0.enter(&namespace, self.0.now(), None, |state, now| {
            let id = SessionId(session);
            let view = state.space.session(now, id).ok_or_else(none)?;
            self.may_force(user, &namespace, std::iter::once(Some(view.process.uid)))?;
            state.space.handle_lost(now, id, Cause::Kicked);
            Ok(Response::new(KickReply {
                process: Some(convert::process(id, &view.process)),
                holds: u32::try_from(view.holds).unwrap_or(u32::MAX),
            }))
        });
        entered.unwrap_or_else(|Over| Err(none()))
    }
}

/// This process's resident memory, in bytes; 0 where unknown.
fn resident_memory() -> u64 {
    #[cfg(target_os = "linux")]
    {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        resident.unwrap_or(0) * rustix::param::page_size() as u64
    }
    #[cfg(not(target_os = "linux"))]
    0
}
