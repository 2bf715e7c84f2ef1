//! Sessions whose connection breaks, whose daemon exits, or that somebody ends.

mod support;

use std::{sync::mpsc, time::Duration};

use support::{Daemon, Link, WATCHDOG, within};
use syncd_client::{
    Cause, Client, ConnectError, Inspector,
    proto::v1::{KickRequest, StatusRequest},
};

async fn kick(daemon: &Daemon, session: u64) {
    let mut inspector = Inspector::connect(&daemon.endpoint, false).await.unwrap();
    inspector.kick(KickRequest { namespace: String::new(), session }).await.unwrap();
}

#[tokio::test]
async fn a_broken_connection_loses_nothing() {
    let daemon = Daemon::start();
    let link = Link::to(&daemon);
    let (client, other) = (link.client().await, daemon.client().await);
    let id = client.session_id().await.unwrap();
    let lock = client.lock("l").await.unwrap();
    let guard = lock.acquire().await.unwrap();
    link.cut();
    let second = within(client.lock("m")).await.unwrap();
    assert!(guard.is_valid());
    assert_eq!(client.session_id().await.unwrap(), id);
    assert!(other.lock("l").await.unwrap().try_acquire().await.unwrap().is_none());

    let theirs = other.lock("m").await.unwrap().acquire().await.unwrap();
    let waiter = tokio::spawn(async move { second.acquire().await.unwrap() });
    tokio::task::yield_now().await;
    link.cut();
    drop(theirs);
    assert!(within(waiter).await.unwrap().is_valid());
}

#[tokio::test]
async fn releases_and_withdrawals_made_while_disconnected_take_effect() {
    let daemon = Daemon::start();
    let link = Link::to(&daemon);
    let (client, other) = (link.client().await, daemon.client().await);
    let lock = client.lock("l").await.unwrap();
    let guard = lock.acquire().await.unwrap();
    let theirs = other.lock("m").await.unwrap();
    let held = theirs.acquire().await.unwrap();
    let mine = client.lock("m").await.unwrap();
    let waiter = tokio::spawn(async move { drop(mine.acquire().await) });
    tokio::task::yield_now().await;
    link.close(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Releases one and withdraws the other while there is no connection.
    drop(guard);
    waiter.abort();
    assert!(waiter.await.unwrap_err().is_cancelled());
    link.close(false);
    within(other.lock("l").await.unwrap().acquire()).await.unwrap().release().await.unwrap();
    drop(held);
    within(theirs.acquire()).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn many_requests_survive_many_cuts_in_order() {
    let daemon = Daemon::start();
    let link = Link::to(&daemon);
    let client = link.client().await;
    let sem = client.semaphore("s", 1).await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let sem = sem.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    drop(sem.acquire().await.unwrap());
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let cutting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(3)).await;
            link.cut();
        }
    };
    let work = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::select! {
        () = cutting => unreachable!(),
        () = within(work) => {}
    }
    assert_eq!(within(sem.value()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_kicked_session_is_told_and_its_guards_are_void() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let lock = client.lock("l").await.unwrap();
    let guard = lock.acquire().await.unwrap();
    let id = client.session_id().await.unwrap();
    let told = {
        let client = client.clone();
        tokio::spawn(async move { client.lost().await.unwrap() })
    };
    tokio::task::yield_now().await;
    kick(&daemon, id).await;
    assert_eq!(within(told).await.unwrap().cause(), Cause::Kicked);
    assert!(!guard.is_valid());
    // The next call opens another session, which the old guard can't affect.
    let next = within(lock.acquire()).await.unwrap();
    assert_eq!(next.abandoned().unwrap().cause, Cause::Kicked);
    assert_ne!(client.session_id().await.unwrap(), id);
    drop(guard);
    assert!(next.is_valid());
}

#[tokio::test]
async fn a_wait_ends_with_the_session() {
    let daemon = Daemon::start();
    let (client, other) = (daemon.client().await, daemon.client().await);
    let held = other.lock("l").await.unwrap().acquire().await.unwrap();
    let lock = client.lock("l").await.unwrap();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move { lock.acquire().await.map(drop).unwrap_err() })
        })
        .collect();
    tokio::task::yield_now().await;
    kick(&daemon, client.session_id().await.unwrap()).await;
    for waiter in waiters {
        let error = within(waiter).await.unwrap();
        assert!(error.to_string().contains("lost"), "{error}");
    }
    drop(held);
}

#[tokio::test]
async fn a_hold_taken_by_force_is_no_longer_valid() {
    use syncd_client::proto::v1::ForceReleaseRequest;

    let daemon = Daemon::start();
    let (client, other) = (daemon.client().await, daemon.client().await);
    let guard = client.lock("l").await.unwrap().acquire().await.unwrap();
    let mut inspector = Inspector::connect(&daemon.endpoint, false).await.unwrap();
    let request = ForceReleaseRequest { namespace: String::new(), object: "l".into() };
    let reply = inspector.force_release(request).await.unwrap().into_inner();
    assert_eq!(reply.released.len(), 1);
    let next = within(other.lock("l").await.unwrap().acquire()).await.unwrap();
    assert_eq!(next.abandoned().unwrap().cause, Cause::Forced);
    let gone = async {
        while guard.is_valid() {
            tokio::task::yield_now().await;
        }
    };
    within(gone).await;
    drop(guard);
    assert!(next.is_valid());
}

