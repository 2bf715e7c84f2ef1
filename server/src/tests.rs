//! What can't be seen from outside: a panic in the core, references that are counted, a task that
//! begins again.

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
    // The other one goes on, time-outs included; the next of that name begins anew, above.
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
async fn a_session_that_ends_in_pieces_leaves_no_reference_counted() {
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
    // What it had asked for before it heard of that.
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
async fn a_clock_that_panicked_goes_on() {
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
