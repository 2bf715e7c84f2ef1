//! Waiting: futures that are dropped or kept unpolled, many at once, and threads that share a
//! client.

mod support;

use std::{
    future::Future,
    os::unix::thread::JoinHandleExt as _,
    pin::pin,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    task::{Context, Poll, Waker},
    time::Duration,
};

use support::{Daemon, WATCHDOG, within};
use syncd_client::{
    AcquireError, Client, SessionError, WaitOutcome,
    proto::v1::{EventSpec, SemLockClass, SemLockSpec, create::Spec},
    raw::{self, Object},
};

/// Polls once, with a waker that does nothing.
fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_dropped_acquire_leaves_the_queue() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let (a, b) = (a.lock("l").await.unwrap(), b.lock("l").await.unwrap());
    let held = a.acquire().await.unwrap();
    {
        let mut waiting = pin!(b.acquire());
        assert!(poll_once(waiting.as_mut()).is_pending());
    }
    drop(held);
    drop(within(a.acquire()).await.unwrap());
}

#[tokio::test]
async fn a_grant_that_nobody_collected_goes_back() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let other = b.event("e").await.unwrap();
    let (lock, theirs) = (a.lock("l").await.unwrap(), b.lock("l").await.unwrap());
    let held = lock.acquire().await.unwrap();
    {
        let mut waiting = pin!(theirs.acquire());
        assert!(poll_once(waiting.as_mut()).is_pending());
        drop(held);
        // Other calls of that client read the grant, which nobody collects.
        for _ in 0..20 {
            within(other.set()).await.unwrap();
            tokio::task::yield_now().await;
        }
    }
    let next = within(lock.acquire()).await.unwrap();
    assert!(next.abandoned().is_none());
}

#[tokio::test]
async fn a_grant_that_was_acknowledged_long_ago_goes_back_too() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let other = b.event("e").await.unwrap();
    let (lock, theirs) = (a.rlock("l").await.unwrap(), b.rlock("l").await.unwrap());
    let held = lock.acquire().await.unwrap();
    {
        let mut waiting = pin!(theirs.acquire());
        assert!(poll_once(waiting.as_mut()).is_pending());
        drop(held);
        for _ in 0..2000 {
            other.set().await.unwrap();
        }
    }
    drop(within(lock.acquire()).await.unwrap());
}

#[tokio::test]
async fn a_future_that_is_kept_and_not_polled_starves_nobody() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let _held = b.lock("taken").await.unwrap().acquire().await.unwrap();
    let (taken, free) = (a.lock("taken").await.unwrap(), a.lock("free").await.unwrap());
    let mut kept = pin!(taken.acquire());
    assert!(poll_once(kept.as_mut()).is_pending());
    // From another task, and from this one.
    let other = free.clone();
    drop(within(tokio::spawn(async move { other.acquire().await.unwrap() })).await.unwrap());
    within(free.acquire()).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn futures_of_one_task_share_its_wake_ups() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let event = client.event("e").await.unwrap();
    let (first, second, third) = (event.wait(), event.wait(), event.wait());
    let set = async {
        tokio::task::yield_now().await;
        event.set().await.unwrap()
    };
    let all = async { tokio::join!(first, second, third, set) };
    let (a, b, c, woken) = within(all).await;
    a.and(b).and(c).unwrap();
    assert_eq!(woken, 3);
}

#[tokio::test]
async fn a_dropped_condition_wait_gives_up_the_lock() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let (lock, other) = (a.lock("l").await.unwrap(), b.lock("l").await.unwrap());
    let condition = a.condition("c", &lock).await.unwrap();
    let mut guard = lock.acquire().await.unwrap();
    {
        let mut waiting = pin!(condition.wait(&mut guard));
        assert!(poll_once(waiting.as_mut()).is_pending());
    }
    assert!(!guard.is_valid());
    let theirs = within(other.acquire()).await.unwrap();
    drop(guard);
    assert!(theirs.is_valid());
    assert!(lock.try_acquire().await.unwrap().is_none());
}

