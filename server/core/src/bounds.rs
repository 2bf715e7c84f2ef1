//! Tests that every call is bounded: makes each kind of call in a world with 1, 1,000 and 100,000
//! of everything, and counts the entries that it visits (not the time).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    Acquire, Answer, Body, Cause, Class, Create, Cycle, FencingToken, Handle, Limits, ListQuery,
    ObjectId, Output, Owner, Process, Reason, Request, RequestId, SessionId, Space, Spec, Time,
    arena::take_visits,
};

const STEP: u32 = 64;
/// The most visits of one call: each piece of a step takes some twenty, and a search for a cycle
/// follows its edges twice.
const MOST: u64 = 32 * STEP as u64 + 8 * Cycle::LONGEST as u64;
/// The most visits of a getter: a page of names, a thousand holders and waiters.
const MOST_SEEN: u64 = 20_000;

const OWNER: Owner = Owner(1);

/// A namespace with `n` of everything, most of it the crowd's.
#[derive(Clone)]
struct World {
    n: u64,
    space: Space,
    now: Time,
    requests: BTreeMap<SessionId, u64>,
    crowd: SessionId,
    other: SessionId,
    /// By name, the same in both sessions.
    handles: BTreeMap<&'static str, Handle>,
    ids: BTreeMap<&'static str, ObjectId>,
    /// The last grant of each object to a session.
    tokens: BTreeMap<(SessionId, Handle), FencingToken>,
    /// A wait of the crowd for a notify, and the crowd's first unacknowledged grant.
    wait: u64,
    grant: u64,
    /// The last message to the crowd.
    said: u64,
}

impl World {
    fn new(n: u64) -> Self {
        let limits = Limits {
            step: STEP,
            shared: true,
            waiters: 1 << 22,
            waiters_per_session: 1 << 21,
            unacknowledged_per_session: usize::MAX,
            unacknowledged: usize::MAX,
            ..Limits::default()
        };
        let config = crate::Config { limits, ..crate::Config::default() };
        let mut space = Space::new(config, 1);
        let mut open = |pid| {
            let process = Process { pid, uid: 1, command: Arc::from("test") };
            let id = space.handle_open(Time(0), process).unwrap();
            space.take_step();
            id
        };
        let (crowd, other) = (open(1), open(2));
        let mut world = World {
            n,
            space,
            now: Time(0),
            requests: BTreeMap::new(),
            crowd,
            other,
            handles: BTreeMap::new(),
            ids: BTreeMap::new(),
            tokens: BTreeMap::new(),
            wait: 0,
            grant: 0,
            said: 0,
        };
        world.furnish();
        world.crowd(n);
        world.work_off();
        world.space.check();
        world
    }

    /// One object of each kind, to which both sessions are attached.
    fn furnish(&mut self) {
        let sem = |class, value| Spec::SemLock { class, value, max: u32::MAX >> 1 };
        let named = |lock| Spec::Condition { lock };
        for (name, spec) in [
            ("lock", sem(Class::Lock, 1)),
            ("free", sem(Class::Lock, 1)),
            ("inner", sem(Class::Lock, 1)),
            ("condition", named(Handle(2))),
            ("many", sem(Class::Semaphore, 1 << 30)),
            ("none", sem(Class::Semaphore, 0)),
            ("event", Spec::Event),
            ("meeting", Spec::Barrier { parties: u32::MAX }),
            ("alone", Spec::Barrier { parties: 1 }),
        ] {
            for session in [self.crowd, self.other] {
                let create = self.create(session, name, spec);
                assert_eq!(*self.handles.entry(name).or_insert(create), create, "{name}");
            }
            self.ids.insert(name, self.space.find(name).unwrap());
        }
    }

