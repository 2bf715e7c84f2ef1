//! S6 to S9: what it costs that there are many: idle locks, waiters in one queue, holds of one
//! process, sleepers on one condition.

use std::{cell::RefCell, ops::Range, time::Instant};

use rustix::process::{Pid, Signal, kill_process};
use syncd_proto::v1::{
    Cancel, ConditionSpec, Create, Detach, EventClear, EventSet, EventSpec, EventWait, Notify,
    Wait, client_message::Request, create::Spec, server_message::Message,
};

use crate::{
    Lab,
    daemon::{Daemon, runtime},
    raw::Pair,
    table::{Goal, Unit, median},
    wire::{Wire, acquire, create, granted, lock, release},
    worker::{answer, p50},
};

const IDLE: u64 = 1_000_000;
const MANY: u64 = 100_000;
/// Requests that are sent before their replies are read.
const BATCH: u64 = 1_000;
/// A session that is far behind in reading is dropped, so the heirs of many locks are several.
const HEIRS: u64 = 4;
/// As good as linear: the cost of each doesn't grow by more with ten or a hundred times as many.
const LINEAR: Goal = Goal::RatioAtMost(1.2);
const WAKE_UPS: Goal = Goal::AtLeast(200_000.0);

fn since(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}

/// S6: the daemon's memory.
pub fn idle(lab: &mut Lab) {
    for (attached, how) in [(0, "nobody attached"), (1, "one session attached to all")] {
        let daemon = Daemon::start(lab.dir.path());
        let mut creator = daemon.client("creator", &[]);
        let before = daemon.memory();
        creator.ask(&[IDLE, attached]);
        let each = (daemon.memory() - before) / IDLE as f64;
        let work = format!("each of 1,000,000 idle named locks, {how}");
        lab.row("S6", &work, Unit::Bytes, &[each]).goal(Goal::AtMost(300.0));
    }
}

/// Role: makes locks, and stays attached to them or not.
pub fn creator(path: &str) {
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    answer(|asked| {
        let &[count, attached] = asked else { panic!("how many, attached?") };
        runtime.block_on(async {
            for first in (0..count).step_by(BATCH as usize) {
                for handle in create_all(&mut wire, first..first + BATCH).await {
                    if attached == 0 {
                        wire.push(Request::Detach(Detach { handle, quiet: true }));
                    }
                }
            }
            let last = wire.create("last", lock()).await;
            wire.settle(last).await;
        });
        Vec::new()
    });
}

/// Creates locks that stay, and attaches to them.
async fn create_all(wire: &mut Wire, numbers: Range<u64>) -> Vec<u32> {
    let mut handles = Vec::new();
    for first in numbers.clone().step_by(BATCH as usize) {
        let batch = first..numbers.end.min(first + BATCH);
        for number in batch.clone() {
            let create = Create { keep: true, ..create(&format!("some/lock-{number:07}"), lock()) };
            wire.push(Request::Create(create));
        }
        for _ in batch {
            match wire.next().await.message {
                Some(Message::Attached(attached)) => handles.push(attached.handle),
                other => panic!("not created: {other:?}"),
            }
        }
    }
    handles
}

/// S7: a hand-off, an arrival and a cancel, in short queues and long ones.
pub fn queues(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let mut short = daemon.client("turns", &["short", "1"]);
    let mut long = daemon.client("turns", &["long", &MANY.to_string()]);
    let [short, long] = lab.rounds([&mut || short.ask(&[10_000]), &mut || long.ask(&[10_000])]);
    lab.row("S7", "hand-off, 100,000 waiters", Unit::Time, &long[0])
        .against("1 waiter", &short[0])
        .goal(Goal::RatioAtMost(1.2));

    let queue = RefCell::new(daemon.client("queue", &[]));
    let at = |n| queue.borrow_mut().ask(&[n]);
    let [one, ten, hundred] = lab.rounds([&mut || at(1_000), &mut || at(10_000), &mut || at(MANY)]);
    for (figure, what) in ["enqueue", "cancel"].into_iter().enumerate() {
        for (count, figures) in [("10,000", &ten), ("100,000", &hundred)] {
            let work = format!("{what}, each of {count} waiters");
            lab.row("S7", &work, Unit::Time, &figures[figure])
                .against("of 1,000", &one[figure])
                .goal(LINEAR);
        }
    }
}

