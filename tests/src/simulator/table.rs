//! A `Space` with sessions that are all attached to the same few objects, for simulations that need
//! no model.

use std::sync::Arc;

use syncd_core::{
    Acquire, Answer, Attachment, Body, Config, Create, Handle, Output, Owner, Process, Record,
    Reply, Request, RequestId, SessionId, Space, Spec, Time,
};

use crate::steps::outputs;

/// Sessions around a table of objects.
#[derive(Debug)]
pub(super) struct Table {
    pub space: Space,
    pub now: Time,
    pub sessions: Vec<SessionId>,
    requests: Vec<u64>,
    /// Replies since the last look: whose, to which request.
    pub replies: Vec<(usize, u64, Reply)>,
    pub events: Vec<Record>,
}

impl Table {
    /// Opens as many sessions.
    pub fn new(sessions: usize) -> Self {
        let mut table = Table {
            space: Space::new(Config::default(), 1),
            now: Time(0),
            sessions: vec![],
            requests: vec![0; sessions],
            replies: vec![],
            events: vec![],
        };
        for pid in 0..sessions as u32 {
            let process = Process { pid, uid: 1, command: Arc::from("simulated") };
            table.sessions.push(table.space.handle_open(table.now, process).expect("room"));
            table.drain();
        }
        table
    }

    /// All attach to an object of that name, under a handle that is the same for all.
    pub fn object(&mut self, name: &str, spec: Spec) -> Handle {
        let handles: Vec<Handle> = (0..self.sessions.len())
            .map(|s| {
                let name = Some(Arc::from(name));
                let (keep, poison, exclusive, secret) = (false, false, false, 0);
                let create = Create { name, spec, keep, poison, exclusive, secret };
                self.ask(s, Request::Create(create));
                match self.replies.pop() {
                    Some((_, _, Ok(Answer::Attached(attached)))) => {
                        let Attachment { handle, .. } = *attached;
                        handle
                    }
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert!(handles.iter().all(|&handle| handle == handles[0]));
        handles[0]
    }

    /// A request, a nanosecond later; its id.
    pub fn ask(&mut self, s: usize, request: Request) -> u64 {
        self.now = Time(self.now.0 + 1);
        self.requests[s] += 1;
        let id = self.requests[s];
        self.space.handle_request(self.now, self.sessions[s], RequestId(id), 0, request);
        self.drain();
        id
    }

    pub fn acquire(&mut self, s: usize, owner: u64, handle: Handle, careful: bool) -> u64 {
        self.ask(
            s,
            Request::Acquire(Acquire {
                handle,
                owner: Owner(owner),
                unowned: false,
                timeout: None,
                fail_on_deadlock: careful,
            }),
        )
    }

    pub fn release(&mut self, s: usize, owner: u64, handle: Handle) {
        let owner = Owner(owner);
        self.ask(s, Request::Release { handle, owner, token: None, quiet: true });
    }

    pub fn drain(&mut self) {
        let outputs = outputs(&mut self.space, self.now);
        self.hear(outputs);
    }

    fn hear(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Record(event) => self.events.push(event),
                Output::Ready { .. } => {}
                Output::Send { session, message } => {
                    let s = self.sessions.iter().position(|&id| id == session).expect("of ours");
                    if let Body::Reply(id, reply) = message.body {
                        self.replies.push((s, id.0, reply));
                    }
                }
            }
        }
    }
}
