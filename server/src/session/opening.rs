//! The first message of a stream: a new session, or a part more of an old one. Never here: the
//! requests that follow.

use std::{collections::VecDeque, sync::Arc};

use syncd_core::{Cause, Process, SessionId, Time};
use syncd_proto::{
    PROTOCOL,
    v1::{self, Error, ErrorCode, Opened},
};
use tracing::info;

use super::{Open, SessionStream};
use crate::{
    convert::{self, micros},
    namespace::{Address, AddressError, MAX_NAME, Namespace, similar},
    outbox::{Outbox, Session},
    peer::printable,
};

/// A resume key: the session's number, and what nobody else can know.
const SECRET: usize = 16;

pub(super) fn refusal(code: ErrorCode, field: &str, text: impl Into<String>) -> Box<Error> {
    let (code, text, field) = (code.into(), text.into(), field.to_owned());
    Box::new(Error { code, text, field, ..Default::default() })
}

fn no_session() -> Box<Error> {
    let text = "no such session to resume: it is over, in another namespace or of another process";
    refusal(ErrorCode::NotFound, "resume_key", text)
}

impl SessionStream {
    pub(super) fn open(&self, open: v1::Open) -> Result<(Opened, Open), Box<Error>> {
        if open.protocol != PROTOCOL {
            let text = format!(
                "protocol: this daemon speaks version {PROTOCOL}, not {}: use a client that does",
                open.protocol
            );
            return Err(refusal(ErrorCode::Unsupported, "protocol", text));
        }
        if open.label.len() > MAX_NAME {
            let text = format!("label: at most {MAX_NAME} bytes");
            return Err(refusal(ErrorCode::InvalidArgument, "label", text));
        }
        let shared = &self.broker.settings.shared;
        let address =
            Address::resolve(&open.namespace, self.connection.user, shared).map_err(|error| {
                match error {
                    AddressError::Malformed => {
                        refusal(ErrorCode::InvalidArgument, "namespace", error.to_string())
                    }
                    AddressError::Denied(_) => {
                        refusal(ErrorCode::PermissionDenied, "namespace", error.to_string())
                    }
                    AddressError::NotShared(_) => {
                        refusal(ErrorCode::NotFound, "namespace", error.to_string())
                    }
                }
            })?;
        if open.resume_key.is_empty() {
            self.begin(&address, &open.label)
        } else {
            self.resume(&address, &open.resume_key, open.resume_seq)
        }
    }

    fn begin(&self, address: &Address, label: &str) -> Result<(Opened, Open), Box<Error>> {
        let broker = &self.broker;
        let peer = &self.connection.peer;
        let label = if label.is_empty() { peer.command.clone() } else { printable(label).into() };
        let mut secret = [0; SECRET];
        getrandom::fill(&mut secret).expect("the system has a source of chance");
        loop {
            let namespace = broker
                .namespace(address)
                .map_err(|quota| refusal(ErrorCode::Quota, quota.field, quota.to_string()))?;
            let now = broker.now();
            let mut is_new = false;
            let opened = broker.enter(&namespace, now, None, |state| {
                if state.retired {
                    return None;
                }
                is_new = state.space.is_empty();
                let process =
                    Process { pid: peer.pid, uid: self.connection.user, command: label.clone() };
                let opened = state.space.handle_open(now, process).map(|id| {
                    // Known before the lock is let go: who sends to it now must find it.
                    let session = Arc::new(Session {
                        id,
                        namespace: namespace.clone(),
                        peer: peer.clone(),
                        secret,
                        label: label.clone(),
                        outbox: Outbox::default(),
                    });
                    let stream = session.outbox.attach(&self.connection);
                    broker.sessions.insert((namespace.number, id), session.clone());
                    Open { session, stream, queue: VecDeque::new(), last_seq: 0, working: false }
                });
                Some(opened)
            });
            let Some(opened) = opened else { continue };
            let open = opened.map_err(|refused| Box::new(convert::error(now, &refused)))?;
            self.join(now, &open)?;
            info!(
                namespace = %address,
                session = open.session.id.0,
                pid = peer.pid,
                user = self.connection.user,
                command = &*label,
                "session opened"
            );
            let mut opened = self.opened(&open, 0);
            if is_new && address.owner.is_some() {
                opened.similar = similar(&address.name, &broker.settings.shared);
            }
            return Ok((opened, open));
        }
    }

    /// Lists the session with its process, whose death ends it; if the process has died
    /// meanwhile, it is over.
    fn join(&self, now: Time, open: &Open) -> Result<(), Box<Error>> {
        let session = &open.session;
        if session.peer.join(&session.namespace, session.id) {
            return Ok(());
        }
        self.broker.enter(&session.namespace, now, None, |state| {
            state.space.handle_lost(now, session.id, Cause::Died)
        });
        Err(refusal(ErrorCode::SessionLost, "", "the process that connected has exited"))
    }

    fn resume(
        &self,
        address: &Address,
        key: &[u8],
        received: u64,
    ) -> Result<(Opened, Open), Box<Error>> {
        let session = self.find(address, key).ok_or_else(no_session)?;
        let now = self.broker.now();
        // Within the lock, so that nothing is pushed between: what comes again must come first.
        let (stream, resumed) = self.broker.enter(&session.namespace, now, None, |state| {
            let stream = session.outbox.attach(&self.connection);
            (stream, state.space.handle_resume(now, session.id, received))
        });
        match resumed {
            Ok(last_id) => {
                let queue = VecDeque::new();
                let working = true;
                let open = Open { session, stream, queue, last_seq: received, working };
                Ok((self.opened(&open, last_id.0), open))
            }
            Err(refused) => Err(Box::new(convert::error(now, &refused))),
        }
    }

    /// Only the very process that opened a session finds it: the same entry in the registry of
    /// living processes, not merely the same number.
    fn find(&self, address: &Address, key: &[u8]) -> Option<Arc<Session>> {
        let (id, secret) = key.split_first_chunk::<8>()?;
        let id = SessionId(u64::from_be_bytes(*id));
        let namespace: Arc<Namespace> = self.broker.namespaces.get(address)?.clone();
        let session = self.broker.sessions.get(&(namespace.number, id))?.clone();
        let same_process = session.peer.is_same_process(&self.connection.peer);
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
        }
    }
}

/// In a time that tells nothing about where they differ.
fn is_equal(a: &[u8; SECRET], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}