/// Role: `n` waiters of one lock that take turns for ever; asked for steps, the median time of
/// one: the owner releases and queues again, and hears of the next one's grant.
pub fn turns(path: &str, name: &str, n: &str) {
    let owners: u64 = 1 + n.parse::<u64>().expect("a number of waiters");
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    let handle = runtime.block_on(wire.create(name, lock()));
    let mut token = runtime.block_on(async {
        (0..owners).for_each(|owner| wire.push(acquire(handle, owner)));
        let token = granted(wire.next().await);
        wire.settle(handle).await;
        token
    });
    let mut owner = 0;
    answer(|steps| {
        let step = || {
            wire.push(release(handle, owner, token));
            wire.push(acquire(handle, owner));
            token = granted(runtime.block_on(wire.next()));
            owner = (owner + 1) % owners;
        };
        vec![p50(steps[0], step)]
    });
}

/// Role: asked for n waiters, the time that each takes to queue and to withdraw. A few are done
/// many times over, and the median counts.
pub fn queue(path: &str) {
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    let handle = runtime.block_on(wire.create("queue", lock()));
    runtime.block_on(wire.call(acquire(handle, 0)));
    answer(|n| {
        let n = n[0];
        let mut times: [Vec<f64>; 2] = Default::default();
        for _ in 0..MANY.div_ceil(n) {
            runtime.block_on(async {
                let start = Instant::now();
                let first = wire.last_id() + 1;
                (1..=n).for_each(|owner| wire.push(acquire(handle, owner)));
                let last = wire.last_id();
                wire.settle(handle).await;
                times[0].push(since(start) / n as f64);
                let start = Instant::now();
                for id in first..=last {
                    wire.push(Request::Cancel(Cancel { id, give_back: false }));
                }
                for _ in 0..n {
                    wire.next().await;
                }
                times[1].push(since(start) / n as f64);
            });
        }
        times.iter().map(|times| median(times)).collect()
    });
}

/// S8: a killed process's locks go to those who wait for them.
pub fn death(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let mut heirs = daemon.client("heirs", &[]);
    let [passed] = lab.rounds([&mut || {
        let holder = daemon.client("holder", &[]);
        heirs.ask(&[]);
        heirs.ask(&[holder.pid().into()])
    }]);
    let work = "a process that owns 100,000 locks is killed: until all are granted on";
    lab.row("S8", work, Unit::Time, &passed[0]).goal(Goal::AtMost(250e6));
}

/// Role: takes many locks, and keeps them.
pub fn holder(path: &str) {
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    runtime.block_on(async {
        for handle in create_all(&mut wire, 0..MANY).await {
            wire.push(acquire(handle, 1));
        }
        for _ in 0..MANY {
            granted(wire.next().await);
        }
    });
    answer(|_| Vec::new());
}

/// Role: asked for nothing, waits for each of the holder's locks; asked with its process id,
/// kills it, takes the time until all are granted, and releases them.
pub fn heirs(path: &str) {
    let runtime = runtime();
    let mut heirs = Vec::new();
    for first in (0..MANY).step_by((MANY / HEIRS) as usize) {
        heirs.push(runtime.block_on(async {
            let mut wire = Wire::open(path).await;
            let handles = create_all(&mut wire, first..first + MANY / HEIRS).await;
            (wire, handles)
        }));
    }
    answer(|pid| {
        runtime.block_on(async {
            if pid.is_empty() {
                for (wire, handles) in &mut heirs {
                    handles.iter().for_each(|&handle| wire.push(acquire(handle, 1)));
                    wire.settle(handles[0]).await;
                }
                return Vec::new();
            }
            let start = Instant::now();
            let pid = Pid::from_raw(pid[0] as i32).expect("a process id");
            kill_process(pid, Signal::KILL).expect("it runs");
            for (wire, handles) in &mut heirs {
                for _ in handles {
                    granted(wire.next().await);
                }
            }
            let passed = since(start);
            for (wire, handles) in &mut heirs {
                handles.iter().for_each(|&handle| wire.push(release(handle, 1, 0)));
                wire.settle(handles[0]).await;
            }
            vec![passed]
        })
    });
}