    fn crowd(&mut self, n: u64) {
        let (crowd, other) = (self.crowd, self.other);
        let [lock, inner, condition, many, none, event, meeting, alone] =
            ["lock", "inner", "condition", "many", "none", "event", "meeting", "alone"]
                .map(|name| self.handles[name]);
        self.ask(other, acquire(lock, OWNER, None));
        // A barrier of one whose action runs: each later party is a full barrier.
        let meet = |handle, owner, has_action| Request::BarrierWait {
            handle,
            owner,
            timeout: None,
            has_action,
        };
        self.ask(other, meet(alone, OWNER, true));
        // A chain: each owner holds its lock and waits for the next one's.
        let mut chain: Vec<Handle> = Vec::new();
        for i in 0..n {
            let owner = Owner(1_000 + i);
            let name: &'static str = Box::leak(format!("chain {i}").into_boxed_str());
            let spec = Spec::SemLock { class: Class::Lock, value: 1, max: 1 };
            let handle = self.create(crowd, name, spec);
            self.ask(crowd, acquire(handle, owner, None));
            chain.push(handle);
        }
        for (i, pair) in chain.windows(2).enumerate() {
            self.ask(crowd, acquire(pair[1], Owner(1_000 + i as u64), None));
        }
        self.handles.insert("chain", chain[0]);
        let name = "chain 0";
        let there = self.ask(other, Request::AttachName(name.into()));
        self.handles.insert("chain for the other", attached(&there));
        for i in 0..n {
            let owner = Owner(10_000_000 + i);
            self.create_anonymous(crowd);
            self.ask(crowd, acquire(lock, owner, Some(Duration::from_secs(5))));
            self.ask(crowd, acquire(none, owner, None));
            self.ask(crowd, acquire(inner, owner, None));
            let timeout = Some(Duration::from_secs(5));
            self.wait = self.ask_for(crowd, Request::Wait { handle: condition, owner, timeout });
            self.ask(crowd, Request::EventWait { handle: event, owner, timeout: None });
            self.ask(crowd, meet(meeting, owner, false));
            self.ask(crowd, meet(alone, owner, false));
            let id = self.ask_for(crowd, acquire(many, OWNER, None));
            if i == 0 {
                self.grant = id;
            }
        }
        // A hold of another owner, among all of those.
        self.ask(crowd, acquire(many, Owner(2), None));
        self.ask(other, acquire(many, OWNER, None));
        self.ask(other, acquire(inner, OWNER, None));
    }

    fn create(&mut self, session: SessionId, name: &'static str, spec: Spec) -> Handle {
        attached(&self.ask(session, create(Some(name), spec)))
    }

    fn create_anonymous(&mut self, session: SessionId) {
        self.ask(session, create(None, Spec::Event));
    }

    fn ask_for(&mut self, session: SessionId, request: Request) -> u64 {
        self.ask(session, request);
        self.requests[&session]
    }

    /// Makes a request, and returns its outputs.
    fn ask(&mut self, session: SessionId, request: Request) -> Vec<Output> {
        let handle = match &request {
            Request::Acquire(acquire) => Some(acquire.handle),
            _ => None,
        };
        self.now = Time(self.now.0 + 1);
        let id = self.requests.entry(session).or_default();
        *id += 1;
        self.space.handle_request(self.now, session, RequestId(*id), 0, request);
        let outputs = self.space.take_step().unwrap().outputs;
        for output in &outputs {
            let Output::Send { session: whom, message } = output else { continue };
            if *whom == self.crowd {
                self.said = message.seq;
            }
            if let (Body::Reply(_, Ok(Answer::Granted(grant))), Some(handle)) =
                (&message.body, handle)
            {
                self.tokens.insert((*whom, handle), grant.token);
            }
        }
        outputs
    }

    fn is_at_work(&self) -> bool {
        self.space.poll_timeout().is_some_and(|due| due.reason == Reason::Work)
    }

    fn work_off(&mut self) {
        while self.is_at_work() {
            self.space.handle_work(self.now);
            self.space.take_step();
        }
    }

