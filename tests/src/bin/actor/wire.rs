//! A session by plain gRPC: generated messages over one stream, and nothing of syncd's client. It
//! can say all that the wire can.

mod words;

use std::{
    collections::{HashMap, HashSet},
    env,
};

use syncd_proto::v1::{
    Acquire, Attach, Attached, BarrierAbort, BarrierAction, BarrierReset, BarrierSpec, BarrierWait,
    Cancel, ClientMessage, ConditionSpec, Create, Detach, EventClear, EventSet, EventSpec,
    EventWait, Forget, Goodbye, MarkConsistent, Notify, Open, Opened, Query, Release, SemLockClass,
    SemLockSpec, ServerMessage, Unlink, Wait, attach, attached, broker_client::BrokerClient,
    client_message::Request, create, server_message::Message,
};
use syncd_tests::{
    daemon::connect,
    script::{Kind, Object, Op},
};
use tokio::sync::mpsc;
use tonic::Streaming;
use words::{granted, refusal};

use super::{Line, lines, pids, say};

struct Session {
    namespace: String,
    stream: Option<Stream>,
    opened: Opened,
    last_id: u64,
    received: u64,
    declared: HashMap<String, (Object, Option<String>)>,
    handles: HashMap<String, u32>,
    /// Whose requests are on their way, and about what.
    asked: HashMap<u64, (u64, Op)>,
    latest: HashMap<u64, u64>,
    /// Held permits, latest last; `None`: an unowned one.
    holds: HashMap<(u64, String), Vec<Option<u64>>>,
    lost: HashSet<u64>,
    over: bool,
}

struct Stream {
    requests: mpsc::UnboundedSender<ClientMessage>,
    replies: Streaming<ServerMessage>,
}

/// Runs until the end of input.
pub fn run(namespace: String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (sender, mut received) = mpsc::unbounded_channel();
    std::thread::spawn(move || lines().into_iter().for_each(|line| drop(sender.send(line))));
    runtime.expect("a runtime").block_on(async {
        let mut session = Session::new(namespace);
        session.connect().await;
        loop {
            tokio::select! {
                line = received.recv() => match line {
                    Some(Line::Object { object, by }) => {
                        session.declared.insert(object.name.clone(), (object, by));
                    }
                    Some(Line::Do { owner, op }) => {
                        if let Err(why) = session.perform(owner, op).await {
                            say(owner, &why);
                        }
                    }
                    None => return,
                },
                message = next(&mut session.stream) => session.hear(message),
            }
        }
    });
}

