//! A daemon that is killed and comes back with all that it knew: the real core behind real
//! sockets, its state in the memory of the test. So what clients do about a restart can be seen
//! without what a daemon does for it. Never here: processes and their deaths, quotas.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::stream::{Stream, poll_fn};
use syncd::convert;
use syncd_client::{Builder, Client, Endpoint};
use syncd_core::{
    Cause, Config, Input, Limits, Output, Process, RecordKind, RequestId, SessionId, Space, Time,
};
use syncd_proto::v1::{
    ClientMessage, Error, ErrorCode, Open, Opened, ServerMessage,
    broker_server::{Broker, BrokerServer},
    client_message::Request,
    server_message::Message,
};
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    runtime::Runtime,
    sync::mpsc::{self, UnboundedSender},
};
use tonic::{Response, Status, Streaming, async_trait, transport::Server};

/// See the [module](self).
#[derive(Debug)]
pub struct Phoenix {
    dir: TempDir,
    kept: Kept,
    running: Option<Runtime>,
}

type Outgoing = UnboundedSender<Result<ServerMessage, Status>>;

/// What outlives a daemon.
#[derive(Clone, Debug)]
struct Kept(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    space: Space,
    begun: Instant,
    sessions: BTreeMap<SessionId, Session>,
}

#[derive(Debug, Default)]
struct Session {
    attempt: u64,
    /// How many streams it has had.
    streams: u64,
    outgoing: Option<Outgoing>,
}

impl Phoenix {
    /// One that lives, with nothing in it.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn start() -> Self {
        let config = Config {
            grace: Duration::from_secs(10),
            linger: Duration::from_secs(10),
            limits: Limits::default(),
        };
        let space = Space::new(config, 1000);
        let state = State { space, begun: Instant::now(), sessions: BTreeMap::new() };
        let kept = Kept(Arc::new(Mutex::new(state)));
        let dir = tempfile::tempdir().expect("a directory");
        let mut phoenix = Self { dir, kept, running: None };
        phoenix.rise();
        phoenix
    }

    /// Where it listens, if it does.
    ///
    /// # Panics
    /// Never.
    pub fn endpoint(&self) -> Endpoint {
        let path = self.dir.path().join("s");
        path.to_str().and_then(|path| path.parse().ok()).expect("a path")
    }

    /// What the directory has, too.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// For clients that start no daemon.
    pub fn builder(&self) -> Builder {
        Client::builder().endpoint(self.endpoint()).auto_start(false)
    }

    /// It is gone: nothing more is sent or read, and nobody listens. Its socket's file stays, as
    /// after a kill.
    pub fn die(&mut self) {
        drop(self.running.take());
        self.kept.lock().sessions.values_mut().for_each(|session| session.outgoing = None);
    }

    /// And is back.
    ///
    /// # Panics
    /// If it can't listen.
    pub fn rise(&mut self) {
        let mut state = self.kept.lock();
        let there: Vec<_> = state.sessions.keys().copied().collect();
        for session in there {
            state.sessions.entry(session).or_default().attempt = 0;
            state.make(Input::Restored(session));
        }
        drop(state);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let socket = self.dir.path().join("s");
        let _ = fs::remove_file(&socket);
        let entered = runtime.enter();
        let listener = UnixListener::bind(&socket).expect("a socket");
        drop(entered);
        // A client starts no daemon where one was that is for others, too.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).expect("its own socket");
        let incoming = poll_fn(move |cx| {
            listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(socket, _)| socket)))
        });
        let service = BrokerServer::new(self.kept.clone());
        runtime.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        let kept = self.kept.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                kept.lock().work_off();
            }
        });
        self.running = Some(runtime);
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(&self, mut inbound: Streaming<ClientMessage>, outgoing: Outgoing) {
        let Ok(Some(ClientMessage { request: Some(Request::Open(open)), .. })) =
            inbound.message().await
        else {
            return;
        };
        let Some((session, stream)) = self.lock().open(&open, &outgoing) else { return };
        drop(outgoing);
        while let Ok(Some(message)) = inbound.message().await {
            if !self.lock().hear(session, stream, message) {
                return;
            }
        }
        self.lock().leave(session, stream);
    }
}

impl State {
    fn now(&self) -> Time {
        Time(self.begun.elapsed().as_nanos() as u64)
    }

