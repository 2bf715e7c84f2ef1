//! Each kind of object, through the async client.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use support::{Daemon, within};
use syncd_client::{
    AcquireError, BarrierError, BoundedSemaphore, Cause, Client, Condition, ConnectError,
    CreateError, Event, Lock, RLock, ReleaseError, Semaphore, Token, WaitOutcome,
};

const SHORT: Duration = Duration::from_millis(20);

#[tokio::test]
async fn a_lock_is_held_until_its_guard_is_dropped() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let (a, b) = (a.lock("l").await.unwrap(), b.lock("l").await.unwrap());
    let guard = a.acquire().await.unwrap();
    assert!(guard.is_valid() && guard.abandoned().is_none());
    assert!(b.try_acquire().await.unwrap().is_none());
    let holder = b.locked_by().await.unwrap().unwrap();
    assert_eq!((holder.process.pid, holder.token), (std::process::id(), guard.fencing_token()));
    let first = guard.fencing_token();
    drop(guard);
    let guard = within(b.acquire()).await.unwrap();
    assert!(guard.fencing_token() > first);
    guard.release().await.unwrap();
    assert!(b.locked_by().await.unwrap().is_none());
}

#[tokio::test]
async fn a_time_out_names_the_holders() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let guard = a.lock("l").await.unwrap().acquire().await.unwrap();
    let error = b.lock("l").await.unwrap().acquire_timeout(SHORT).await.unwrap_err();
    let [holder] = error.held_by() else { panic!("{error}") };
    assert_eq!(holder.token, guard.fencing_token());
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
}

#[tokio::test]
async fn the_next_owner_is_told_once_of_an_abandonment() {
    let daemon = Daemon::start();
    let leaver = daemon.builder().label("leaver").connect().await.unwrap();
    let stayer = daemon.client().await.lock("l").await.unwrap();
    let guard = leaver.lock("l").await.unwrap().acquire().await.unwrap();
    leaver.close().await;
    assert!(!guard.is_valid());
    let next = within(stayer.acquire()).await.unwrap();
    let left = next.abandoned().unwrap();
    assert_eq!((left.cause, &*left.process.command), (Cause::Left, "leaver"));
    assert_eq!(left.token, guard.fencing_token());
    drop(next);
    assert!(within(stayer.acquire()).await.unwrap().abandoned().is_none());
}

#[tokio::test]
async fn a_task_takes_its_rlock_again_and_others_wait() {
    let daemon = Daemon::start();
    let lock = daemon.client().await.rlock("r").await.unwrap();
    let outer = lock.acquire().await.unwrap();
    let inner = lock.acquire().await.unwrap();
    assert_eq!((outer.depth(), inner.depth()), (1, 2));
    assert_eq!(outer.fencing_token(), inner.fencing_token());
    let other = lock.clone();
    let other = tokio::spawn(async move { other.try_acquire().await.unwrap().is_some() });
    assert!(!other.await.unwrap());
    drop(outer);
    assert!(inner.is_valid());
    inner.release().await.unwrap();
    assert!(matches!(
        lock.release().await,
        Err(ReleaseError::OverReleased(_) | ReleaseError::NotOwner(_))
    ));
}

