//! The first message of a connection: a new session, or a part more of an old one.

use std::collections::VecDeque;

use syncd::convert;
use syncd_core::{Cause, Process, SessionId};
use syncd_proto::{
    PROTOCOL,
    v1::{
        self, ErrorCode, Open, Opened, ServerMessage, client_message::Request,
        server_message::Message as Wire,
    },
};

use super::{Daemon, Session, Stream, Surroundings, time};
use crate::system::link::Link;

impl Daemon {
    pub(super) fn open_stream(
        &mut self,
        at: usize,
        stream: &mut Stream,
        link: &mut Link,
        around: &mut Surroundings<'_>,
    ) -> Result<bool, String> {
        let Some(first) = link.up.pop_front() else {
            if link.is_at_end_up() {
                *stream = Stream::Over;
                return Ok(true);
            }
            return Ok(false);
        };
        let Some(Request::Open(open)) = first.request else {
            return Err(format!("the first message of a connection is {first:?}"));
        };
        around.trace.note(around.now, (at, open.resume_seq), || format!("daemon: {open:?}"));
        let opened = if open.protocol != PROTOCOL {
            Err(refusal(ErrorCode::Unsupported))
        } else if self.exited.contains(&link.pid) {
            Err(refusal(ErrorCode::SessionLost))
        } else if open.resume_key.is_empty() {
            self.replace(link, &open.replaces, around)?;
            self.begin(at, link, around)?
        } else {
            self.resume(at, link, &open, around)?
        };
        let message = match opened {
            Ok((opened, open)) => {
                *stream = open;
                Wire::Opened(opened)
            }
            Err(refused) => {
                *stream = Stream::Over;
                Wire::Error(refused)
            }
        };
        link.send_down(ServerMessage { seq: 0, id: first.id, message: Some(message) });
        Ok(true)
    }

    fn begin(
        &mut self,
        at: usize,
        link: &Link,
        around: &mut Surroundings<'_>,
    ) -> Result<Result<(Opened, Stream), Box<v1::Error>>, String> {
        let pid = link.pid;
        let process = Process { pid, uid: 1, command: format!("p{pid}").into() };
        let (opened, outputs) = self.core.open(process, around);
        let id = match opened {
            Ok(id) => id,
            Err(error) => return Ok(Err(Box::new(convert::error(time(around.now), &error)))),
        };
        let secret = around.rng.u64(..).to_be_bytes();
        let (stream, outbox) = (1, VecDeque::new());
        let session = Session {
            pid,
            secret,
            stream,
            link: at,
            attached: true,
            attempt: 0,
            ended: false,
            is_known: false,
            outbox,
        };
        self.sessions.insert(id, session);
        self.hand_out(outputs, None, around)?;
        let open = Stream::Open { session: id, number: 1, queue: VecDeque::new() };
        Ok(Ok((self.opened(id, 0), open)))
    }

    fn resume(
        &mut self,
        at: usize,
        link: &Link,
        open: &Open,
        around: &mut Surroundings<'_>,
    ) -> Result<Result<(Opened, Stream), Box<v1::Error>>, String> {
        let found = self.find(link, &open.resume_key);
        let Some(id) = found else { return Ok(Err(refusal(ErrorCode::NotFound))) };
        let known = self.sessions.get_mut(&id).expect("it was found");
        if open.attempt < known.attempt {
            return Ok(Err(refusal(ErrorCode::InvalidArgument)));
        }
        known.attempt = open.attempt;
        let (resumed, outputs) = self.core.resume(id, open.resume_seq, around);
        let number = match &resumed {
            Ok(_) => {
                around.witness.resumed(id, open.resume_seq);
                let session = self.sessions.get_mut(&id).expect("it was found");
                session.stream += 1;
                session.link = at;
                session.attached = true;
                session.outbox.clear();
                session.stream
            }
            // An older attempt than that of the stream that is attached, which stays.
            Err(_) => 0,
        };
        let own = resumed.is_ok().then_some(id);
        let queue = self.hand_out(outputs, own, around)?;
        Ok(match resumed {
            Ok(last) => {
                let open = Stream::Open { session: id, number, queue: queue.into() };
                Ok((self.opened(id, last.0), open))
            }
            Err(error) => Err(Box::new(convert::error(time(around.now), &error))),
        })
    }

    fn find(&self, link: &Link, key: &[u8]) -> Option<SessionId> {
        let (id, secret) = key.split_first_chunk::<8>()?;
        let id = SessionId(u64::from_be_bytes(*id));
        let session = self.sessions.get(&id)?;
        let same = session.pid == link.pid && session.secret[..] == *secret;
        (same && !session.ended).then_some(id)
    }

    /// A session that its client has given up is over.
    fn replace(
        &mut self,
        link: &Link,
        key: &[u8],
        around: &mut Surroundings<'_>,
    ) -> Result<(), String> {
        match self.find(link, key) {
            Some(id) => self.lose(id, Cause::Disconnected, around),
            None => Ok(()),
        }
    }

    fn opened(&self, id: SessionId, last_id: u64) -> Opened {
        let mut resume_key = id.0.to_be_bytes().to_vec();
        resume_key.extend_from_slice(&self.sessions[&id].secret);
        let (server_version, namespace) = (String::new(), "simulated".to_owned());
        Opened {
            session: id.0,
            resume_key,
            last_id,
            grace_us: self.grace,
            outlives_daemon: true,
            server_version,
            namespace,
            ..Opened::default()
        }
    }
}

fn refusal(code: ErrorCode) -> Box<v1::Error> {
    Box::new(v1::Error { code: code.into(), text: format!("{code:?}"), ..v1::Error::default() })
}