    fn open(&mut self, open: &Open, outgoing: &Outgoing) -> Option<(SessionId, u64)> {
        let say = |message| {
            let message = ServerMessage { seq: 0, id: 0, message: Some(message) };
            let _ = outgoing.send(Ok(message));
        };
        let refuse = |code: ErrorCode| {
            say(Message::Error(Box::new(Error { code: code.into(), ..Error::default() })))
        };
        if let Ok(id) = <[u8; 8]>::try_from(&*open.replaces) {
            let session = SessionId(u64::from_be_bytes(id));
            self.make(Input::Lost { session, cause: Cause::Disconnected });
        }
        let id = match <[u8; 8]>::try_from(&*open.resume_key) {
            Err(_) => {
                let process = Process { pid: 1, uid: 1, command: "client".into() };
                let id = self.space.handle_open(self.now(), process).ok()?;
                self.sessions.insert(id, Session::default());
                id
            }
            Ok(id) => SessionId(u64::from_be_bytes(id)),
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            refuse(ErrorCode::NotFound);
            return None;
        };
        if open.attempt < session.attempt {
            refuse(ErrorCode::InvalidArgument);
            return None;
        }
        session.attempt = open.attempt;
        let mut last_id = RequestId(0);
        if !open.resume_key.is_empty() {
            match self.space.handle_resume(self.now(), id, open.resume_seq) {
                Ok(last) => last_id = last,
                Err(_) => {
                    refuse(ErrorCode::SessionLost);
                    return None;
                }
            }
        }
        say(Message::Opened(Opened {
            session: id.0,
            resume_key: id.0.to_be_bytes().to_vec(),
            last_id: last_id.0,
            grace_us: 10_000_000,
            outlives_daemon: true,
            ..Opened::default()
        }));
        let session = self.sessions.get_mut(&id)?;
        session.outgoing = Some(outgoing.clone());
        session.streams += 1;
        let stream = session.streams;
        self.hand_out();
        self.work_off();
        Some((id, stream))
    }

    /// False: another stream has the session, or it is over.
    fn hear(&mut self, session: SessionId, stream: u64, message: ClientMessage) -> bool {
        if self.sessions.get(&session).is_none_or(|known| known.streams != stream) {
            return false;
        }
        let request = convert::request(message.request, || stream).expect("a client's request");
        let (id, ack) = (RequestId(message.id), message.ack);
        self.make(Input::Request { session, id, ack, request });
        true
    }

    fn leave(&mut self, session: SessionId, stream: u64) {
        if let Some(known) = self.sessions.get_mut(&session)
            && known.streams == stream
        {
            known.outgoing = None;
            self.make(Input::Disconnect(session));
        }
    }

    fn make(&mut self, input: Input) {
        let now = self.now();
        self.space.replay(now, input);
        self.hand_out();
        self.work_off();
    }

    /// Does what is due, be it by the clock or left from before.
    fn work_off(&mut self) {
        while self.space.poll_timeout().is_some_and(|deadline| deadline.at <= self.now()) {
            let now = self.now();
            self.space.replay(now, Input::Timeout);
            self.hand_out();
        }
    }

    fn hand_out(&mut self) {
        let now = self.now();
        for output in self.space.take_step().into_iter().flat_map(|step| step.outputs) {
            match output {
                Output::Send { session, message } => {
                    let known = self.sessions.get(&session);
                    if let Some(outgoing) = known.and_then(|known| known.outgoing.as_ref()) {
                        let _ = outgoing.send(Ok(convert::server_message(now, message)));
                    }
                }
                Output::Record(record) => {
                    let kind = &record.kind;
                    let ends = [RecordKind::SessionClosed];
                    let lost = matches!(kind, RecordKind::SessionLost { .. });
                    if let (true, Some(party)) = (lost || ends.contains(kind), &record.party) {
                        self.sessions.remove(&party.session);
                    }
                }
                Output::Ready { .. } => {}
            }
        }
    }
}

#[async_trait]
impl Broker for Kept {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: tonic::Request<Streaming<ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outgoing, mut messages) = mpsc::unbounded_channel();
        let (kept, inbound) = (self.clone(), request.into_inner());
        tokio::spawn(async move { kept.serve(inbound, outgoing).await });
        Ok(Response::new(Box::pin(poll_fn(move |cx| messages.poll_recv(cx)))))
    }
}