#[tokio::test]
async fn an_acquire_that_would_close_a_cycle_fails_if_asked_to() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let (a1, a2) = (a.lock("1").await.unwrap(), a.lock("2").await.unwrap());
    let (b1, b2) = (b.lock("1").await.unwrap(), b.lock("2").await.unwrap());
    let held = a1.acquire().await.unwrap();
    // An owner is a task: this one holds a lock and waits for the other.
    let other = tokio::spawn(async move {
        let _held = b2.acquire().await.unwrap();
        drop(b1.acquire().await.unwrap());
    });
    let refused = async {
        // Until the other task waits.
        loop {
            match a2.clone().fail_on_deadlock().acquire_timeout(SHORT).await {
                Err(AcquireError::Deadlock { cycle, .. }) => break cycle,
                Ok(_) | Err(AcquireError::TimedOut { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(within(refused).await.len(), 2);
    drop(held);
    within(other).await.unwrap();
}

#[tokio::test]
async fn a_poisoned_lock_is_refused_until_it_is_marked() {
    let daemon = Daemon::start();
    let (leaver, b) = (daemon.client().await, daemon.client().await);
    let lock = b.object("p").poison().lock().await.unwrap();
    let guard = leaver.object("p").poison().lock().await.unwrap().acquire().await.unwrap();
    leaver.close().await;
    drop(guard);
    let told = within(lock.acquire()).await.unwrap();
    assert!(told.abandoned().is_some());
    told.release().await.unwrap();
    let error = lock.acquire().await.unwrap_err();
    assert!(matches!(&error, AcquireError::Poisoned { by: Some(_), .. }), "{error:?}");
    lock.mark_consistent().await.unwrap();
    let mut guard = lock.acquire().await.unwrap();
    guard.mark_consistent().await.unwrap();
}

#[tokio::test]
async fn a_permit_is_owned_or_unowned_as_its_acquire_says() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let sem = b.semaphore("s", 3).await.unwrap();
    let theirs = a.semaphore("s", 3).await.unwrap();
    let owned = theirs.acquire().await.unwrap();
    theirs.acquire_unowned().await.unwrap();
    theirs.acquire().await.unwrap().forget().await.unwrap();
    assert_eq!(sem.value().await.unwrap(), 0);
    assert_eq!(sem.held_by().await.unwrap().len(), 1);
    assert!(!sem.try_acquire_unowned().await.unwrap());
    a.close().await;
    drop(owned);
    assert_eq!(sem.value().await.unwrap(), 1);
    sem.add_permits(3).await.unwrap();
    assert_eq!(sem.value().await.unwrap(), 4);
    assert!(sem.try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn a_bounded_semaphore_refuses_a_release_too_many() {
    let daemon = Daemon::start();
    let sem = daemon.client().await.bounded_semaphore("s", 2).await.unwrap();
    let permit = sem.acquire().await.unwrap();
    permit.release().await.unwrap();
    assert!(matches!(sem.release().await, Err(ReleaseError::OverReleased(_))));
}

#[tokio::test]
async fn a_condition_wait_releases_the_lock_and_acquires_it_again() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let (lock_a, lock_b) = (a.rlock("l").await.unwrap(), b.rlock("l").await.unwrap());
    let cond_a = a.condition("c", &lock_a).await.unwrap();
    let cond_b = b.condition("c", &lock_b).await.unwrap();
    let mut guard = lock_a.acquire().await.unwrap();
    let again = lock_a.acquire().await.unwrap();
    let notifier = tokio::spawn(async move {
        let guard = lock_b.acquire().await.unwrap();
        assert!(cond_b.notify_one(&guard).await.unwrap());
        assert_eq!(cond_b.notify_all(&guard).await.unwrap(), 0);
    });
    within(cond_a.wait(&mut guard)).await.unwrap();
    assert!(guard.is_valid() && again.is_valid());
    assert_eq!(guard.depth(), 2);
    notifier.await.unwrap();
    drop(again);
    assert_eq!(cond_a.wait_timeout(&mut guard, SHORT).await.unwrap(), WaitOutcome::TimedOut);
    assert!(guard.is_valid());
    let mut asked = 0;
    let ready = || {
        asked += 1;
        asked > 1
    };
    assert_eq!(cond_a.wait_for(&mut guard, ready, SHORT).await.unwrap(), WaitOutcome::Notified);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_condition_refuses_the_guard_of_another_lock() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let (lock, other) = (client.lock("l").await.unwrap(), client.lock("other").await.unwrap());
    let condition = client.condition("c", &lock).await.unwrap();
    let mut guard = other.acquire().await.unwrap();
    assert!(condition.notify_all(&guard).await.is_err());
    assert!(condition.wait(&mut guard).await.is_err());
}

#[tokio::test]
async fn an_event_wakes_all_and_stays() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let event = client.event("e").await.unwrap();
    assert_eq!(event.wait_timeout(SHORT).await.unwrap(), WaitOutcome::TimedOut);
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let event = event.clone();
            tokio::spawn(async move { event.wait().await })
        })
        .collect();
    while event.set().await.unwrap() == 0 && !waiters.iter().all(|waiter| waiter.is_finished()) {
        tokio::task::yield_now().await;
    }
    for waiter in waiters {
        within(waiter).await.unwrap().unwrap();
    }
    assert!(event.is_set().await.unwrap());
    event.clear().await.unwrap();
    assert!(!event.is_set().await.unwrap());
}

#[tokio::test]
async fn a_barrier_runs_one_action_before_anybody_passes() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let barrier = client.barrier("b", 3).await.unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let parties: Vec<_> = (0..3)
        .map(|_| {
            let (barrier, ran) = (barrier.clone(), ran.clone());
            tokio::spawn(async move {
                let action = || assert!(!ran.swap(true, SeqCst), "it runs twice");
                let passed = barrier.wait_with(None, action).await.unwrap();
                assert!(ran.load(SeqCst));
                passed
            })
        })
        .collect();
    let mut places = Vec::new();
    for party in parties {
        places.push(within(party).await.unwrap());
    }
    places.sort_by_key(|place| place.index());
    assert_eq!(places.iter().map(|place| place.index()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(places.iter().filter(|place| place.is_leader()).count(), 1);
}

#[tokio::test]
async fn a_barrier_breaks_with_a_late_party_or_a_failed_action() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let barrier = client.barrier("b", 2).await.unwrap();
    assert!(matches!(barrier.wait_timeout(SHORT).await, Err(BarrierError::TimedOut(_))));
    assert!(barrier.state().await.unwrap().broken);
    assert!(matches!(barrier.wait().await, Err(BarrierError::Broken(_))));
    barrier.reset().await.unwrap();

    let other = barrier.clone();
    let other = tokio::spawn(async move { other.wait().await });
    while barrier.state().await.unwrap().waiting == 0 {
        tokio::task::yield_now().await;
    }
    let failing = barrier.clone();
    let failing =
        tokio::spawn(async move { failing.wait_with(None, || panic!("the action fails")).await });
    assert!(within(failing).await.unwrap_err().is_panic());
    assert!(matches!(within(other).await.unwrap(), Err(BarrierError::Broken(_))));
    barrier.reset().await.unwrap();
    barrier.abort().await.unwrap();
    assert!(barrier.state().await.unwrap().broken);
}

#[tokio::test]
async fn a_token_attaches_to_the_same_object_and_to_no_other_kind() {
    let daemon = Daemon::start();
    let (a, b) = (daemon.client().await, daemon.client().await);
    let lock = a.anonymous().lock().await.unwrap();
    let token: Token = lock.token().to_string().parse().unwrap();
    let guard = lock.acquire().await.unwrap();
    let same: Lock = b.attach(&token).await.unwrap();
    assert!(same.try_acquire().await.unwrap().is_none());
    assert!(matches!(b.attach::<RLock>(&token).await, Err(CreateError::KindMismatch(_))));
    drop(guard);
    let condition = a.anonymous().condition(&lock).await.unwrap();
    let condition: Condition = b.attach(&condition.token()).await.unwrap();
    let guard = within(same.acquire()).await.unwrap();
    assert_eq!(condition.notify_all(&guard).await.unwrap(), 0);

    let elsewhere = daemon.builder().namespace("elsewhere").connect().await.unwrap();
    assert!(matches!(elsewhere.attach::<Lock>(&token).await, Err(CreateError::Elsewhere { .. })));
    let (head, last) = token.key().split_at(token.key().len() - 1);
    let other_key = format!("{head}{}", if last == "0" { "1" } else { "0" });
    let wrong = token.to_string().replace(token.key(), &other_key).parse().unwrap();
    let error = a.attach::<Lock>(&wrong).await.unwrap_err();
    assert!(matches!(error, CreateError::NotFound(_)), "{error:?}");
}

#[tokio::test]
async fn a_token_connects_by_itself() {
    let daemon = Daemon::start();
    let client = daemon.builder().namespace("n").connect().await.unwrap();
    let event = client.anonymous().event().await.unwrap();
    event.set().await.unwrap();
    let token = event.token();
    let same: Event = Client::of(&token).connect().await.unwrap().attach(&token).await.unwrap();
    assert!(same.is_set().await.unwrap());
}

#[tokio::test]
async fn options_determine_how_an_object_is_created() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let kept = client.object("kept").keep().semaphore(2).await.unwrap();
    kept.acquire_unowned().await.unwrap();
    drop(kept);
    let kept: Semaphore = client.semaphore("kept", 2).await.unwrap();
    assert_eq!(kept.value().await.unwrap(), 1);
    let taken = client.object("kept").exclusive().semaphore(2).await;
    assert!(matches!(taken, Err(CreateError::Exists(_))));
    let mismatch: Result<BoundedSemaphore, _> = client.bounded_semaphore("kept", 2).await;
    assert!(matches!(mismatch, Err(CreateError::KindMismatch(_))));
    client.unlink("kept").await.unwrap();
    assert!(matches!(client.unlink("kept").await, Err(CreateError::NotFound(_))));
    assert_eq!(client.semaphore("kept", 5).await.unwrap().value().await.unwrap(), 5);
    assert!(matches!(client.barrier("none", 0).await, Err(CreateError::Invalid(_))));
    assert!(matches!(client.lock(&"x".repeat(300)).await, Err(CreateError::Invalid(_))));
}