#[tokio::test]
async fn after_a_restart_of_the_daemon_calls_go_on_and_guards_are_valid() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = support::endpoint_in(dir.path(), "syncd.sock");
    let mut daemon = Daemon::at(&endpoint);
    let client = daemon.client().await;
    let (lock, event) = (client.lock("l").await.unwrap(), client.event("e").await.unwrap());
    let guard = lock.acquire().await.unwrap();
    daemon.stop();
    let daemon = Daemon::at(&endpoint);
    within(event.set()).await.unwrap();
    assert!(guard.is_valid());
    let theirs = daemon.client().await.lock("l").await.unwrap();
    assert!(theirs.try_acquire().await.unwrap().is_none());
    drop(guard);
    assert!(within(theirs.acquire()).await.unwrap().is_valid());
}

#[tokio::test]
async fn a_restart_without_a_journal_voids_guards_and_calls_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = support::endpoint_in(dir.path(), "syncd.sock");
    let mut daemon = Daemon::keeping(&endpoint, syncd::Journaling::Off);
    let client = daemon.client().await;
    let (lock, event) = (client.lock("l").await.unwrap(), client.event("e").await.unwrap());
    let guard = lock.acquire().await.unwrap();
    daemon.stop();
    let daemon = Daemon::keeping(&endpoint, syncd::Journaling::Off);
    within(event.set()).await.unwrap();
    let next = within(lock.acquire()).await.unwrap();
    assert!(next.is_valid() && !guard.is_valid());
    drop(guard);
    assert!(daemon.client().await.lock("l").await.unwrap().try_acquire().await.unwrap().is_none());
}

#[tokio::test]
async fn without_a_daemon_a_client_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = support::endpoint_in(dir.path(), "nobody.sock");
    let error = Client::builder().endpoint(endpoint.clone()).auto_start(false).connect().await;
    assert!(matches!(error, Err(ConnectError::NoDaemon { .. })));
    let error = Inspector::connect(&endpoint, false).await.unwrap_err();
    assert!(error.to_string().contains("nobody.sock"), "{error}");
}

#[tokio::test]
async fn an_inspector_sees_what_clients_do() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let _guard = client.lock("l").await.unwrap().acquire().await.unwrap();
    let mut inspector = Inspector::connect(&daemon.endpoint, false).await.unwrap();
    let status = inspector.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.sessions, status.holds), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn async_clients_that_are_dropped_leave_no_session() {
    let daemon = Daemon::start();
    let mut inspector = Inspector::connect(&daemon.endpoint, false).await.unwrap();
    let clients: Vec<_> = (0..60)
        .map(|_| {
            let builder = daemon.builder();
            tokio::spawn(async move {
                let client = builder.connect().await.unwrap();
                let event = client.event("never").await.unwrap();
                // Several tasks wait at once, and give up.
                let waits = (0..3).map(|_| {
                    let event = event.clone();
                    tokio::spawn(async move { event.wait_timeout(Duration::from_millis(20)).await })
                });
                let waits: Vec<_> = waits.collect();
                tokio::time::sleep(Duration::from_millis(5)).await;
                waits.into_iter().for_each(|wait| wait.abort());
            })
        })
        .collect();
    for client in clients {
        within(client).await.unwrap();
    }
    let all_gone = async {
        while inspector.status(StatusRequest {}).await.unwrap().into_inner().sessions > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(all_gone).await;
}

/// The guard is suspended when the wait's request is sent, not before.
#[tokio::test]
async fn a_condition_wait_dropped_before_it_was_sent_changes_nothing() {
    let daemon = Daemon::start();
    let link = Link::to(&daemon);
    let (client, other) = (link.client().await, daemon.client().await);
    let (lock, theirs) = (client.lock("l").await.unwrap(), other.lock("l").await.unwrap());
    let condition = client.condition("c", &lock).await.unwrap();
    let items = client.semaphore("items", 0).await.unwrap();
    let mut guard = lock.acquire().await.unwrap();
    link.close(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Fills the queue while there is no connection: the next call waits for room.
    let mut crowd = Vec::new();
    for _ in 0..2000 {
        let items = items.clone();
        crowd.push(tokio::spawn(async move { items.release().await }));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let waited = tokio::time::timeout(Duration::from_millis(20), condition.wait(&mut guard)).await;
    assert!(waited.is_err());
    link.close(false);
    for release in crowd {
        within(release).await.unwrap().unwrap();
    }
    assert!(guard.is_valid());
    assert!(theirs.try_acquire().await.unwrap().is_none());
    drop(guard);
    drop(within(theirs.acquire()).await.unwrap());
    assert_eq!(items.value().await.unwrap(), 2000);
}

#[test]
fn on_lost_is_called_when_an_idle_session_is_lost() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let (told, news) = mpsc::channel();
    client.on_lost(move |why| told.send(why).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(kick(&daemon, client.session_id().unwrap()));
    assert_eq!(news.recv_timeout(WATCHDOG).unwrap().cause(), Cause::Kicked);

    let (told, news) = mpsc::channel();
    client.on_lost(move |why| told.send(why).unwrap()).unwrap();
    client.close();
    assert!(news.recv_timeout(WATCHDOG).is_err(), "a session that was closed isn't lost");
}

#[tokio::test]
async fn a_refusal_has_the_daemons_reason() {
    let daemon = Daemon::start();
    let builder = || daemon.builder().namespace("shared/nothing");
    let by_task = within(builder().connect()).await.unwrap_err();
    let by_thread = builder();
    let by_thread = tokio::task::spawn_blocking(|| by_thread.connect_blocking().unwrap_err());
    for error in [by_task, by_thread.await.unwrap()] {
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("'shared/nothing' isn't shared"), "{error}");
    }
}
