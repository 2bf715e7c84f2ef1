//! The first message of a stream: opens a session, or resumes one.

use std::{collections::VecDeque, sync::Arc};

use syncd_core::{
    Cause, Process, SessionId, Time,
    sabotage::{Bug, sabotaged},
};
use syncd_proto::{
    PROTOCOL,
    v1::{self, ClientMessage, Error, ErrorCode, Opened},
};
use tonic::Streaming;
use tracing::info;

use super::{Open, SessionStream, inbound::Inbound};
use crate::{
    broker::NoNamespace,
    convert::{self, micros},
    entry::Member,
    handover::News,
    journal::failpoint,
    namespace::{Address, AddressError, MAX_NAME, Namespace, similar},
    outbox::Session,
    peer::printable,
};

/// The random part of a resume key, in bytes; the session's number comes before it.
const SECRET: usize = 16;

pub(super) fn refusal(code: ErrorCode, field: &str, text: impl Into<String>) -> Box<Error> {
    let (code, text, field) = (code.into(), text.into(), field.to_owned());
    Box::new(Error { code, text, field, ..Default::default() })
}

fn no_namespace(why: NoNamespace) -> Box<Error> {
    match why {
        NoNamespace::Quota(quota) => refusal(ErrorCode::Quota, quota.field, quota.to_string()),
        NoNamespace::Store(error) => {
            let (field, why) = convert::NOT_KEPT;
            refusal(ErrorCode::Quota, field, format!("{field}: {why} ({error})"))
        }
        NoNamespace::InDoubt(why) => {
            refusal(ErrorCode::Quota, convert::NOT_KEPT.0, format!("journal: {why}"))
        }
        NoNamespace::Leaving => refusal(ErrorCode::SessionLost, "", why.to_string()),
    }
}

fn no_session() -> Box<Error> {
    let text = "no such session to resume: it has ended, or is of another namespace or process";
    refusal(ErrorCode::NotFound, "resume_key", text)
}

impl SessionStream {
    pub(super) fn open(
        &self,
        open: v1::Open,
        inbound: Streaming<ClientMessage>,
    ) -> Result<(Opened, Open), Box<Error>> {
        if open.protocol != PROTOCOL {
            let text = format!(
                "protocol: this daemon speaks version {PROTOCOL}, not {}: use a client of its version",
                open.protocol
            );
            return Err(refusal(ErrorCode::Unsupported, "protocol", text));
        }
        if open.label.len() > MAX_NAME {
            let text = format!("label: at most {MAX_NAME} bytes");
            return Err(refusal(ErrorCode::InvalidArgument, "label", text));
        }
        let shared = &self.broker.settings.shared;
        let address = Address::resolve(&open.namespace, self.connection.user.number, shared)
            .map_err(|error| match error {
                AddressError::Malformed => {
                    refusal(ErrorCode::InvalidArgument, "namespace", error.to_string())
                }
                AddressError::Denied(_) => {
                    refusal(ErrorCode::PermissionDenied, "namespace", error.to_string())
                }
                AddressError::NotShared(_) => {
                    refusal(ErrorCode::NotFound, "namespace", error.to_string())
                }
            })?;
        if open.resume_key.is_empty() {
            self.replace(&address, &open.replaces);
            self.begin(&address, &open.label, inbound)
        } else {
            self.resume(&address, &open, inbound)
        }
    }

