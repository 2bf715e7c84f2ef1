//! The Inspect service, health and reflection, as any gRPC program sees them.

mod support;

use support::{Daemon, Session, acquire, open, within};
use syncd_proto::v1::{self, Cause, client_message::Request, server_message::Message};
use tonic::Code;

#[tokio::test]
async fn holders_and_waiters_are_shown() {
    let daemon = Daemon::start();
    let labelled = v1::Open { label: "nightly\u{7} backup".into(), ..open() };
    let mut holder = Session::open(daemon.channel().await, labelled).await.unwrap();
    let handle = holder.lock("jobs/a").await;
    let Message::Granted(granted) = holder.ask(acquire(handle)).await else { panic!() };
    let mut waiter = daemon.session().await;
    let theirs = waiter.lock("jobs/a").await;
    waiter.send(acquire(theirs)).await;
    waiter.lock("other").await;

    let mut inspect = daemon.inspect().await;
    let list = v1::ListRequest { prefix: "jobs/".into(), busy: true, ..Default::default() };
    let list = inspect.list(list).await.unwrap().into_inner();
    assert_eq!(list.objects.len(), 1);
    let object = &list.objects[0];
    assert_eq!((&*object.name, &*object.kind), ("jobs/a", "Lock"));
    assert_eq!((object.holders, object.waiters, object.references), (1, 1, 2));

    let describe = v1::DescribeRequest { object: format!("#{}", object.id), ..Default::default() };
    let described = inspect.describe(describe).await.unwrap().into_inner();
    let process = described.holders[0].process.as_ref().unwrap();
    assert_eq!(process.pid, std::process::id());
    assert_eq!(process.command, r"nightly\u{7} backup");
    assert_eq!(described.holders[0].token, granted.token);
    assert_eq!(described.waiters[0].what, "acquire");

    let sessions = inspect.sessions(v1::SessionsRequest::default()).await.unwrap().into_inner();
    let sessions: Vec<_> =
        sessions.sessions.iter().map(|s| (s.id, s.holds, s.waits, s.connected)).collect();
    let ids = (holder.opened.session, waiter.opened.session);
    assert_eq!(sessions, [(ids.0, 1, 0, true), (ids.1, 0, 1, true)]);

    let status = inspect.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.endpoint, daemon.endpoint.to_string());
    assert_eq!((status.sessions, status.objects, status.holds, status.waiters), (2, 2, 1, 1));
    let counters = status.counters.unwrap();
    assert_eq!((counters.requests, counters.grants), (5, 1));
}

#[tokio::test]
async fn a_list_continues_after_its_page() {
    let daemon = Daemon::start();
    let mut session = daemon.session().await;
    for name in ["c", "a", "", "b", ""] {
        session.lock(name).await;
    }
    let mut inspect = daemon.inspect().await;
    let (mut names, mut page) = (Vec::new(), String::new());
    loop {
        let request = v1::ListRequest { limit: 2, page, ..Default::default() };
        let reply = inspect.list(request).await.unwrap().into_inner();
        names.extend(reply.objects.into_iter().map(|object| object.name));
        page = reply.next;
        if page.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["a", "b", "c", "", ""]);
}

// Rules R40, R66
#[tokio::test]
async fn a_hundred_thousand_holds_are_released_by_force_while_others_go_on() {
    const HOLDS: usize = 100_000;
    let daemon = Daemon::start();
    let (mut holder, mut other) = (daemon.session().await, daemon.session().await);
    let max = HOLDS as u32;
    let spec = v1::SemLockSpec { class: v1::SemLockClass::Semaphore.into(), value: max, max };
    let spec = Some(v1::create::Spec::SemLock(spec));
    let create = Request::Create(v1::Create { name: "many".into(), spec, ..Default::default() });
    let Message::Attached(many) = holder.ask(create.clone()).await else { panic!() };
    let Message::Attached(there) = other.ask(create).await else { panic!() };
    let lock = other.lock("lock").await;
    let mut held = std::collections::BTreeSet::new();
    for _ in 0..HOLDS / 1000 {
        for _ in 0..1000 {
            holder.send(acquire(many.handle)).await;
        }
        for _ in 0..1000 {
            let Some(Message::Granted(granted)) = holder.next().await.message else { panic!() };
            held.insert(granted.token);
        }
    }
    let mut inspect = daemon.inspect().await;
    let force = v1::ForceReleaseRequest { object: "many".into(), ..Default::default() };
    inspect.force_release(force).await.unwrap();
    // During it, or after it.
    let Message::Granted(_) = other.ask(acquire(lock)).await else { panic!() };
    for _ in 0..HOLDS {
        let Some(Message::HoldLost(lost)) = holder.next().await.message else { panic!() };
        assert!(held.remove(&lost.token), "told of once");
    }
    let Message::Granted(granted) = other.ask(acquire(there.handle)).await else { panic!() };
    assert_eq!(granted.abandoned.unwrap().cause(), v1::Cause::Forced);
}

