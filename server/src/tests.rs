//! What can't be tested from outside: a panic in the core, counted references, a restarted task.

use syncd_proto::v1::{self, client_message::Request, server_message::Message};
use tokio::sync::oneshot;

use super::*;
use namespace::Address;
use support::{Session, acquire, channel, open, within};

#[tokio::test]
async fn a_panic_in_the_core_ends_its_namespace_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
    let server = Server::bind(Config::new(endpoint.clone())).unwrap();
    let broker = server.broker.clone();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async move { drop(stopped.await) }));

    let in_namespace = |name: &str| {
        let open = v1::Open { namespace: name.into(), ..open() };
        let endpoint = endpoint.clone();
        async move { Session::open(channel(endpoint).await, open).await.unwrap() }
    };
    let (mut doomed, mut other) = (in_namespace("a").await, in_namespace("b").await);
    let handle = doomed.lock("l").await;
    let Message::Granted(held) = doomed.ask(acquire(handle)).await else { panic!() };
    let handle = other.lock("l").await;
    other.ask(acquire(handle)).await;

    let address = Address::resolve("a", uid(), &[]).unwrap();
    let namespace = broker.registry.namespaces.get(&address).unwrap().clone();
    let entered = broker.enter(&namespace, broker.now(), None, |_, _| panic!("in a test"));
    assert!(entered.is_err());
    match doomed.next().await.message.unwrap() {
        Message::SessionEnd(end) => assert!(!end.shutting_down && !end.text.is_empty()),
        told => panic!("{told:?}"),
    }
    // The other namespace goes on, time-outs included; a new one at the same address has higher
    // tokens.
    let again = v1::Acquire { handle, owner: 1, timeout_us: Some(1), ..Default::default() };
    let Message::Error(_) = other.ask(Request::Acquire(again)).await else { panic!() };
    let mut next = in_namespace("a").await;
    let handle = next.lock("l").await;
    let Message::Granted(granted) = next.ask(acquire(handle)).await else { panic!() };
    assert!(granted.token > held.token);
    assert!(panic::count() > 0);
    drop(stop);
    within(running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_that_ends_in_several_steps_leaves_no_reference_counted() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
    let server = Server::bind(Config::new(endpoint.clone())).unwrap();
    let broker = server.broker.clone();
    let running = tokio::spawn(server.run(std::future::pending()));
    let mut session = Session::open(channel(endpoint).await, open()).await.unwrap();
    for n in 0..2000 {
        session.lock(&n.to_string()).await;
    }
    let known = broker.registry.sessions.iter().next().unwrap().clone();
    let (namespace, id) = (known.namespace.clone(), known.id);
    let enter = |change: &dyn Fn(&mut namespace::State, syncd_core::Time)| {
        broker.enter(&namespace, broker.now(), None, change).unwrap();
    };
    enter(&|state, now| {
        state.space.handle_lost(now, id, syncd_core::Cause::Kicked);
    });
    // As after a request that came before the client learnt of its end.
    enter(&|state, now| {
        assert!(state.space.session(now, id).is_some_and(|view| view.references > 0));
        state.count_references(&known, now);
    });
    within(async {
        while !broker.registry.namespaces.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(namespace.lock().references, 0);
    assert_eq!(broker.registry.user(uid(), &broker.settings.limits).memory.used(), 0);
    running.abort();
}

#[tokio::test]
async fn a_supervised_task_is_restarted_after_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
    let server = Server::bind(Config::new(endpoint)).unwrap();
    let (done, is_done) = oneshot::channel::<u32>();
    let done = std::sync::Mutex::new(Some(done));
    let turns = std::sync::atomic::AtomicU32::new(0);
    server.broker.supervise("a test's task", move || {
        let turn = turns.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let done = (turn == 2).then(|| done.lock().unwrap().take().unwrap());
        async move { done.expect("once more").send(turn).unwrap() }
    });
    assert_eq!(within(is_done).await.unwrap(), 2);
}

fn uid() -> u32 {
    #[cfg(unix)]
    return rustix::process::geteuid().as_raw();
    #[cfg(windows)]
    return 0;
}

/// A daemon, a session that holds a lock, and the lock's handle.
async fn who_holds_a_lock() -> (Arc<Broker>, Endpoint, Session, u32, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let endpoint: Endpoint = dir.path().join("s.sock").to_str().unwrap().parse().unwrap();
    let server = Server::bind(Config::new(endpoint.clone())).unwrap();
    let broker = server.broker.clone();
    tokio::spawn(server.run(std::future::pending()));
    let mut session = Session::open(channel(endpoint.clone()).await, open()).await.unwrap();
    let handle = session.lock("held").await;
    let Message::Granted(_) = session.ask(acquire(handle)).await else { panic!() };
    (broker, endpoint, session, handle, dir)
}

/// Makes requests that are refused for lack of room, `times` times.
async fn ask_for_more(session: &mut Session, times: u64, acknowledges: bool) {
    let (mut refused, mut seq) = (0, 0);
    for id in 10_000..10_000 + times {
        let spec = Some(v1::create::Spec::Event(v1::EventSpec {}));
        let create = v1::Create { name: id.to_string(), spec, ..Default::default() };
        let ack = if acknowledges { seq } else { 0 };
        let request = Some(Request::Create(create));
        session.requests.send(v1::ClientMessage { id, ack, request }).await.unwrap();
        let told = session.next().await;
        seq = told.seq;
        match told.message {
            Some(Message::Attached(_)) => {}
            Some(Message::Error(error)) if error.field == "journal" => refused += 1,
            told => panic!("{told:?}"),
        }
    }
    assert!(refused > 500, "{refused}");
}

#[tokio::test]
async fn a_full_disk_ends_nothing_though_nobody_acknowledges_what_he_is_refused() {
    let (broker, endpoint, mut session, handle, _dir) = who_holds_a_lock().await;
    let mut other = Session::open(channel(endpoint).await, open()).await.unwrap();
    broker.settings.journal.as_ref().unwrap().fill();
    ask_for_more(&mut other, 1500, false).await;
    support::release(&mut session, handle, 0).await;
}

#[tokio::test]
async fn a_full_disk_has_room_for_each_hold_to_be_abandoned() {
    let (broker, endpoint, mut session, handle, _dir) = who_holds_a_lock().await;
    let open = v1::Open { label: "x".repeat(255), ..open() };
    let mut leaving = Session::open(channel(endpoint).await, open).await.unwrap();
    for handle in 0..1000 {
        let spec = v1::SemLockSpec { class: v1::SemLockClass::Lock.into(), value: 1, max: 1 };
        let spec = Some(v1::create::Spec::SemLock(spec));
        leaving.send(Request::Create(v1::Create { spec, ..Default::default() })).await;
        leaving.send(acquire(handle)).await;
    }
    for _ in 0..2000 {
        let told = leaving.next().await.message.unwrap();
        assert!(matches!(told, Message::Attached(_) | Message::Granted(_)), "{told:?}");
    }
    broker.settings.journal.as_ref().unwrap().fill();
    leaving.ask(Request::Goodbye(v1::Goodbye {})).await;
    ask_for_more(&mut session, 2800, true).await;
    let release = v1::Release { handle, owner: 1, ..Default::default() };
    let request = Some(Request::Release(release));
    let release = v1::ClientMessage { id: 20_000, ack: 0, request };
    session.requests.send(release).await.unwrap();
    assert!(matches!(session.next().await.message, Some(Message::Done(_))));
}