    /// Makes a call in a copy of this world, and the work that it leaves; asserts that each visits
    /// at most [`MOST`] entries.
    fn costs(&self, what: &str, call: impl FnOnce(&mut World)) {
        let mut world = self.clone();
        let measure = |what: &str| {
            let visits = take_visits();
            assert!(visits <= MOST, "{what} visits {visits} entries, more than {MOST}");
        };
        take_visits();
        call(&mut world);
        measure(what);
        while world.is_at_work() {
            world.space.handle_work(world.now);
            world.space.take_step();
            measure(&format!("the work that {what} leaves"));
        }
        if self.n <= 1_000 {
            world.space.check();
        }
        take_visits();
    }
}

fn attached(outputs: &[Output]) -> Handle {
    let handle = outputs.iter().find_map(|output| match output {
        Output::Send { message, .. } => match &message.body {
            Body::Reply(_, Ok(Answer::Attached(attachment))) => Some(attachment.handle),
            _ => None,
        },
        _ => None,
    });
    handle.unwrap_or_else(|| panic!("not attached: {outputs:?}"))
}

fn create(name: Option<&str>, spec: Spec) -> Request {
    let (keep, poison, exclusive, secret) = Default::default();
    Request::Create(Create { name: name.map(Arc::from), spec, keep, poison, exclusive, secret })
}

fn acquire(handle: Handle, owner: Owner, timeout: Option<Duration>) -> Request {
    let (unowned, fail_on_deadlock) = (false, false);
    Request::Acquire(Acquire { handle, owner, unowned, timeout, fail_on_deadlock })
}

#[test]
fn no_call_costs_more_than_a_step_however_much_there_is() {
    for n in [1, 1_000, 100_000] {
        requests(&World::new(n));
    }
}

fn requests(world: &World) {
    let (crowd, other) = (world.crowd, world.other);
    let handle = |name: &str| world.handles[name];
    let token = |session, name: &str| world.tokens[&(session, handle(name))];
    let ask = |what: &str, session, request: Request| {
        world.costs(what, |world| drop(world.ask(session, request)));
    };
    let lock = Spec::SemLock { class: Class::Lock, value: 1, max: 1 };
    ask("Create", other, create(Some("new"), lock));
    ask("Create of what is there", other, create(Some("chain 0"), lock));
    ask("AttachName", other, Request::AttachName("chain 0".into()));
    for name in ["lock", "condition", "inner", "many", "none", "event", "meeting", "alone"] {
        let detach = Request::Detach { handle: handle(name), quiet: false };
        ask(&format!("Detach from {name}"), crowd, detach.clone());
        ask(&format!("Detach from {name}"), other, detach);
        ask("Query", other, Request::Query { handle: handle(name) });
        ask("Unlink", other, Request::Unlink { name: name.into() });
        world.costs("ForceRelease", |world| {
            world.space.handle_force_release(world.now, world.ids[name]);
            world.space.take_step();
        });
        let detail = {
            take_visits();
            world.space.describe(world.now, world.ids[name])
        };
        assert!(detail.is_some() && take_visits() <= MOST_SEEN);
    }
    ask("Acquire of what is free", other, acquire(handle("free"), OWNER, None));
    ask("Acquire", other, acquire(handle("none"), Owner(7), None));
    ask("Acquire before a chain", other, acquire(handle("chain for the other"), OWNER, None));
    let careful = Acquire {
        handle: handle("chain for the other"),
        owner: OWNER,
        unowned: false,
        timeout: None,
        fail_on_deadlock: true,
    };
    ask("Acquire with care", other, Request::Acquire(careful));
    ask("Acquire that tries", other, acquire(handle("inner"), OWNER, Some(Duration::ZERO)));
    let release = |name: &str, owner, token| Request::Release {
        handle: handle(name),
        owner,
        token,
        quiet: false,
    };
    ask("Release", other, release("lock", OWNER, Some(token(other, "lock"))));
    ask("Release of a semaphore", other, release("many", OWNER, Some(token(other, "many"))));
    ask("a Release without a token", crowd, release("many", Owner(2), None));
    ask("a Release without a token for another", other, release("many", Owner(9), None));
    let forget = Request::Forget {
        handle: handle("many"),
        owner: OWNER,
        token: token(other, "many"),
        quiet: false,
    };
    ask("Forget", other, forget);
    ask("MarkConsistent", other, Request::MarkConsistent { handle: handle("lock"), owner: OWNER });
    ask("EventSet", other, Request::EventSet { handle: handle("event") });
    ask("EventClear", other, Request::EventClear { handle: handle("event") });
    let wait = |timeout| Request::EventWait { handle: handle("event"), owner: OWNER, timeout };
    ask("EventWait", other, wait(None));
    let meet = |name: &str, timeout| Request::BarrierWait {
        handle: handle(name),
        owner: OWNER,
        timeout,
        has_action: false,
    };
    ask("BarrierWait", other, meet("meeting", None));
    ask("BarrierWait that breaks it", other, meet("meeting", Some(Duration::ZERO)));
    ask("BarrierReset", other, Request::BarrierReset { handle: handle("meeting") });
    ask("BarrierAbort", other, Request::BarrierAbort { handle: handle("meeting") });
    for ok in [true, false] {
        let action = Request::BarrierAction { handle: handle("alone"), owner: OWNER, ok };
        ask("BarrierAction", other, action);
    }
    conditions(world);
    let cancel = |request, give_back| Request::Cancel { request: RequestId(request), give_back };
    ask("Cancel of a wait", crowd, cancel(world.wait, true));
    ask("Cancel of a wait that goes on to the lock", crowd, cancel(world.wait, false));
    ask("Cancel of a grant", crowd, cancel(world.grant, true));
    ask("Goodbye", crowd, Request::Goodbye);
    calls(world);
    views(world);
}

