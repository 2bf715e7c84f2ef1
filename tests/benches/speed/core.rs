//! The state machine alone, in this process: what a command costs before any byte moves.

use std::{sync::Arc, time::Instant};

use syncd_core::{
    Acquire, Answer, Body, Class, Config, Create, FencingToken, Handle, Limits, Message, Output,
    Owner, Process, Request, RequestId, SessionId, Space, Spec, Time,
};

use crate::{
    Lab,
    table::{Goal, Unit},
};

/// A namespace with one session.
struct Solo {
    space: Space,
    session: SessionId,
    last: u64,
    granted: Option<FencingToken>,
}

impl Solo {
    fn new() -> Solo {
        let limits = Limits { unacknowledged: 1, ..Limits::default() };
        let mut space = Space::new(Config { limits, ..Config::default() }, 1);
        let process = Process { pid: 1, uid: 0, command: "bench".into() };
        let session = space.handle_open(Time(0), process).expect("room for one");
        space.take_step();
        Solo { space, session, last: 0, granted: None }
    }

    /// As a connection's task does it: handle, then drain. Returns the last answer.
    fn handle(&mut self, request: Request) -> Option<Answer> {
        self.last += 1;
        let (time, id) = (Time(self.last), RequestId(self.last));
        self.space.handle_request(time, self.session, id, self.last, request);
        let mut last = None;
        let outputs = self.space.take_step().map(|step| step.outputs);
        for output in outputs.into_iter().flatten() {
            let Output::Send { message: Message { body: Body::Reply(_, reply), .. }, .. } = output
            else {
                continue;
            };
            last = reply.ok();
            if let Some(Answer::Granted(grant)) = &last {
                self.granted = Some(grant.token);
            }
        }
        last
    }

    fn create(&mut self, name: &str, spec: Spec) -> Handle {
        let name = Some(Arc::from(name));
        let (keep, poison, exclusive, secret) = Default::default();
        let create = Create { name, spec, keep, poison, exclusive, secret };
        match self.handle(Request::Create(create)) {
            Some(Answer::Attached(attachment)) => attachment.handle,
            other => panic!("no object: {other:?}"),
        }
    }

    fn lock(&mut self) -> Handle {
        self.create("lock", Spec::SemLock { class: Class::Lock, value: 1, max: 1 })
    }

    fn acquire(&mut self, handle: Handle, owner: u64) {
        let owner = Owner(owner);
        let (unowned, timeout, fail_on_deadlock) = Default::default();
        let acquire = Acquire { handle, owner, unowned, timeout, fail_on_deadlock };
        self.handle(Request::Acquire(acquire));
    }

    fn release(&mut self, handle: Handle, owner: u64) {
        let (owner, token) = (Owner(owner), self.granted);
        self.handle(Request::Release { handle, owner, token, quiet: true });
    }
}

/// The mean time of one of `n` steps, in nanoseconds.
fn mean(n: u64, mut step: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    (0..n).for_each(&mut step);
    start.elapsed().as_nanos() as f64 / n as f64
}

fn pairs() -> f64 {
    let mut solo = Solo::new();
    let lock = solo.lock();
    mean(1_000_000, |_| {
        solo.acquire(lock, 1);
        solo.release(lock, 1);
    })
}

/// One hand-off, with `n` waiters that take turns for ever.
fn handoffs(n: u64) -> f64 {
    let mut solo = Solo::new();
    let lock = solo.lock();
    (0..=n).for_each(|owner| solo.acquire(lock, owner));
    mean(1_000_000, |turn| {
        let owner = turn % (n + 1);
        solo.release(lock, owner);
        solo.acquire(lock, owner);
    })
}

/// What notify_all costs for each of `n` waiters.
fn notify(n: u64) -> f64 {
    let mut solo = Solo::new();
    let lock = solo.lock();
    let condition = solo.create("condition", Spec::Condition { lock });
    for owner in 1..=n {
        solo.acquire(lock, owner);
        solo.handle(Request::Wait { handle: condition, owner: Owner(owner), timeout: None });
    }
    solo.acquire(lock, 0);
    let start = Instant::now();
    solo.handle(Request::Notify { handle: condition, owner: Owner(0), n: None });
    start.elapsed().as_nanos() as f64 / n as f64
}

/// The core alone.
pub fn rows(lab: &mut Lab) {
    let [pair, one, many, few, all] = lab.rounds([
        &mut || vec![pairs()],
        &mut || vec![handoffs(1)],
        &mut || vec![handoffs(100_000)],
        &mut || vec![notify(1_000)],
        &mut || vec![notify(10_000)],
    ]);
    lab.row("core", "acquire + release", Unit::Time, &pair[0]).goal(Goal::AtMost(1_000.0));
    lab.row("core", "hand-off, 100,000 waiters", Unit::Time, &many[0]).against("1 waiter", &one[0]);
    lab.row("core", "notify_all, per waiter of 10,000", Unit::Time, &all[0])
        .against("of 1,000", &few[0]);
}