#[tokio::test]
async fn a_release_by_force_is_reported_to_holders_and_the_next_owner() {
    let daemon = Daemon::start();
    let mut holder = daemon.session().await;
    let handle = holder.lock("a").await;
    holder.ask(acquire(handle)).await;
    let mut waiter = daemon.session().await;
    let theirs = waiter.lock("a").await;
    let waiting = waiter.send(acquire(theirs)).await;
    waiter.ask(Request::Query(v1::Query { handle: theirs })).await;

    let mut inspect = daemon.inspect().await;
    let force = v1::ForceReleaseRequest { object: "a".into(), ..Default::default() };
    let released = inspect.force_release(force).await.unwrap().into_inner().released;
    assert_eq!(released[0].process.as_ref().unwrap().session, holder.opened.session);
    let Message::HoldLost(lost) = holder.next().await.message.unwrap() else { panic!() };
    assert_eq!((lost.handle, lost.cause()), (handle, Cause::Forced));
    let granted = waiter.next().await;
    assert_eq!(granted.id, waiting);

    let kick = v1::KickRequest { session: waiter.opened.session, ..Default::default() };
    assert_eq!(inspect.kick(kick.clone()).await.unwrap().into_inner().holds, 1);
    let Message::SessionEnd(end) = waiter.next().await.message.unwrap() else { panic!() };
    assert_eq!(end.cause(), Cause::Kicked);
    assert!(within(waiter.replies.message()).await.unwrap().is_none());
    assert_eq!(inspect.kick(kick).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_watch_sees_what_happens_in_order() {
    let daemon = Daemon::start();
    let mut inspect = daemon.inspect().await;
    let mut all = inspect.watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let mine = v1::WatchRequest { prefix: "mine".into(), ..Default::default() };
    let mut mine = inspect.watch(mine).await.unwrap().into_inner();
    let mut session = daemon.session().await;
    session.lock("other").await;
    let handle = session.lock("mine").await;
    let Message::Granted(granted) = session.ask(acquire(handle)).await else { panic!() };
    let next = async |events: &mut tonic::Streaming<v1::WatchEvent>| {
        within(events.message()).await.unwrap().unwrap()
    };
    let mut last = 0;
    for kind in ["session_opened", "created", "created", "granted"] {
        let event = next(&mut all).await;
        assert_eq!(event.kind, kind);
        assert!(event.number > last && event.time_us > 0);
        last = event.number;
    }
    assert_eq!(last, granted.token);
    assert_eq!(next(&mut mine).await.kind, "created");
    assert_eq!(next(&mut mine).await.token, granted.token);
}

#[tokio::test]
async fn unknown_objects_are_not_found() {
    let daemon = Daemon::start();
    let mut inspect = daemon.inspect().await;
    let list = v1::ListRequest { namespace: "never used".into(), ..Default::default() };
    assert_eq!(inspect.list(list).await.unwrap_err().code(), Code::NotFound);
    assert!(inspect.list(v1::ListRequest::default()).await.unwrap().get_ref().objects.is_empty());
    let list = v1::ListRequest { namespace: "x".repeat(300), ..Default::default() };
    assert_eq!(inspect.list(list).await.unwrap_err().code(), Code::InvalidArgument);
    let describe = v1::DescribeRequest { object: "a".into(), ..Default::default() };
    assert_eq!(inspect.describe(describe).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let daemon = Daemon::start();
    let channel = daemon.channel().await;
    for service in ["", "syncd.v1.Broker", "syncd.v1.Inspect"] {
        let request = HealthCheckRequest { service: service.into() };
        let reply = HealthClient::new(channel.clone()).check(request).await.unwrap();
        assert_eq!(reply.into_inner().status, 1, "SERVING");
    }
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(channel);
    let reply = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let reply = within(reply.into_inner().message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = reply.message_response else {
        panic!("{reply:?}")
    };
    let names: Vec<&str> = list.service.iter().map(|service| &*service.name).collect();
    for service in ["syncd.v1.Broker", "syncd.v1.Inspect", "grpc.health.v1.Health"] {
        assert!(names.contains(&service), "{names:?}");
    }
}

#[tokio::test]
async fn sessions_are_listed_page_by_page() {
    let daemon = Daemon::start();
    let channel = daemon.channel().await;
    let mut open_sessions = Vec::new();
    for _ in 0..5 {
        let opened = support::Session::open(channel.clone(), support::open()).await.unwrap();
        open_sessions.push(opened);
    }
    let mut inspect = daemon.inspect().await;
    let mut request = v1::SessionsRequest { limit: 2, ..Default::default() };
    let mut seen = Vec::new();
    loop {
        let page = inspect.sessions(request.clone()).await.unwrap().into_inner();
        assert!(page.sessions.len() <= 2);
        seen.extend(page.sessions.iter().map(|session| session.id));
        if page.next.is_empty() {
            break;
        }
        request.page = page.next;
    }
    let opened: Vec<u64> = open_sessions.iter().map(|session| session.opened.session).collect();
    assert_eq!(seen, opened);
    let wrong = v1::SessionsRequest { page: "nonsense".into(), ..Default::default() };
    assert_eq!(inspect.sessions(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn sessions_with_long_names_fit_their_pages() {
    let daemon = Daemon::start();
    let channel = daemon.channel().await;
    let mut sessions = Vec::new();
    for _ in 0..170 {
        let mut session = Session::open(channel.clone(), open()).await.unwrap();
        for n in 0..100 {
            let class = v1::SemLockClass::Semaphore.into();
            let spec = v1::SemLockSpec { class, value: 1000, max: 1000 };
            let name = format!("{n:0>255}");
            let spec = Some(v1::create::Spec::SemLock(spec));
            session.send(Request::Create(v1::Create { name, spec, ..Default::default() })).await;
        }
        for _ in 0..100 {
            let Some(Message::Attached(attached)) = session.next().await.message else { panic!() };
            session.send(acquire(attached.handle)).await;
        }
        for _ in 0..100 {
            let Some(Message::Granted(_)) = session.next().await.message else { panic!() };
        }
        sessions.push(session);
    }
    let mut inspect = daemon.inspect().await;
    let (mut asked, mut told) = (v1::SessionsRequest::default(), Vec::new());
    loop {
        let page = inspect.sessions(asked.clone()).await.unwrap().into_inner();
        told.extend(page.sessions.into_iter().map(|session| session.id));
        if page.next.is_empty() {
            break;
        }
        asked.page = page.next;
    }
    told.dedup();
    assert_eq!(told.len(), 170);
}
