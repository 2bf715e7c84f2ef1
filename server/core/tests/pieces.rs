//! What takes several calls, and what many calls brought about before: order, counts and
//! answers are those of one. Small steps, by hand.

mod world;

use std::time::Duration;

use syncd_core::{
    Answer, Cause, Class, Cycle, ErrorKind, Grant, Handle, Output, Owner, Request, RequestId,
    SessionId, Spec, Step,
};
use world::{World, acquire, create, granted, meet, release};

const LOCK: Spec = Spec::SemLock { class: Class::Lock, value: 1, max: 1 };

// Rules R52, R55, R66
#[test]
fn generations_of_a_barrier_queue_up_without_depth() {
    // Of one party each, while the first one's action ran: a stack would overflow.
    let mut world = World::new(512);
    let session = world.open();
    let barrier = world.object(session, "alone", Spec::Barrier { parties: 1 });
    world.ask(session, meet(barrier, 0, true));
    const WAITERS: u64 = 130_000;
    let now = world.now;
    for owner in 1..=WAITERS {
        world.space.handle_request(
            now,
            session,
            RequestId(10 + owner),
            0,
            meet(barrier, owner, false),
        );
        world.space.take_step();
    }
    world.ids.insert(session, 1_000_000);
    let done = world
        .answer(session, Request::BarrierAction { handle: barrier, owner: Owner(0), ok: true });
    assert_eq!(done, Ok(Answer::Done { count: 0 }));
    world.space.handle_work(now);
    world.space.take_step();
    while world.is_at_work() {
        world.space.handle_work(now);
        world.space.take_step();
    }
    world.space.check();
    assert_eq!(world.space.totals().waiters, 0);
}

// Rule R55: those who come while an action runs are the next barrier's, found piece by piece
// though some withdraw meanwhile.
#[test]
fn the_next_full_barrier_is_found_though_parties_withdraw() {
    for leaver in 0..6 {
        let mut world = World::new(1);
        let (asker, others) = (world.open(), world.open());
        let barrier = world.object(asker, "b", Spec::Barrier { parties: 4 });
        let there = world.object(others, "b", Spec::Barrier { parties: 4 });
        for owner in 0..3 {
            world.ask(others, meet(there, owner, false));
        }
        world.ask(asker, meet(barrier, 9, true));
        let late: Vec<u64> =
            (10..15).map(|owner| world.ask(others, meet(there, owner, false))).collect();
        world.ask(asker, Request::BarrierAction { handle: barrier, owner: Owner(9), ok: true });
        for _ in 0..leaver {
            world.piece();
        }
        // Whether it has passed by then or not, three or four of the late ones are left.
        world.ask(others, Request::Cancel { request: RequestId(late[1]), give_back: true });
        world.finish();
        let mut passed: Vec<u32> = late
            .iter()
            .filter_map(|&id| match world.reply(others, id) {
                Some(Ok(Answer::BarrierPassed { index, run_action: false })) => Some(index),
                Some(Err(error)) if error.kind == ErrorKind::Cancelled => None,
                None => None,
                other => panic!("{other:?}"),
            })
            .collect();
        passed.sort_unstable();
        assert_eq!(passed, [0, 1, 2, 3], "after {leaver} pieces");
    }
}