    fn begin(
        &self,
        address: &Address,
        label: &str,
        inbound: Streaming<ClientMessage>,
    ) -> Result<(Opened, Open), Box<Error>> {
        let broker = &self.broker;
        let client = &self.connection.client;
        let (pid, uid) = (client.peer.pid, client.peer.user);
        let label = if label.is_empty() { client.command.clone() } else { printable(label).into() };
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret).expect("the system has a source of random numbers");
        let (now, session, stream, is_new) = loop {
            if broker.is_closing() {
                let text = "the daemon is shutting down";
                return Err(refusal(ErrorCode::SessionLost, "", text));
            }
            let namespace = broker.namespace(address).map_err(no_namespace)?;
            let opened = broker.enter(&namespace, broker.now(), None, |state, now| {
                let is_new = state.space.is_empty();
                state.longest_label = state.longest_label.max(label.len());
                if let Err(error) = state.make_room() {
                    return Err(no_namespace(error.into()));
                }
                let process = Process { pid, uid, command: label.clone() };
                let room = state.check_memory(&namespace, uid);
                room.map_err(|quota| refusal(ErrorCode::Quota, quota.field, quota.to_string()))?;
                state.opening = Some(Member {
                    secret,
                    started: client.peer.started,
                    command: client.command.clone(),
                });
                let opened = state.space.handle_open(now, process);
                let opened = opened.map_err(|refused| Box::new(convert::error(now, &refused)));
                opened.map(|id| {
                    // Registered under the lock: other tasks must find it once they can send to it.
                    let limit = broker.settings.limits.unsent_bytes_per_session;
                    let (connection, label) = (&self.connection, label.clone());
                    let (client, user) = (client.clone(), connection.user.clone());
                    let namespace = namespace.clone();
                    let session = Session::new(id, namespace, client, user, secret, label, limit);
                    let session = Arc::new(session);
                    let stream = session.attach(connection);
                    let sessions = &broker.registry.sessions;
                    sessions.insert((session.namespace.number, id), session.clone());
                    (now, session, stream, is_new)
                })
            });
            if let Ok(opened) = opened {
                break opened?;
            }
        };
        self.join(now, &session)?;
        info!(
            namespace = %address,
            session = session.id.0,
            pid,
            user = uid,
            command = &*label,
            "session opened"
        );
        let open = Open {
            session,
            stream,
            inbound: Inbound::new(inbound),
            queue: VecDeque::new(),
            last_seq: 0,
            is_working: false,
            handled: 0,
        };
        let mut opened = self.opened(&open, 0);
        if is_new && address.owner.is_some() {
            opened.similar = similar(&address.name, &broker.settings.shared);
        }
        Ok((opened, open))
    }

    /// Registers the session with its process, whose death ends it.
    ///
    /// # Errors
    /// If the process has died meanwhile; the session is lost.
    fn join(&self, now: Time, session: &Arc<Session>) -> Result<(), Box<Error>> {
        if session.client.join(&session.namespace, session.id) {
            return Ok(());
        }
        let _ = self.broker.enter(&session.namespace, now, None, |state, now| {
            state.space.handle_lost(now, session.id, Cause::Died)
        });
        Err(refusal(ErrorCode::SessionLost, "", "the process that connected has exited"))
    }

    /// Ends the session that the client's new one replaces, if it still exists.
    fn replace(&self, address: &Address, key: &[u8]) {
        if let Some(session) = self.find(address, key) {
            let broker = &self.broker;
            let _ = broker.enter(&session.namespace, broker.now(), None, |state, now| {
                state.space.handle_lost(now, session.id, Cause::Disconnected)
            });
        }
    }

    fn resume(
        &self,
        address: &Address,
        open: &v1::Open,
        inbound: Streaming<ClientMessage>,
    ) -> Result<(Opened, Open), Box<Error>> {
        let (key, received) = (&open.resume_key, open.resume_seq);
        let Some(session) = self.find(address, key) else {
            if let Some((id, _)) = key.split_first_chunk::<8>() {
                let id = SessionId(u64::from_be_bytes(*id));
                self.broker.doubts.tell(address, self.connection.client.peer.pid, id);
            }
            return Err(no_session());
        };
        failpoint("restart.resume");
        // Under one lock, so that no new message comes before those that are sent again.
        let resumed =
            self.broker.enter(&session.namespace, self.broker.now(), None, |state, now| {
                if !session.is_latest(open.attempt) {
                    let why = "attempt: a later attempt has resumed the session";
                    return Err(refusal(ErrorCode::InvalidArgument, "attempt", why));
                }
                let resumed = state.space.handle_resume(now, session.id, received);
                let is_working = state.space.is_working(session.id);
                // The stream is attached only on success: a refused attempt must not disturb a later
                // one.
                resumed
                    .map(|last_id| (session.attach(&self.connection), last_id, is_working))
                    .map_err(|refused| Box::new(convert::error(now, &refused)))
            });
        let (stream, last_id, is_working) = resumed.map_err(|_| no_session())??;
        self.broker.spread(|| News::Here);
        let open = Open {
            session,
            stream,
            inbound: Inbound::new(inbound),
            queue: VecDeque::new(),
            last_seq: received,
            is_working,
            handled: 0,
        };
        Ok((self.opened(&open, last_id.0), open))
    }

    /// Finds a session by its resume key, for the process that opened it: the same entry in the
    /// registry of living processes, not merely the same PID.
    fn find(&self, address: &Address, key: &[u8]) -> Option<Arc<Session>> {
        let (id, secret) = key.split_first_chunk::<8>()?;
        let id = SessionId(u64::from_be_bytes(*id));
        let namespace: Arc<Namespace> = self.broker.registry.namespaces.get(address)?.clone();
        let session = self.broker.registry.sessions.get(&(namespace.number, id))?.clone();
        let same_process = session.client.is_same_process(&self.connection.client);
        (same_process && is_equal(&session.secret, secret)).then_some(session)
    }

    fn opened(&self, open: &Open, last_id: u64) -> Opened {
        let session = &open.session;
        let mut resume_key = session.id.0.to_be_bytes().to_vec();
        resume_key.extend_from_slice(&session.secret);
        Opened {
            session: session.id.0,
            resume_key,
            last_id,
            grace_us: micros(self.broker.settings.grace),
            server_version: env!("CARGO_PKG_VERSION").into(),
            namespace: session.namespace.address.to_string(),
            similar: Vec::new(),
            outlives_daemon: self.broker.settings.journal.is_some(),
        }
    }
}

/// Compares in constant time.
fn is_equal(a: &[u8; SECRET], b: &[u8]) -> bool {
    sabotaged(Bug::AnySecretWillDo)
        || a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
