//! The `Inspect` service: looks into namespaces, and overrules them where the caller may. Never
//! here: what a view looks like on the wire (convert), or what a release means (the core).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use syncd_core::{Cause, ListQuery, ObjectId, Record, SessionId, Space, Time};
use syncd_proto::v1::{
    self, DescribeReply, DescribeRequest, ForceReleaseReply, ForceReleaseRequest, KickReply,
    KickRequest, ListReply, ListRequest, NamespaceStatus, SessionsReply, SessionsRequest,
    StatusReply, StatusRequest, WatchEvent, WatchRequest, inspect_server,
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::{
    broker::Broker,
    connection::Connection,
    convert::{self, micros},
    namespace::{Address, AddressError, Counters, Namespace},
};

/// How far a watcher may fall behind, in events.
const BACKLOG: usize = 65_536;
/// How many objects one List tells at most, and unless it asks for fewer.
const PAGE: u32 = 1000;
/// How many of the ended holds the reply to a ForceRelease names.
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

    /// One namespace by name; the caller's own may not have been used yet.
    fn namespace(&self, user: u32, text: &str) -> Result<Option<Arc<Namespace>>, Status> {
        let address = self.address(user, text)?;
        match self.0.namespaces.get(&address) {
            Some(found) => Ok(Some(found.clone())),
            None if text.is_empty() => Ok(None),
            None => Err(Status::not_found(format!("no namespace '{address}' is in use"))),
        }
    }

    /// All that `user` may see, in the order of their names.
    fn visible(&self, user: u32) -> Vec<Arc<Namespace>> {
        let namespaces = self.0.namespaces.iter();
        let mut visible: Vec<Arc<Namespace>> =
            namespaces.filter(|n| n.key().is_visible_to(user)).map(|n| n.clone()).collect();
        visible.sort_by(|a, b| a.address.cmp(&b.address));
        visible
    }

    /// What a call that lists is about: the namespace it names, or all for root.
    fn listed(&self, user: u32, text: &str) -> Result<Vec<Arc<Namespace>>, Status> {
        if user == 0 && text.is_empty() {
            return Ok(self.visible(user));
        }
        Ok(self.namespace(user, text)?.into_iter().collect())
    }

    /// Changes the object that `text` names, if it is there.
    fn object<T>(
        &self,
        user: u32,
        namespace: &str,
        text: &str,
        see: impl FnOnce(&Namespace, &mut Space, ObjectId, Time) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let none = || Status::not_found(format!("no object '{text}': give a name, #id or key"));
        let namespace = self.namespace(user, namespace)?.ok_or_else(none)?;
        let now = self.0.now();
        self.0.enter(&namespace, now, None, |state| {
            let object = state.space.find(text).ok_or_else(none)?;
            see(&namespace, &mut state.space, object, now)
        })
    }

    /// The forceful calls are for whom it concerns, for root, and for whoever runs the daemon.
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
                "another user's: only they, root and the daemon's own user may do this",
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
        let user = Connection::of(&request)?.user;
        let mut reply = StatusReply {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            endpoint: self.0.settings.endpoint.clone(),
            uptime_us: micros(self.0.started.elapsed()),
            memory_bytes: resident_memory(),
            ..Default::default()
        };
        let mut counters = Counters::default();
        for retired in &self.0.retired {
            if retired.key().is_none_or(|owner| user == 0 || owner == user) {
                counters.add(&retired);
            }
        }
        for namespace in self.visible(user) {
            let (totals, counted) = {
                let state = namespace.lock();
                (state.space.totals(), state.counters)
            };
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
            reply.namespaces.push(status);
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
        let user = Connection::of(&request)?.user;
        let asked = request.into_inner();
        let limit = if asked.limit == 0 { PAGE } else { asked.limit.min(PAGE) } as usize;
        let namespaces = self.listed(user, &asked.namespace)?;
        // A page is a namespace, and how far the last one went in it.
        let (begin, mut after) = match asked.page.split_once('\n') {
            Some((from, after)) => {
                let from = self.address(user, from)?;
                let begin = namespaces.partition_point(|n| n.address < from);
                let is_there = namespaces.get(begin).is_some_and(|n| n.address == from);
                (begin, (is_there && !after.is_empty()).then_some(after))
            }
            None if asked.page.is_empty() => (0, None),
            None => return Err(Status::invalid_argument("page: not one that List gave")),
        };
        let mut reply = ListReply::default();
        for namespace in &namespaces[begin..] {
            let shown = namespace.address.to_string();
            let limit = limit - reply.objects.len();
            if limit == 0 {
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
        let user = Connection::of(&request)?.user;
        let asked = request.into_inner();
        self.object(user, &asked.namespace, &asked.object, |namespace, space, object, now| {
            let detail = space.describe(now, object).expect("found under the same lock");
            Ok(Response::new(convert::describe(now, &namespace.address.to_string(), &detail)))
        })
    }

    async fn sessions(&self, request: Request<SessionsRequest>) -> Answer<SessionsReply> {
        let user = Connection::of(&request)?.user;
        let mut reply = SessionsReply::default();
        for namespace in self.listed(user, &request.get_ref().namespace)? {
            let shown = namespace.address.to_string();
            let sessions = namespace.lock().space.sessions(self.0.now(), None, usize::MAX);
            reply.sessions.extend(sessions.iter().map(|view| convert::session(&shown, view)));
        }
        Ok(Response::new(reply))
    }

    type WatchStream = Watch;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Watch> {
        let connection = Connection::of(&request)?;
        let user = connection.user;
        let WatchRequest { namespace, prefix } = request.into_inner();
        let address = self.address(user, &namespace)?;
        loop {
            let namespace = self
                .0
                .namespace(&address)
                .map_err(|quota| Status::resource_exhausted(quota.to_string()))?;
            let mut state = namespace.lock();
            if self.0.is_closing() {
                return Err(Status::unavailable("the daemon is shutting down"));
            }
            if !state.retired {
                let events = Some(state.watch(BACKLOG));
                drop(state);
                return Ok(Response::new(Watch {
                    broker: self.0.clone(),
                    connection,
                    namespace,
                    prefix,
                    events,
                }));
            }
        }
    }

    async fn force_release(
        &self,
        request: Request<ForceReleaseRequest>,
    ) -> Answer<ForceReleaseReply> {
        let user = Connection::of(&request)?.user;
        let asked = request.into_inner();
        self.object(user, &asked.namespace, &asked.object, |namespace, space, object, now| {
            let detail = space.describe(now, object).expect("found under the same lock");
            // Those that aren't named may be anybody's.
            let unnamed = detail.object.holders as usize > detail.holders.len();
            let holders = detail.holders.iter().map(|holder| Some(holder.party.process.uid));
            self.may_force(user, namespace, holders.chain(unnamed.then_some(None)))?;
            let released = space.handle_force_release(now, object).expect("found above").first;
            let released = released.iter().take(NAMED).map(convert::holder).collect();
            Ok(Response::new(ForceReleaseReply { released }))
        })
    }

    async fn kick(&self, request: Request<KickRequest>) -> Answer<KickReply> {
        let user = Connection::of(&request)?.user;
        let KickRequest { namespace, session } = request.into_inner();
        let none = || Status::not_found(format!("no session {session} in this namespace"));
        let namespace = self.namespace(user, &namespace)?.ok_or_else(none)?;
        let now = self.0.now();
        self.0.enter(&namespace, now, None, |state| {
            let id = SessionId(session);
            let view = state.space.session(now, id).ok_or_else(none)?;
            self.may_force(user, &namespace, std::iter::once(Some(view.process.uid)))?;
            state.space.handle_lost(now, id, Cause::Kicked);
            Ok(Response::new(KickReply {
                process: Some(convert::process(id, &view.process)),
                holds: u32::try_from(view.holds).unwrap_or(u32::MAX),
            }))
        })
    }
}

/// The events of a namespace as they happen.
pub(crate) struct Watch {
    broker: Arc<Broker>,
    connection: Arc<Connection>,
    namespace: Arc<Namespace>,
    prefix: String,
    /// `None`: the end has been told.
    events: Option<mpsc::Receiver<Arc<Record>>>,
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            let Some(event) = ready!(events.poll_recv(cx)) else {
                self.events = None;
                return Poll::Ready(Some(Err(if self.broker.is_closing() {
                    Status::unavailable("the daemon is shutting down")
                } else {
                    Status::data_loss(format!("more than {BACKLOG} events behind: watch again"))
                })));
            };
            let name = event.object.as_ref().and_then(|label| label.name.as_deref());
            if self.prefix.is_empty() || name.is_some_and(|name| name.starts_with(&self.prefix)) {
                let time = self.broker.wall_clock(event.at);
                return Poll::Ready(Some(Ok(convert::watch_event(&event, time))));
            }
        }
    }
}

impl Drop for Watch {
    /// The namespace may have been kept for this watch alone.
    fn drop(&mut self) {
        self.events = None;
        if self.broker.is_closing() {
            self.connection.drain();
        }
        self.broker.enter(&self.namespace, self.broker.now(), None, |_| ());
    }
}

/// In bytes; 0 where unknown.
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