// Rules R47, R66
#[test]
fn a_notify_in_pieces_counts_all_and_its_session_waits_for_it() {
    let mut world = World::new(2);
    let (owner, sleepers, late) = (world.open(), world.open(), world.open());
    let lock = world.object(owner, "lock", LOCK);
    let condition = world.object(owner, "condition", Spec::Condition { lock });
    let their_lock = world.object(sleepers, "lock", LOCK);
    let theirs = world.object(sleepers, "condition", Spec::Condition { lock: their_lock });
    let late_lock = world.object(late, "lock", LOCK);
    let waits: Vec<u64> = (0..9)
        .map(|i| {
            world.answer(sleepers, acquire(their_lock, i)).unwrap();
            let owner = Owner(i);
            world.ask(sleepers, Request::Wait { handle: theirs, owner, timeout: None })
        })
        .collect();
    let token = granted(Some(world.answer(owner, acquire(lock, 0)))).token;
    let all = Request::Notify { handle: condition, owner: Owner(0), n: None };
    let notify = world.ask(owner, all);
    assert!(world.space.is_working(owner) && world.reply(owner, notify).is_none());
    // R4: one that comes all the same is refused, and changes nothing.
    let refused = world.answer(owner, release(lock, 0, Some(token))).unwrap_err();
    assert!(matches!(refused.kind, ErrorKind::Quota { .. }), "{refused}");
    // A sleeper that dies meanwhile is no part of the count; the others keep their order.
    let cancel = Request::Cancel { request: RequestId(waits[8]), give_back: true };
    world.ask(sleepers, cancel);
    let barger = world.ask(late, acquire(late_lock, 0));
    world.finish();
    assert_eq!(world.reply(owner, notify), Some(Ok(Answer::Done { count: 8 })));
    let ready = world.steps.iter().flat_map(|step| &step.outputs);
    assert_eq!(ready.filter(|&o| *o == Output::Ready { session: owner }).count(), 1);
    assert!(!world.space.is_working(owner));
    world.answer(owner, release(lock, 0, Some(token))).unwrap();
    let mut order = vec![];
    loop {
        world.finish();
        let next = waits.iter().find_map(|&id| Some((id, world.reply(sleepers, id)?)));
        let (session, handle, owner, grant) = match next {
            Some((_, Err(error))) if error.kind == ErrorKind::Cancelled => continue,
            Some((id, reply)) => {
                order.push(id);
                let owner = waits.iter().position(|&other| other == id).unwrap() as u64;
                (sleepers, their_lock, owner, granted(Some(reply)))
            }
            None => match world.reply(late, barger) {
                Some(reply) => (late, late_lock, 0, granted(Some(reply))),
                None => break,
            },
        };
        world.answer(session, release(handle, owner, Some(grant.token))).unwrap();
    }
    assert_eq!(order, waits[..8]);
}

// Rules R51, R35: who was woken is woken, though not told yet.
#[test]
fn a_set_event_has_woken_all_who_waited_though_it_is_cleared_at_once() {
    let mut world = World::new(2);
    let (setter, waiters) = (world.open(), world.open());
    let event = world.object(setter, "event", Spec::Event);
    let theirs = world.object(waiters, "event", Spec::Event);
    let wait = |owner| {
        let timeout = Some(Duration::from_secs(1));
        Request::EventWait { handle: theirs, owner: Owner(owner), timeout }
    };
    let waits: Vec<u64> = (0..9).map(|owner| world.ask(waiters, wait(owner))).collect();
    let set = world.answer(setter, Request::EventSet { handle: event });
    assert_eq!(set, Ok(Answer::Done { count: 9 }));
    world.answer(setter, Request::EventClear { handle: event }).unwrap();
    let late = world.ask(waiters, wait(9));
    world.ask(waiters, Request::Cancel { request: RequestId(waits[8]), give_back: true });
    world.now = world.now + Duration::from_millis(999);
    world.finish();
    for id in waits {
        assert_eq!(world.reply(waiters, id), Some(Ok(Answer::Done { count: 0 })));
    }
    assert_eq!(world.reply(waiters, late), None);
}

// Rules R37, R66: what a session held goes on in the end, and nothing comes back to it.
#[test]
fn a_session_that_ends_in_pieces_is_granted_nothing() {
    let mut world = World::new(3);
    let (dying, heir) = (world.open(), world.open());
    let spec = Spec::SemLock { class: Class::Semaphore, value: 6, max: 6 };
    let (theirs, ours) = (world.object(dying, "s", spec), world.object(heir, "s", spec));
    for owner in 0..6 {
        world.answer(dying, acquire(theirs, owner)).unwrap();
    }
    for owner in 6..12 {
        world.ask(dying, acquire(theirs, owner));
    }
    let waits: Vec<u64> = (0..6).map(|owner| world.ask(heir, acquire(ours, owner))).collect();
    world.space.handle_lost(world.now, dying, Cause::Died);
    world.hear();
    // Somebody lets a permit go while its waits are still in the queue.
    world.answer(heir, release(ours, 99, None)).unwrap();
    world.finish();
    let grants: Vec<Grant> = waits.iter().map(|&id| granted(world.reply(heir, id))).collect();
    assert!(grants.is_sorted_by_key(|grant| grant.token));
    assert_eq!(world.space.totals().holds, 6);
    assert_eq!(world.space.totals().sessions, 1);
}