#[tokio::test]
async fn a_withdrawn_party_is_not_counted_by_a_barrier() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let barrier = client.barrier("b", 2).await.unwrap();
    {
        let mut waiting = pin!(barrier.wait_with(None, || unreachable!("it has gone")));
        assert!(poll_once(waiting.as_mut()).is_pending());
    }
    assert_eq!(barrier.state().await.unwrap().waiting, 0);
    let (a, b) = within(async { tokio::join!(barrier.wait(), barrier.wait()) }).await;
    assert_eq!(a.unwrap().index() + b.unwrap().index(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_cancels_leaves_the_session_as_it_was() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let lock = b.lock("l").await.unwrap();
    let held = a.lock("l").await.unwrap().acquire().await.unwrap();
    let stormers: Vec<_> = (0..10)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move {
                for round in 0..500_u64 {
                    let limit = Duration::from_micros(round % 7 * 30);
                    let _ = tokio::time::timeout(limit, lock.acquire()).await;
                }
            })
        })
        .collect();
    for stormer in stormers {
        within(stormer).await.unwrap();
    }
    drop(held);
    within(lock.acquire()).await.unwrap().release().await.unwrap();
    let status = a.lock("l").await.unwrap().locked_by().await.unwrap();
    assert!(status.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_of_one_client_take_turns() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let lock = client.lock("l").await.unwrap();
    static INSIDE: AtomicU32 = AtomicU32::new(0);
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let lock = lock.clone();
            tokio::spawn(async move {
                for _ in 0..40 {
                    let guard = lock.acquire().await.unwrap();
                    assert_eq!(INSIDE.fetch_add(1, SeqCst), 0);
                    tokio::task::yield_now().await;
                    INSIDE.fetch_sub(1, SeqCst);
                    drop(guard);
                }
            })
        })
        .collect();
    for task in tasks {
        within(task).await.unwrap();
    }
}

#[test]
fn threads_of_one_client_take_turns() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let lock = client.lock("l").unwrap();
    let condition = client.condition("c", &lock).unwrap();
    let (inside, turns) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for me in 0..4 {
            let (lock, condition, inside, turns) = (&lock, &condition, &inside, &turns);
            scope.spawn(move || {
                for _ in 0..100 {
                    let mut guard = lock.acquire().unwrap();
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    inside.fetch_sub(1, SeqCst);
                    condition.wait_while(&mut guard, || turns.load(SeqCst) % 4 != me).unwrap();
                    turns.fetch_add(1, SeqCst);
                    condition.notify_all(&guard).unwrap();
                }
            });
        }
    });
    assert_eq!(turns.into_inner(), 400);
}

#[test]
fn a_check_of_a_guard_takes_no_wake_up_away() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let (mine, theirs) = (client.lock("mine").unwrap(), client.lock("theirs").unwrap());
    let other = daemon.blocking().lock("theirs").unwrap();
    let (waits, over) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let guard = mine.acquire().unwrap();
            while over.load(SeqCst) == 0 {
                assert!(guard.is_valid());
            }
        });
        scope.spawn(|| {
            for round in 1..=300 {
                let held = other.acquire().unwrap();
                waits.store(round, SeqCst);
                std::thread::yield_now();
                drop(held);
            }
        });
        while waits.load(SeqCst) < 300 {
            drop(theirs.acquire().unwrap());
        }
        over.store(1, SeqCst);
    });
}

#[test]
fn a_predicate_may_use_the_blocking_client_itself() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let lock = client.lock("l").unwrap();
    let (condition, event) = (client.condition("c", &lock).unwrap(), client.event("e").unwrap());
    let mut guard = lock.acquire_owned().unwrap();
    let timeout = Duration::from_millis(20);
    let waited = condition.wait_for(&mut guard, || event.is_set().unwrap(), timeout).unwrap();
    assert_eq!(waited, WaitOutcome::TimedOut);
    event.set().unwrap();
    condition.wait_while(&mut guard, || !event.is_set().unwrap()).unwrap();
    let barrier = client.barrier("b", 1).unwrap();
    barrier.wait_with(None, || event.clear().unwrap()).unwrap();
    assert!(!event.is_set().unwrap());
    std::thread::spawn(move || guard.release().unwrap()).join().unwrap();
}

#[test]
fn a_blocking_client_can_be_dropped_in_an_async_context() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let guard = client.lock("l").unwrap().acquire().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        drop(guard);
        drop(client);
    });
    daemon.blocking().lock("l").unwrap().acquire().unwrap().release().unwrap();
}

extern "C" fn ignore(_: libc::c_int) {}