/// The next message; never, without a stream.
async fn next(stream: &mut Option<Stream>) -> Option<ServerMessage> {
    match stream {
        Some(stream) => stream.replies.message().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

impl Session {
    fn new(namespace: String) -> Self {
        Session {
            namespace,
            stream: None,
            opened: Opened::default(),
            last_id: 0,
            received: 0,
            declared: HashMap::new(),
            handles: HashMap::new(),
            asked: HashMap::new(),
            latest: HashMap::new(),
            holds: HashMap::new(),
            lost: HashSet::new(),
            over: false,
        }
    }

    /// Opens the session, or resumes it.
    async fn connect(&mut self) {
        let socket = env::var_os("SYNCD_SOCKET").expect("SYNCD_SOCKET");
        let channel = connect(socket.as_ref()).await.expect("a daemon");
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let open = Open {
            protocol: syncd_proto::PROTOCOL,
            namespace: self.namespace.clone(),
            label: String::new(),
            resume_key: self.opened.resume_key.clone(),
            resume_seq: self.received,
            ..Open::default()
        };
        let open = ClientMessage { request: Some(Request::Open(open)), ..Default::default() };
        requests.send(open).expect("to ourselves");
        let outgoing = futures_util::stream::poll_fn(move |cx| outgoing.poll_recv(cx));
        let replies = BrokerClient::new(channel).session(outgoing).await.expect("a stream");
        let mut stream = Stream { requests, replies: replies.into_inner() };
        match stream.replies.message().await.expect("an answer").and_then(|reply| reply.message) {
            Some(Message::Opened(opened)) if opened.resume_key.is_empty() => {
                self.opened.last_id = opened.last_id
            }
            Some(Message::Opened(opened)) => self.opened = opened,
            other => panic!("no session: {other:?}"),
        }
        self.stream = Some(stream);
    }

    fn send(&mut self, request: Request) -> u64 {
        self.last_id += 1;
        let message = ClientMessage { id: self.last_id, ack: 0, request: Some(request) };
        if let Some(stream) = &self.stream {
            let _ = stream.requests.send(message);
        }
        self.last_id
    }

    /// Asks, and reads until the answer is there.
    async fn call(&mut self, request: Request) -> Message {
        let id = self.send(request);
        loop {
            match next(&mut self.stream).await {
                Some(ServerMessage { seq, id: answered, message: Some(message) })
                    if answered == id =>
                {
                    self.received = seq;
                    return message;
                }
                other => self.hear(other),
            }
        }
    }

    async fn handle(&mut self, name: &str) -> Result<u32, String> {
        if let Some(&handle) = self.handles.get(name) {
            return Ok(handle);
        }
        let (object, by) = self.declared.get(name).expect("declared first").clone();
        let request = match by {
            Some(key) => Request::Attach(Attach { by: Some(attach::By::Key(key)) }),
            None => Request::Create(self.create(&object, false).await?),
        };
        match self.call(request).await {
            Message::Attached(attached) => Ok(self.attached(name, &attached)),
            Message::Error(error) => Err(refusal(&error)),
            other => Err(format!("{other:?}")),
        }
    }

    fn attached(&mut self, name: &str, attached: &Attached) -> u32 {
        self.handles.insert(name.to_owned(), attached.handle);
        let object = &self.declared[name].0;
        if let (Some(attached::Spec::Condition(spec)), Kind::Condition { lock }) =
            (&attached.spec, &object.kind)
        {
            self.handles.insert(lock.clone(), spec.lock);
        }
        if object.anonymous {
            println!("key {name} {}", attached.key);
        }
        attached.handle
    }

    async fn create(&mut self, object: &Object, exclusive: bool) -> Result<Create, String> {
        let sem = |class: SemLockClass, value: u32, max: u32| {
            create::Spec::SemLock(SemLockSpec { class: class.into(), value, max })
        };
        let spec = match &object.kind {
            Kind::Lock => sem(SemLockClass::Lock, 0, 0),
            Kind::RLock => sem(SemLockClass::Rlock, 0, 0),
            Kind::Semaphore { value, max } => sem(SemLockClass::Semaphore, *value, *max),
            Kind::BoundedSemaphore { value } => sem(SemLockClass::BoundedSemaphore, *value, 0),
            Kind::Condition { lock } => {
                let lock = Box::pin(self.handle(lock)).await?;
                create::Spec::Condition(ConditionSpec { lock })
            }
            Kind::Event => create::Spec::Event(EventSpec {}),
            Kind::Barrier { parties } => create::Spec::Barrier(BarrierSpec { parties: *parties }),
        };
        Ok(Create {
            name: if object.anonymous { String::new() } else { object.name.clone() },
            spec: Some(spec),
            keep: object.keep,
            poison: object.poison,
            exclusive,
        })
    }

    async fn perform(&mut self, owner: u64, op: Op) -> Result<(), String> {
        match &op {
            Op::Valid { object } => {
                let held = self.holds.get(&(owner, object.clone())).and_then(|held| held.last());
                let token = held.ok_or("it never held it")?;
                let lost = self.over || token.is_some_and(|token| self.lost.contains(&token));
                say(owner, &(!lost).to_string());
                return Ok(());
            }
            Op::Open { object } => {
                self.handle(object).await?;
                say(owner, "ok");
                return Ok(());
            }
            Op::Disconnect => {
                self.stream = None;
                return Ok(());
            }
            Op::Resume => {
                self.connect().await;
                return Ok(());
            }
            _ => {}
        }
        let request = self.request(owner, &op).await?;
        let id = self.send(request);
        if !matches!(op, Op::Cancel { .. }) {
            self.latest.insert(owner, id);
            self.asked.insert(id, (owner, op));
        }
        Ok(())
    }

    async fn request(&mut self, owner: u64, op: &Op) -> Result<Request, String> {
        let handle = match op {
            Op::Create { .. } | Op::Attach { .. } | Op::Unlink { .. } => 0,
            _ => match op.object() {
                Some(object) => self.handle(object).await?,
                None => 0,
            },
        };
        let us = |timeout: Option<std::time::Duration>| timeout.map(|t| t.as_micros() as u64);
        let quiet = false;
        Ok(match op.clone() {
            Op::Acquire { unowned, timeout, unless_deadlock: fail_on_deadlock, .. } => {
                let timeout_us = us(timeout);
                Request::Acquire(Acquire { handle, owner, unowned, timeout_us, fail_on_deadlock })
            }
            Op::Release { object, bare } => {
                let held = self.holds.entry((owner, object)).or_default();
                let token =
                    if bare { 0 } else { held.pop().ok_or("it holds nothing")?.unwrap_or(0) };
                Request::Release(Release { handle, owner, token, quiet })
            }
            Op::Forget { object } => {
                let held = self.holds.entry((owner, object)).or_default().last_mut();
                let token = held.and_then(Option::take).ok_or("it holds no permit")?;
                Request::Forget(Forget { handle, owner, token, quiet })
            }
            Op::Mark { .. } => Request::MarkConsistent(MarkConsistent { handle, owner }),
            Op::Query { .. } => Request::Query(Query { handle }),
            Op::Wait { timeout, .. } => {
                Request::Wait(Wait { handle, owner, timeout_us: us(timeout) })
            }
            Op::Notify { n, .. } => Request::Notify(Notify { handle, owner, n: n.unwrap_or(0) }),
            Op::Set { .. } => Request::EventSet(EventSet { handle }),
            Op::Clear { .. } => Request::EventClear(EventClear { handle }),
            Op::Await { timeout, .. } => {
                Request::EventWait(EventWait { handle, owner, timeout_us: us(timeout) })
            }
            Op::Meet { timeout, acting: has_action, .. } => {
                let timeout_us = us(timeout);
                Request::BarrierWait(BarrierWait { handle, owner, timeout_us, has_action })
            }
            Op::Act { ok, .. } => Request::BarrierAction(BarrierAction { handle, owner, ok }),
            Op::Reset { .. } => Request::BarrierReset(BarrierReset { handle }),
            Op::Abort { .. } => Request::BarrierAbort(BarrierAbort { handle }),
            Op::Create { object, exclusive } => {
                let object = self.declared[&object].0.clone();
                Request::Create(self.create(&object, exclusive).await?)
            }
            Op::Attach { object, by_key } => {
                let by = match self.declared[&object].1.clone().filter(|_| by_key) {
                    Some(key) => attach::By::Key(key),
                    None => attach::By::Name(object),
                };
                Request::Attach(Attach { by: Some(by) })
            }
            Op::Detach { .. } => Request::Detach(Detach { handle, quiet }),
            Op::Unlink { object } => Request::Unlink(Unlink { name: object }),
            Op::Cancel { give_back } => {
                let id = *self.latest.get(&owner).ok_or("it asked for nothing")?;
                Request::Cancel(Cancel { id, give_back })
            }
            Op::Leave => Request::Goodbye(Goodbye {}),
            Op::Valid { .. } | Op::Open { .. } | Op::Disconnect | Op::Resume => {
                unreachable!("no request")
            }
        })
    }

    fn hear(&mut self, message: Option<ServerMessage>) {
        let Some(ServerMessage { seq, id, message: Some(message) }) = message else {
            (self.stream, self.over) = (None, true);
            return;
        };
        self.received = self.received.max(seq);
        match message {
            Message::HoldLost(lost) => drop(self.lost.insert(lost.token)),
            Message::SessionEnd(_) => self.over = true,
            message => {
                let (owner, op) = self.asked.remove(&id).expect("an answer to a request");
                let outcome = self.outcome(owner, &op, message);
                say(owner, &outcome);
            }
        }
    }

    fn outcome(&mut self, owner: u64, op: &Op, message: Message) -> String {
        let name = op.object().unwrap_or_default().to_owned();
        match message {
            Message::Done(done) => match op {
                Op::Notify { .. } | Op::Set { .. } => format!("ok {}", done.count),
                _ => "ok".into(),
            },
            Message::Granted(grant) => {
                let unowned = matches!(op, Op::Acquire { unowned: true, .. });
                let held = self.holds.entry((owner, name)).or_default();
                held.push((!unowned).then_some(grant.token));
                granted("granted", &grant)
            }
            Message::Woken(woken) => {
                let grant = woken.granted.unwrap_or_default();
                let Kind::Condition { lock } = &self.declared[&name].0.kind else {
                    return format!("{name} is no Condition");
                };
                let held = vec![Some(grant.token); grant.depth as usize];
                self.holds.insert((owner, lock.clone()), held);
                granted(if woken.notified { "notified" } else { "unnotified" }, &grant)
            }
            Message::Attached(attached) => {
                self.attached(&name, &attached);
                if attached.created { "created" } else { "attached" }.into()
            }
            Message::BarrierPassed(passed) => {
                format!("passed {}{}", passed.index, if passed.run_action { " acting" } else { "" })
            }
            Message::State(state) => {
                let held =
                    state.holders.iter().filter_map(|holder| Some(holder.process.as_ref()?.pid));
                format!(
                    "value {} waiters {}{}{}",
                    state.value,
                    state.waiters,
                    if state.broken { " broken" } else { "" },
                    pids(" held", held)
                )
            }
            Message::Error(error) => refusal(&error),
            other => format!("{other:?}"),
        }
    }
}