// Rule R57
#[test]
fn a_cycle_that_a_grant_closes_is_reported() {
    let mut world = World::new(512);
    let (a, b) = (world.open(), world.open());
    let [one, two] = ["one", "two"].map(|name| world.object(a, name, LOCK));
    let [their_one, their_two] = ["one", "two"].map(|name| world.object(b, name, LOCK));
    let held = granted(Some(world.answer(b, acquire(their_one, 5)))).token;
    world.answer(b, acquire(their_two, 1)).unwrap();
    // The owner waits for both at once, and may get on by either.
    world.ask(a, acquire(one, 1));
    world.ask(a, acquire(two, 1));
    world.ask(b, acquire(their_one, 1));
    assert_eq!(world.deadlocks, []);
    // Now it has the one that the other waits for, and waits for the one that the other has.
    world.answer(b, release(their_one, 5, Some(held))).unwrap();
    assert_eq!(world.deadlocks.len(), 1);
    let waiters = world.deadlocks[0].edges.iter().map(|edge| edge.waiter.session);
    assert_eq!(waiters.collect::<Vec<_>>(), [a, b]);
}

// Rule R57
#[test]
fn a_long_cycle_is_reported_in_short() {
    for length in [Cycle::SHOWN as u64, 200, Cycle::LONGEST as u64, Cycle::LONGEST as u64 + 1] {
        let mut world = World::new(512);
        let session = world.open();
        let locks: Vec<Handle> =
            (0..length).map(|i| world.object(session, &format!("lock {i}"), LOCK)).collect();
        for (owner, &lock) in locks.iter().enumerate() {
            world.answer(session, acquire(lock, owner as u64)).unwrap();
        }
        for owner in 0..length - 1 {
            world.ask(session, acquire(locks[owner as usize + 1], owner));
        }
        let mut closing = acquire(locks[0], length - 1);
        if let Request::Acquire(acquire) = &mut closing {
            acquire.fail_on_deadlock = true;
        }
        let id = world.ask(session, closing);
        if length > Cycle::LONGEST as u64 {
            // Too long to be looked for: it waits.
            assert_eq!((world.reply(session, id), world.deadlocks.len()), (None, 0));
            continue;
        }
        let refused = world.reply(session, id).unwrap().unwrap_err();
        let ErrorKind::Deadlock { cycle } = &refused.kind else { panic!("{refused}") };
        assert_eq!(cycle.edges.len(), Cycle::SHOWN);
        assert_eq!(u64::from(cycle.omitted), length - Cycle::SHOWN as u64);
        assert!(refused.to_string().len() < 4_000, "{refused}");
    }
}

// Rule R36
#[test]
fn what_an_undone_grant_told_is_told_again_though_the_hold_was_taken_away() {
    let mut world = World::new(512);
    let (first, second, third) = (world.open(), world.open(), world.open());
    let handles = [first, second, third].map(|session| world.object(session, "lock", LOCK));
    world.answer(first, acquire(handles[0], 0)).unwrap();
    let wait = world.ask(second, acquire(handles[1], 0));
    world.space.handle_lost(world.now, first, Cause::Died);
    world.hear();
    // The grant is on its way, and the lock is released by somebody else.
    world.answer(third, release(handles[2], 0, None)).unwrap();
    world.ask(second, Request::Cancel { request: RequestId(wait), give_back: true });
    let told = granted(Some(world.answer(third, acquire(handles[2], 0)))).abandoned;
    assert_eq!(told.map(|left| left.by.session), Some(first));
}

// Rule R12
#[test]
fn poison_is_part_of_what_a_lock_is() {
    for poison in [true, false] {
        let mut world = World::new(512);
        let session = world.open();
        world.answer(session, create("lock", LOCK, poison)).unwrap();
        world.answer(session, create("lock", LOCK, poison)).unwrap();
        let refused = world.answer(session, create("lock", LOCK, !poison)).unwrap_err();
        assert!(matches!(refused.kind, ErrorKind::SpecMismatch { .. }), "{refused}");
    }
}