/// Sends a signal to a thread until what it waits for has happened.
fn signal_until(thread: libc::pthread_t, done: impl Fn() -> bool) {
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as libc::sighandler_t) };
    let end = std::time::Instant::now() + WATCHDOG;
    while !done() {
        assert!(std::time::Instant::now() < end, "no signal ends it");
        // SAFETY: the caller's thread has not been joined.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn raw_object(client: &Client, name: &str, spec: Spec) -> Object {
    Object::create(client.object(name), spec, None).wait(&mut || false).unwrap()
}

fn raw_lock(client: &Client, name: &str) -> Object {
    let class = SemLockClass::Lock.into();
    raw_object(client, name, Spec::SemLock(SemLockSpec { class, value: 1, max: 0 }))
}

#[tokio::test]
async fn a_blocking_client_works_within_spawn_blocking_and_its_owners_are_threads() {
    let daemon = Daemon::start();
    let client = daemon.blocking();
    let worker = tokio::task::spawn_blocking(move || {
        let lock = client.rlock("l").unwrap();
        let guard = lock.acquire().unwrap();
        assert_eq!(lock.acquire().unwrap().depth(), 2);
        let fresh = Client::builder().endpoint(client.endpoint().clone());
        let other = fresh.connect_blocking().unwrap().rlock("l").unwrap();
        assert!(other.try_acquire().unwrap().is_none());
        guard.release().unwrap();
    });
    within(worker).await.unwrap();
}

/// As a binding runs a signal handler: leaves the wait in mid-call, and comes back.
#[test]
fn a_signal_handler_may_make_calls_while_other_threads_go_on() {
    let daemon = Daemon::start();
    let client = raw::client(daemon.builder()).unwrap();
    let lock = raw_lock(&client, "l");
    let other = daemon.blocking();
    let theirs = other.lock("l").unwrap();
    let held = theirs.acquire().unwrap();
    let (events, handled) = (["e1", "e2"], AtomicU32::new(0));
    std::thread::scope(|scope| {
        let (client, lock, handled) = (&client, &lock, &handled);
        let (mine, my_own) = (raw_lock(client, "mine"), raw::owner());
        let (id, ids) = std::sync::mpsc::channel();
        let waiter = scope.spawn(move || {
            // SAFETY: pthread_self has no preconditions.
            id.send(unsafe { libc::pthread_self() }).unwrap();
            let mut in_handler = || {
                // Another thread reads meanwhile, and this handler makes a call itself.
                drop(mine.acquire(my_own, None).wait(&mut || false).unwrap());
                handled.fetch_add(1, SeqCst);
                false
            };
            lock.acquire(raw::owner(), None).wait(&mut in_handler).unwrap()
        });
        // Created before they are set: an event without attached sessions is removed.
        let waited = events.map(|name| raw_object(client, name, Spec::Event(EventSpec {})).event());
        let reader = scope.spawn(move || {
            for event in waited {
                Object::wait_set(&event, raw::owner(), None).wait(&mut || false).unwrap();
            }
        });
        signal_until(ids.recv().unwrap(), || handled.load(SeqCst) > 5);
        for event in events {
            other.event(event).unwrap().set().unwrap();
        }
        reader.join().unwrap();
        held.release().unwrap();
        drop(waiter.join().unwrap());
    });
    theirs.acquire().unwrap().release().unwrap();
}

#[test]
fn a_signal_handler_may_give_a_call_up_and_the_request_is_withdrawn() {
    let daemon = Daemon::start();
    let client = raw::client(daemon.builder()).unwrap();
    let lock = raw_lock(&client, "l");
    let other = daemon.blocking().lock("l").unwrap();
    let held = other.acquire().unwrap();
    let waiter = std::thread::spawn(move || {
        let given_up = lock.acquire(raw::owner(), None).wait(&mut || true);
        (given_up.map(drop), lock)
    });
    signal_until(waiter.as_pthread_t(), || waiter.is_finished());
    let (given_up, lock) = waiter.join().unwrap();
    assert!(matches!(given_up, Err(AcquireError::Session(SessionError::Interrupted))));
    held.release().unwrap();
    other.acquire().unwrap().release().unwrap();
    drop(lock.acquire(raw::owner(), None).wait(&mut || false).unwrap());
}