/// Calls that need the condition's lock, for which the crowd waits.
fn conditions(world: &World) {
    let (handle, other) = (world.handles["condition"], world.other);
    let mut world = world.clone();
    let inner = world.handles["inner"];
    while world.space.describe(world.now, world.ids["inner"]).unwrap().holders[0].party.session
        != other
    {
        let held = world.space.describe(world.now, world.ids["inner"]).unwrap().holders[0].clone();
        let (owner, token) = (held.party.owner, Some(held.token));
        let release = Request::Release { handle: inner, owner, token, quiet: true };
        world.ask(world.crowd, release);
        world.work_off();
    }
    let notify = |n| Request::Notify { handle, owner: OWNER, n };
    world.costs("Notify of all", |world| drop(world.ask(other, notify(None))));
    world.costs("Notify", |world| drop(world.ask(other, notify(Some(1)))));
    let wait = Request::Wait { handle, owner: OWNER, timeout: None };
    world.costs("Wait", |world| drop(world.ask(other, wait)));
}

/// The calls that aren't requests.
fn calls(world: &World) {
    let crowd = world.crowd;
    world.costs("an Ack of all", |world| {
        let (now, id, said) = (world.now, RequestId(0), world.said);
        world.space.handle_request(now, crowd, id, said, Request::Ack);
        world.space.take_step();
    });
    world.costs("a session's death", |world| {
        world.space.handle_lost(world.now, crowd, Cause::Died);
        world.space.take_step();
    });
    world.costs("a disconnect and a resume", |world| {
        world.space.handle_disconnect(world.now, crowd);
        world.space.take_step();
        world.space.handle_resume(world.now, crowd, 0).unwrap();
        world.space.take_step();
    });
    world.costs("time-outs", |world| {
        world.now = world.now + Duration::from_secs(10);
        world.space.handle_timeout(world.now);
        world.space.take_step();
    });
}

fn views(world: &World) {
    take_visits();
    for busy in [true, false] {
        let mut after = None;
        loop {
            let query = ListQuery { prefix: "", busy, after: after.as_deref(), limit: 1_000 };
            let (_, next) = world.space.list(world.now, query);
            assert!(take_visits() <= MOST_SEEN, "a page of a list");
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    world.space.session(world.now, world.crowd).unwrap();
    world.space.sessions(world.now, None, 100);
    assert!(take_visits() <= MOST_SEEN, "a session's view");
}
