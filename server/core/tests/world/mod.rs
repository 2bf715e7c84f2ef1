//! A `Space` with sessions that make requests and collect the outputs.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{collections::BTreeMap, sync::Arc};

use syncd_core::{
    Acquire, Answer, Body, Config, Create, Cycle, Error, FencingToken, Grant, Handle, Limits,
    Output, Owner, Process, Reason, RecordKind, Reply, Request, RequestId, SessionId, Space, Spec,
    Step, Time,
};

pub struct World {
    pub space: Space,
    pub now: Time,
    pub ids: BTreeMap<SessionId, u64>,
    pub replies: Vec<(SessionId, u64, Reply)>,
    pub deadlocks: Vec<Cycle>,
    pub steps: Vec<Step>,
}

impl World {
    pub fn new(step: u32) -> Self {
        World::with(Limits { step, shared: true, ..Limits::default() })
    }

    pub fn with(limits: Limits) -> Self {
        World {
            space: Space::new(Config { limits, ..Config::default() }, 1),
            now: Time(0),
            ids: BTreeMap::new(),
            replies: vec![],
            deadlocks: vec![],
            steps: vec![],
        }
    }

    pub fn open(&mut self) -> SessionId {
        self.open_as(1).unwrap()
    }

    /// A session that was sent `messages` messages and has acknowledged none.
    pub fn told(&mut self, messages: u64) -> SessionId {
        let session = self.open();
        let event = self.object(session, "event", Spec::Event);
        for _ in 1..messages {
            self.answer(session, Request::EventSet { handle: event }).unwrap();
        }
        session
    }

    pub fn open_as(&mut self, uid: u32) -> Result<SessionId, Box<Error>> {
        let pid = self.ids.len() as u32 + 1;
        let process = Process { pid, uid, command: Arc::from("test") };
        let session = self.space.handle_open(self.now, process);
        if let Ok(session) = session {
            self.ids.insert(session, 0);
        }
        self.hear();
        session
    }

    /// Takes the step, and collects its outputs.
    pub fn hear(&mut self) {
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

    pub fn ask(&mut self, session: SessionId, request: Request) -> u64 {
        self.now = Time(self.now.0 + 1);
        let id = self.ids.get_mut(&session).unwrap();
        *id += 1;
        let id = *id;
        self.space.handle_request(self.now, session, RequestId(id), 0, request);
        self.hear();
        id
    }

    /// Makes a request; returns whether it succeeded, if it was answered at once.
    pub fn outcome(&mut self, session: SessionId, request: Request) -> Option<bool> {
        let id = self.ask(session, request);
        self.reply(session, id).map(|reply| reply.is_ok())
    }

    /// Makes a request that is answered in the same step, and returns the answer.
    pub fn answer(&mut self, session: SessionId, request: Request) -> Reply {
        let id = self.ask(session, request);
        self.reply(session, id).expect("an answer")
    }

    pub fn reply(&mut self, session: SessionId, id: u64) -> Option<Reply> {
        let found =
            self.replies.iter().position(|(whom, which, _)| (*whom, *which) == (session, id));
        found.map(|at| self.replies.remove(at).2)
    }

    pub fn object(&mut self, session: SessionId, name: &str, spec: Spec) -> Handle {
        match self.answer(session, create(name, spec, false)) {
            Ok(Answer::Attached(attachment)) => attachment.handle,
            other => panic!("{other:?}"),
        }
    }

    pub fn is_at_work(&self) -> bool {
        self.space.poll_timeout().is_some_and(|due| due.reason == Reason::Work)
    }

    /// Continues the work once; false if there was none.
    pub fn piece(&mut self) -> bool {
        let more = self.is_at_work();
        if more {
            self.space.handle_work(self.now);
            self.hear();
        }
        more
    }

    pub fn finish(&mut self) {
        while self.piece() {}
    }
}

pub fn create(name: &str, spec: Spec, poison: bool) -> Request {
    let (keep, exclusive, secret) = Default::default();
    Request::Create(Create { name: Some(name.into()), spec, keep, poison, exclusive, secret })
}

pub fn acquire(handle: Handle, owner: u64) -> Request {
    let (unowned, timeout, fail_on_deadlock) = (false, None, false);
    Request::Acquire(Acquire { handle, owner: Owner(owner), unowned, timeout, fail_on_deadlock })
}

pub fn release(handle: Handle, owner: u64, token: Option<FencingToken>) -> Request {
    Request::Release { handle, owner: Owner(owner), token, quiet: false }
}

pub fn meet(handle: Handle, owner: u64, has_action: bool) -> Request {
    Request::BarrierWait { handle, owner: Owner(owner), timeout: None, has_action }
}

pub fn granted(reply: Option<Reply>) -> Grant {
    match reply {
        Some(Ok(Answer::Granted(grant) | Answer::Woken { grant, .. })) => grant,
        other => panic!("{other:?}"),
    }
}
