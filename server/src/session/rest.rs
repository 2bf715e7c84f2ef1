//! What a stream leaves behind: messages that had come and were not read, and a session to be
//! disconnected or ended.

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
    /// As long as it is kept, its process's death waits.
    _connection: Arc<Connection>,
    open: Open,
    cause: Option<Cause>,
}

enum Heard {
    All,
    /// Others have their turn first.
    Part,
    /// A request is under way.
    Working,
}

impl Rest {
    /// Handles what has come and was not read, as a connection that breaks takes its streams along
    /// without asking what they still had to do; then the session is disconnected, or lost if
    /// there is a cause. What can't be done at once is left to a task.
    pub fn leave(
        broker: Arc<Broker>,
        connection: Arc<Connection>,
        open: Open,
        cause: Option<Cause>,
    ) {
        let mut rest = Self { broker, _connection: connection, open, cause };
        match rest.hear() {
            Heard::All => rest.detach(),
            // Without a runtime the daemon is gone, and so are its sessions.
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

    /// Waits for the end of the request that is under way. False: the session is over, or another
    /// stream's.
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
