//! The end of a stream: handles requests that had arrived and were not read, then disconnects or
//! ends the session.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use syncd_core::Cause;
use tokio::{runtime::Handle, task::yield_now};

use super::{Open, TURN};
use crate::{broker::Broker, connection::Connection, outbox::Standing};

/// A session's stream after its end.
pub(super) struct Rest {
    broker: Arc<Broker>,
    /// While it is kept, the process's death isn't handled.
    _connection: Arc<Connection>,
    open: Open,
    cause: Option<Cause>,
}

/// How far the rest was handled.
enum Heard {
    All,
    /// Other tasks run first.
    Part,
    /// A request is pending.
    Working,
}

impl Rest {
    /// Handles requests that had arrived and were not read (a broken connection drops its streams at
    /// once); then disconnects the session, or ends it if there is a `cause`. A task does what can't
    /// be done at once.
    pub fn leave(
        broker: Arc<Broker>,
        connection: Arc<Connection>,
        open: Open,
        cause: Option<Cause>,
    ) {
        let mut rest = Self { broker, _connection: connection, open, cause };
        match rest.hear() {
            Heard::All => rest.detach(),
            // Without a runtime the daemon is exiting, and its sessions end anyway.
            Heard::Part | Heard::Working if Handle::try_current().is_err() => {}
            Heard::Part | Heard::Working => {
                let broker = rest.broker.clone();
                broker.spawn(rest.hear_out());
            }
        }
    }

    fn hear(&mut self) -> Heard {
        let Self { broker, open, .. } = self;
        let now = broker.now();
        let mut cx = Context::from_waker(Waker::noop());
        let handled = open.handled;
        while open.handled - handled < TURN {
            if !open.session.outbox.is_current(open.stream) {
                return Heard::All;
            }
            if open.is_working {
                return Heard::Working;
            }
            match open.inbound.poll(&mut cx) {
                Poll::Ready(Ok(())) => open.handle(broker, now),
                _ => return Heard::All,
            }
            open.queue.clear();
        }
        Heard::Part
    }

    async fn hear_out(mut self) {
        loop {
            match self.hear() {
                Heard::All => return self.detach(),
                Heard::Part => yield_now().await,
                Heard::Working => {
                    if !self.finished_work().await {
                        return self.detach();
                    }
                }
            }
        }
    }

    /// Waits for the end of the pending request. False if the session has ended, or another stream
    /// has taken over.
    async fn finished_work(&mut self) -> bool {
        let Open { session, stream, queue, is_working, .. } = &mut self.open;
        poll_fn(|cx| {
            loop {
                queue.clear();
                match session.outbox.collect(*stream, queue) {
                    Standing::Ready => {
                        *is_working = false;
                        return Poll::Ready(true);
                    }
                    Standing::Superseded | Standing::Ended(_) => return Poll::Ready(false),
                    Standing::Attached if !queue.is_empty() => {}
                    Standing::Attached => {
                        if session.outbox.park(*stream, cx.waker()) {
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
        .await
    }

    fn detach(self) {
        let Self { broker, open: Open { session, stream, .. }, cause, .. } = &self;
        let _ = broker.enter(&session.namespace, broker.now(), None, |state, now| {
            if session.outbox.detach(*stream) {
                match cause {
                    Some(cause) => drop(state.space.handle_lost(now, session.id, *cause)),
                    None => state.space.handle_disconnect(now, session.id),
                }
            }
        });
    }
}
