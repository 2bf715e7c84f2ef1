//! The shares of users in a shared namespace.

mod world;

use syncd_core::{Answer, Class, ErrorKind, Limits, Request, Spec, fair_limit};
use world::{World, acquire, create};

const LOCK: Spec = Spec::SemLock { class: Class::Lock, value: 1, max: 1 };
const PERMITS: Spec = Spec::SemLock { class: Class::Semaphore, value: 1000, max: 1000 };

fn quota(field: &'static str, limit: u64) -> ErrorKind {
    ErrorKind::Quota { field, limit }
}

fn shared() -> World {
    let (sessions, objects, holds, waiters) = (8, 40, 40, 40);
    World::with(Limits { sessions, objects, holds, waiters, shared: true, ..Limits::default() })
}

// Rule R63
#[test]
fn a_late_user_finds_a_part_of_everything() {
    let mut world = shared();
    let greedy: Vec<_> = (0..4).map(|_| world.open_as(7).unwrap()).collect();
    assert_eq!(world.open_as(7).unwrap_err().kind, quota("sessions", 4));
    let greedy = greedy[0];
    let permits = world.object(greedy, "permits", PERMITS);
    let lock = world.object(greedy, "lock", LOCK);
    for n in 2..20 {
        world.object(greedy, &n.to_string(), LOCK);
    }
    let refused = world.answer(greedy, create("more", LOCK, false)).unwrap_err();
    assert_eq!(refused.kind, quota("objects", 20));
    world.answer(greedy, acquire(lock, 0)).unwrap();
    for owner in 0..19 {
        world.answer(greedy, acquire(permits, owner)).unwrap();
    }
    assert_eq!(world.answer(greedy, acquire(permits, 0)).unwrap_err().kind, quota("holds", 20));

    let modest = world.open_as(8).unwrap();
    for n in 0..10 {
        world.object(modest, &format!("of 8: {n}"), LOCK);
    }
    let there = world.object(modest, "permits", PERMITS);
    for owner in 0..10 {
        world.answer(modest, acquire(there, owner)).unwrap();
    }
    assert_eq!(world.answer(modest, acquire(there, 0)).unwrap_err().kind, quota("holds", 10));
    // A third user gets half of what those two leave.
    let third = world.open_as(9).unwrap();
    let there = world.object(third, "permits", PERMITS);
    for owner in 0..5 {
        world.answer(third, acquire(there, owner)).unwrap();
    }
}

#[test]
fn a_users_waiters_leave_room_for_others() {
    let mut world = shared();
    let (greedy, modest) = (world.open_as(7).unwrap(), world.open_as(8).unwrap());
    let event = world.object(greedy, "event", Spec::Event);
    let there = world.object(modest, "event", Spec::Event);
    let wait = |handle| Request::EventWait { handle, owner: syncd_core::Owner(1), timeout: None };
    for _ in 0..20 {
        assert_eq!(world.outcome(greedy, wait(event)), None);
    }
    let refused = world.answer(greedy, wait(event)).unwrap_err();
    assert_eq!(refused.kind, quota("waiters", 20));
    assert_eq!(world.outcome(modest, wait(there)), None);
    let set = world.answer(modest, Request::EventSet { handle: there });
    assert_eq!(set, Ok(Answer::Done { count: 21 }));
    assert_eq!(world.outcome(greedy, Request::EventClear { handle: event }), Some(true));
    assert_eq!(world.outcome(greedy, wait(event)), None);
}

#[test]
fn an_untold_abandonment_counts_for_its_owner() {
    let mut world = shared();
    let (leaver, other) = (world.open_as(7).unwrap(), world.open_as(8).unwrap());
    let permits = world.object(leaver, "permits", PERMITS);
    let there = world.object(other, "permits", PERMITS);
    for owner in 0..5 {
        world.answer(leaver, acquire(permits, owner)).unwrap();
    }
    world.ask(leaver, Request::Goodbye);
    world.finish();
    assert_eq!((world.space.share(7).untold, world.space.share(7).holds), (5, 0));
    world.answer(other, acquire(there, 1)).unwrap();
    assert_eq!((world.space.share(7).untold, world.space.share(8).untold), (4, 0));
    world.ask(other, Request::Unlink { name: "permits".into() });
    world.ask(other, Request::Detach { handle: there, quiet: false });
    world.finish();
    // The object itself counted for its creator.
    assert_eq!(world.space.share(7), Default::default());
}

// Another user must not be able to keep a session from resuming.
#[test]
fn a_users_unacknowledged_messages_push_out_no_other_users() {
    let mut world = World::with(Limits {
        sessions: 16,
        unacknowledged: 64 << 10,
        unacknowledged_per_session: 64 << 10,
        shared: true,
        ..Limits::default()
    });
    let modest = world.open_as(8).unwrap();
    let lock = world.object(modest, "lock", LOCK);
    let greedy = world.open_as(7).unwrap();
    for n in 0..2000 {
        world.object(greedy, &n.to_string(), LOCK);
    }
    assert!(world.space.totals().unacknowledged > 60 << 10);
    world.answer(modest, acquire(lock, 1)).unwrap();
    world.space.handle_disconnect(world.now, modest);
    world.hear();
    world.space.handle_resume(world.now, modest, 0).unwrap();
}

#[test]
fn a_fair_limit_always_leaves_some() {
    for limit in [1, 2, 7, 100] {
        let (mut all, mut users) = (0, 0);
        while all < limit {
            let mut own = 0;
            while own < fair_limit(limit, all, own) {
                (own, all) = (own + 1, all + 1);
            }
            assert!(own > 0 && all <= limit, "{all} of {limit}");
            users += 1;
        }
        assert!(users >= limit.ilog2(), "{users} users of {limit}");
    }
    assert_eq!(fair_limit(100, 0, 0), 50);
    assert_eq!(fair_limit(100, 50, 50), 50);
    assert_eq!(fair_limit(100, 50, 0), 25);
}

// Rule R66
#[test]
fn untold_abandonments_of_a_removed_object_go_in_pieces() {
    const STEP: u32 = 16;
    let mut world = World::new(STEP);
    let (holder, keeper) = (world.open(), world.open());
    let spec = Spec::SemLock { class: Class::Semaphore, value: 1000, max: 1000 };
    let semaphore = world.object(holder, "s", spec);
    world.object(keeper, "s", spec);
    for owner in 0..1000 {
        world.ask(holder, acquire(semaphore, owner));
    }
    world.ask(holder, Request::Goodbye);
    world.finish();
    assert_eq!(world.space.totals().untold, 1000);
    world.ask(keeper, Request::Unlink { name: "s".into() });
    world.ask(keeper, Request::Goodbye);
    let mut left = world.space.totals().untold;
    assert!(left >= 1000 - STEP as usize, "{left}");
    while world.piece() {
        let now = world.space.totals().untold;
        assert!(left - now <= STEP as usize, "{left} to {now}");
        assert_eq!(world.space.is_empty(), now == 0);
        left = now;
    }
    assert_eq!(left, 0);
}
