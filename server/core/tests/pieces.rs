//! What takes several calls, and what many calls brought about before: order, counts and
//! answers are those of one. Small steps, by hand.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use syncd_core::{
    Acquire, Answer, Body, Cause, Class, Config, Create, Cycle, ErrorKind, Grant, Handle, Limits,
    Output, Owner, Process, Reason, RecordKind, Reply, Request, RequestId, SessionId, Space, Spec,
    Step, Time, Token,
};

const LOCK: Spec = Spec::SemLock { class: Class::Lock, value: 1, max: 1 };

struct World {
    space: Space,
    now: Time,
    ids: BTreeMap<SessionId, u64>,
    replies: Vec<(SessionId, u64, Reply)>,
    deadlocks: Vec<Cycle>,
    steps: Vec<Step>,
}

impl World {
    fn new(step: u32) -> Self {
        let limits = Limits { step, ..Limits::default() };
        World {
            space: Space::new(Config { limits, ..Config::default() }, 1),
            now: Time(0),
            ids: BTreeMap::new(),
            replies: vec![],
            deadlocks: vec![],
            steps: vec![],
        }
    }

    fn open(&mut self) -> SessionId {
        let pid = self.ids.len() as u32 + 1;
        let process = Process { pid, uid: 1, command: Arc::from("test") };
        let session = self.space.handle_open(self.now, process).unwrap();
        self.ids.insert(session, 0);
        self.hear();
        session
    }

    /// Takes the step, and keeps what was said.
    fn hear(&mut self) {
        let step = self.space.take_step().unwrap();
        self.space.check();
        for output in &step.outputs {
            match output {
                Output::Send { session, message } => {
                    if let Body::Reply(id, reply) = &message.body {
                        self.replies.push((*session, id.0, reply.clone()));
                    }
                }
                Output::Record(record) => {
                    if let RecordKind::Deadlock { cycle } = &record.kind {
                        self.deadlocks.push(cycle.clone());
                    }
                }
                Output::Ready { .. } => {}
            }
        }
        self.steps.push(step);
    }

    fn ask(&mut self, session: SessionId, request: Request) -> u64 {
        self.now = Time(self.now.0 + 1);
        let id = self.ids.get_mut(&session).unwrap();
        *id += 1;
        let id = *id;
        self.space.handle_request(self.now, session, RequestId(id), 0, request);
        self.hear();
        id
    }

    /// Asks, and returns the answer, which comes in the same step.
    fn answer(&mut self, session: SessionId, request: Request) -> Reply {
        let id = self.ask(session, request);
        self.reply(session, id).expect("an answer")
    }

    fn reply(&mut self, session: SessionId, id: u64) -> Option<Reply> {
        let found =
            self.replies.iter().position(|(whom, which, _)| (*whom, *which) == (session, id));
        found.map(|at| self.replies.remove(at).2)
    }

    fn object(&mut self, session: SessionId, name: &str, spec: Spec) -> Handle {
        match self.answer(session, create(name, spec, false)) {
            Ok(Answer::Attached(attachment)) => attachment.handle,
            other => panic!("{other:?}"),
        }
    }

    fn is_at_work(&self) -> bool {
        self.space.poll_timeout().is_some_and(|due| due.reason == Reason::Work)
    }

    /// One piece of what is left; false: nothing is.
    fn piece(&mut self) -> bool {
        let more = self.is_at_work();
        if more {
            self.space.handle_work(self.now);
            self.hear();
        }
        more
    }

    fn finish(&mut self) {
        while self.piece() {}
    }
}

fn create(name: &str, spec: Spec, poison: bool) -> Request {
    let (keep, exclusive, secret) = Default::default();
    Request::Create(Create { name: Some(name.into()), spec, keep, poison, exclusive, secret })
}

fn acquire(handle: Handle, owner: u64) -> Request {
    let (loose, timeout, fail_on_deadlock) = (false, None, false);
    Request::Acquire(Acquire { handle, owner: Owner(owner), loose, timeout, fail_on_deadlock })
}

fn release(handle: Handle, owner: u64, token: Option<Token>) -> Request {
    Request::Release { handle, owner: Owner(owner), token, quiet: false }
}

fn meet(handle: Handle, owner: u64, has_action: bool) -> Request {
    Request::BarrierWait { handle, owner: Owner(owner), timeout: None, has_action }
}

fn granted(reply: Option<Reply>) -> Grant {
    match reply {
        Some(Ok(Answer::Granted(grant) | Answer::Woken { grant, .. })) => grant,
        other => panic!("{other:?}"),
    }
}

// R52, R55, R66
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

// R55: those who come while an action runs are the next barrier's, found piece by piece
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

// R47, R66
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

// R51, R35: who was woken is woken, though not told yet.
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

// R37, R66: what a session held goes on in the end, and nothing comes back to it.
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

// R57
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

// R57
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

// R36
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

// R12
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

// R61
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