// Rule R61
#[test]
fn steps_that_are_played_again_say_the_same() {
    let mut world = World::new(2);
    let (a, b) = (world.open(), world.open());
    let [lock, theirs] = [a, b].map(|session| world.object(session, "lock", LOCK));
    let condition = world.object(a, "condition", Spec::Condition { lock });
    for owner in 0..5 {
        world.answer(a, acquire(lock, owner)).unwrap();
        let owner = Owner(owner);
        world.ask(a, Request::Wait { handle: condition, owner, timeout: None });
    }
    world.ask(b, acquire(theirs, 0));
    world.space.handle_disconnect(world.now, a);
    world.hear();
    world.space.handle_resume(world.now, a, 3).unwrap();
    world.hear();
    world.space.handle_lost(world.now, b, Cause::Kicked);
    world.hear();
    world.finish();
    let mut again = World::new(2).space;
    for step in &world.steps {
        again.replay(step.at, step.input.clone());
        assert_eq!(again.take_step().as_ref(), Some(step));
    }
    assert_eq!(again.totals(), world.space.totals());
}

// Rule R55: a search for the next full barrier that was left half done ends with what it was for,
// though so many withdraw that the barrier fills without it.
#[test]
fn a_search_that_was_left_half_done_is_not_gone_on_with_later() {
    for late in 2..12 {
        for pieces in 0..12 {
            let mut world = World::new(1);
            let session = world.open();
            let barrier = world.object(session, "b", Spec::Barrier { parties: 2 });
            world.ask(session, meet(barrier, 0, false));
            world.ask(session, meet(barrier, 1, true));
            let came: Vec<u64> = (10..10 + late)
                .map(|owner| world.ask(session, meet(barrier, owner, false)))
                .collect();
            let done =
                |owner| Request::BarrierAction { handle: barrier, owner: Owner(owner), ok: true };
            world.ask(session, done(1));
            for _ in 0..pieces {
                world.piece();
            }
            let is_told = |id: &u64| world.replies.iter().any(|(_, which, _)| which == id);
            let waiting: Vec<u64> = came.iter().copied().filter(|id| !is_told(id)).collect();
            let Some((_, leavers)) = waiting.split_last() else { continue };
            for &leaver in leavers {
                let request = RequestId(leaver);
                world.ask(session, Request::Cancel { request, give_back: true });
            }
            let filled = world.ask(session, meet(barrier, 100, true));
            let after = [101, 102].map(|owner| world.ask(session, meet(barrier, owner, false)));
            let has_action = matches!(
                world.reply(session, filled),
                Some(Ok(Answer::BarrierPassed { run_action: true, .. }))
            );
            world.ask(session, done(100));
            world.finish();
            // Two by two, all pass; but where the last one passed before, they are one too many.
            let told = after.iter().filter(|&&id| world.reply(session, id).is_some()).count();
            assert!(told == 2 || !has_action, "{late} came, {pieces} pieces: {told}");
        }
    }
}

// Rule R5: what the client had all the same, it acknowledges while it is being sent again.
#[test]
fn what_is_acknowledged_while_it_is_sent_again_is_left_out() {
    let mut world = World::new(1);
    let session = world.told(8);
    world.space.handle_disconnect(world.now, session);
    world.hear();
    world.space.handle_resume(world.now, session, 0).unwrap();
    world.hear();
    let id = world.ids[&session];
    let before = world.steps.len();
    world.space.handle_request(world.now, session, RequestId(id), 6, Request::Ack);
    world.hear();
    world.finish();
    let again: Vec<u64> =
        world.steps[before..].iter().flat_map(|step| sent(step, session)).collect();
    assert_eq!(again, [7, 8]);
    assert!(world.space.session(world.now, session).is_some(), "it is lost");
}

fn sent(step: &Step, to: SessionId) -> Vec<u64> {
    let seq = |output: &Output| match output {
        Output::Send { session, message } if *session == to => Some(message.seq),
        _ => None,
    };
    step.outputs.iter().filter_map(seq).collect()
}

// Rule R5: of two connections that resume, the older one's request may be read last.
#[test]
fn an_older_attempt_to_resume_is_refused_and_loses_nothing() {
    let mut world = World::new(512);
    let session = world.told(3);
    world.space.handle_disconnect(world.now, session);
    world.hear();
    world.space.handle_resume(world.now, session, 3).unwrap();
    world.hear();
    let refused = world.space.handle_resume(world.now, session, 2).unwrap_err();
    world.hear();
    assert!(matches!(refused.kind, ErrorKind::Invalid { field: "resume_seq", .. }), "{refused}");
    let view = world.space.session(world.now, session).expect("it goes on");
    assert!(view.connected);
}