#[cfg(feature = "serde")]
#[tokio::test]
async fn a_token_goes_through_serde() {
    let daemon = Daemon::start();
    let token = daemon.client().await.lock("l").await.unwrap().token();
    let json = serde_json::to_string(&token).unwrap();
    assert_eq!(serde_json::from_str::<Token>(&json).unwrap(), token);
}

#[tokio::test]
async fn an_invalid_name_is_refused_by_the_client_and_the_session_goes_on() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let guard = client.lock("l").await.unwrap().acquire().await.unwrap();
    let long = "x".repeat(256);
    for name in ["", long.as_str(), &"y".repeat(70_000), "a\0b"] {
        let invalid = |result: Result<(), CreateError>| {
            assert!(matches!(result, Err(CreateError::Invalid(_))), "{name:?}: {result:?}");
        };
        invalid(client.lock(name).await.map(drop));
        invalid(client.semaphore(name, 1).await.map(drop));
        invalid(client.object(name).event().await.map(drop));
        invalid(client.unlink(name).await);
        invalid(daemon.blocking().barrier(name, 2).map(drop));
    }
    drop(client.lock(&"x".repeat(255)).await.unwrap());
    drop(client.anonymous().lock().await.unwrap());
    let error = daemon.builder().label(&long).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Invalid(_)), "{error}");
    let error = daemon.builder().namespace(&long).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Invalid(_)), "{error}");
    assert!(guard.is_valid());
}

#[tokio::test]
async fn debug_output_contains_no_secret() {
    let daemon = Daemon::start();
    let client = daemon.client().await;
    let lock = client.lock("l").await.unwrap();
    let condition = client.condition("c", &lock).await.unwrap();
    let guard = lock.acquire().await.unwrap();
    let blocking = daemon.blocking().lock("m").unwrap();
    let shown =
        format!("{client:?} {lock:?} {condition:?} {guard:?} {blocking:?} {:?}", lock.token());
    assert!(shown.contains("Session"), "{shown}");
    for secret in ["resume_key", lock.token().key(), blocking.token().key()] {
        assert!(!shown.contains(secret), "{secret:?} in {shown}");
    }
}