/// S9: all who sleep are woken.
pub fn wake_ups(lab: &mut Lab) {
    let daemon = Daemon::start(lab.dir.path());
    let [even, odd] = [(); 2].map(|()| RefCell::new(daemon.client("sleeper", &[])));
    let notifier = RefCell::new(daemon.client("notifier", &[]));
    let event = RefCell::new(daemon.client("event", &[]));
    let mut relay = Pair::relay(lab.dir.path());
    // The sleepers of two processes in turns, so that each hand-off goes from one to the other.
    let notify = |n: u64| {
        let (mut even, mut odd) = (even.borrow_mut(), odd.borrow_mut());
        for _ in 0..n / 2 {
            even.ask(&[]);
            odd.ask(&[]);
        }
        even.tell(&[n / 2]);
        odd.tell(&[n / 2]);
        let figures = notifier.borrow_mut().ask(&[n]);
        even.answer();
        odd.answer();
        figures
    };
    let [few, all, relay, event_few, event_all] = lab.rounds([
        &mut || notify(1_000),
        &mut || notify(10_000),
        &mut || relay.handoff(10_000),
        &mut || event.borrow_mut().ask(&[1_000]),
        &mut || event.borrow_mut().ask(&[10_000]),
    ]);
    let rate = |each: &[f64]| each.iter().map(|nanos| 1e9 / nanos).collect::<Vec<_>>();
    let time = Unit::Time;
    let of_1000 = "of 1,000";

    let work = "notify_all to 10,000 waiters, until its reply";
    lab.row("S9", work, Unit::Rate, &rate(&all[0])).goal(WAKE_UPS);
    let work = "the same, each of 10,000";
    lab.row("S9", work, time, &all[0]).against(of_1000, &few[0]).goal(LINEAR);
    let work = "until all have had the lock in turn, each of 10,000";
    lab.row("S9", work, time, &all[1]).against(of_1000, &few[1]).goal(LINEAR);
    lab.row("S9", work, time, &all[1]).against("raw relay, a hand-off", &relay[0]);
    let work = "Event.set to 10,000 waiters, until all know";
    lab.row("S9", work, Unit::Rate, &rate(&event_all[0])).goal(WAKE_UPS);
    let work = "the same, each of 10,000";
    lab.row("S9", work, time, &event_all[0]).against(of_1000, &event_few[0]).goal(LINEAR);
}

async fn condition(wire: &mut Wire) -> (u32, u32) {
    let lock = wire.create("guard", lock()).await;
    let condition = Spec::Condition(ConditionSpec { lock });
    (lock, wire.create("condition", condition).await)
}

/// Role: asked for nothing, has one more owner wait for a notify; asked for n, has so many
/// woken, each of which releases the lock at once.
pub fn sleeper(path: &str) {
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    let (lock, handle) = runtime.block_on(condition(&mut wire));
    let mut owner = 0;
    answer(|n| {
        runtime.block_on(async {
            if n.is_empty() {
                owner += 1;
                wire.push(acquire(lock, owner));
                wire.push(Request::Wait(Wait { handle, owner, timeout_us: None }));
                wire.settle(lock).await;
                return;
            }
            for _ in 0..n[0] {
                let Some(Message::Woken(woken)) = wire.next().await.message else {
                    panic!("not woken")
                };
                let token = woken.granted.expect("woken with the lock").token;
                wire.push(release(lock, 0, token));
            }
            wire.settle(lock).await;
        });
        Vec::new()
    });
}

/// Role: asked for n, notifies all, and gives the time per waiter until the reply, and until
/// all n have had the lock: it queues again behind them.
pub fn notifier(path: &str) {
    let runtime = runtime();
    let mut wire = runtime.block_on(Wire::open(path));
    let (lock, handle) = runtime.block_on(condition(&mut wire));
    answer(|n| {
        runtime.block_on(async {
            wire.call(acquire(lock, 0)).await;
            let start = Instant::now();
            match wire.call(Request::Notify(Notify { handle, owner: 0, n: 0 })).await {
                Message::Done(done) => assert_eq!(u64::from(done.count), n[0]),
                other => panic!("not notified: {other:?}"),
            }
            let notified = since(start);
            wire.push(release(lock, 0, 0));
            wire.call(acquire(lock, 0)).await;
            let all = since(start);
            wire.push(release(lock, 0, 0));
            wire.settle(lock).await;
            vec![notified / n[0] as f64, all / n[0] as f64]
        })
    });
}

/// Role: asked for n, has so many wait for an event in one session, sets it by another, and
/// gives the time per waiter until the last one knows.
pub fn event(path: &str) {
    let runtime = runtime();
    let (mut setter, mut waiters) =
        runtime.block_on(async { (Wire::open(path).await, Wire::open(path).await) });
    let spec = || Spec::Event(EventSpec {});
    let handle = runtime.block_on(setter.create("event", spec()));
    let theirs = runtime.block_on(waiters.create("event", spec()));
    answer(|n| {
        runtime.block_on(async {
            setter.call(Request::EventClear(EventClear { handle })).await;
            for owner in 0..n[0] {
                let wait = EventWait { handle: theirs, owner, timeout_us: None };
                waiters.push(Request::EventWait(wait));
            }
            waiters.settle(theirs).await;
            let start = Instant::now();
            setter.push(Request::EventSet(EventSet { handle }));
            setter.flush().await;
            for _ in 0..n[0] {
                waiters.next().await;
            }
            let each = since(start) / n[0] as f64;
            setter.settle(handle).await;
            vec![each]
        })
    });
}
