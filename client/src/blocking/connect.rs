//! How a thread gets the current session: one thread connects, the others wait for it. The
//! connecting thread leaves the door while it runs a signal handler, since the handler may need a
//! session, too.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{OnSignal, Parker, Session, Signals, pause};
use crate::{
    Builder, ConnectError, SessionError,
    client::{Shared, Slot},
    connect::{Attempts, Next},
    session::{self, CallError, OpenError, Opening},
    start,
};

/// How often a thread that waits at the door checks for a session.
const TICK: Duration = Duration::from_millis(50);

/// Lets one thread connect at a time.
#[derive(Default)]
pub(crate) struct Door(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    taken: bool,
    waiting: Vec<Arc<Parker>>,
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> bool {
        !mem::replace(&mut self.lock().taken, true)
    }

    /// Enters, or queues this thread's parker to be woken by [`leave`](Self::leave).
    fn enter_or_wait(&self, parker: &Arc<Parker>) -> bool {
        let mut queue = self.lock();
        if queue.taken {
            queue.waiting.push(parker.clone());
        }
        !mem::replace(&mut queue.taken, true)
    }

    fn leave(&self) {
        let mut queue = self.lock();
        queue.taken = false;
        queue.waiting.drain(..).for_each(|parker| parker.wake());
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Door")
    }
}

/// The thread that has entered the door.
struct Inside<'a> {
    slot: &'a Slot,
    on_signal: OnSignal<'a>,
    inside: bool,
    /// `on_signal` asked to give up.
    gave_up: bool,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.inside {
            self.slot.door.leave();
        }
    }
}

impl Signals for Inside<'_> {
    fn matter(&self) -> bool {
        self.on_signal.matter()
    }

    fn handle(&mut self) -> bool {
        self.slot.door.leave();
        self.inside = false;
        self.gave_up = self.on_signal.handle();
        if !self.gave_up && !self.slot.has_session() {
            self.inside = self.slot.door.enter();
        }
        !self.inside
    }
}

/// This process's session, or a new one if it has none or has lost it.
pub(crate) fn session(
    client: &Shared,
    start: bool,
    deadline: Option<Instant>,
    on_signal: OnSignal<'_>,
) -> Result<Arc<session::Session>, CallError> {
    let slot = client.slot();
    if let Some(session) = slot.session()? {
        return Ok(session);
    }
    let connect_by = Instant::now() + client.config.connect_timeout;
    let end = deadline.map_or(connect_by, |deadline| deadline.min(connect_by));
    let parker = Parker::of_this_thread();
    loop {
        parker.reset();
        if slot.door.enter_or_wait(&parker) {
            let mut inside = Inside { slot, on_signal, inside: true, gave_up: false };
            if let Some(session) = slot.session()? {
                return Ok(session);
            }
            match open(client, start, end, &mut inside) {
                Ok(session) => {
                    let session = Arc::new(session::Session::Threads(session));
                    slot.put(session.clone());
                    return Ok(session);
                }
                // Another thread has entered meanwhile, or opened a session.
                Err(Failure::Interrupted) if !inside.gave_up => {}
                Err(Failure::Interrupted) => return Err(SessionError::Interrupted.into()),
                Err(Failure::Overdue) if end < connect_by => return Err(CallError::overdue()),
                Err(Failure::Overdue) => return Err(client.late().into()),
                Err(Failure::Connect(error)) => return Err(error.into()),
            }
        } else {
            let slept = parker.park(None, Some(end.min(Instant::now() + TICK)));
            if slept.interrupted && on_signal.handle() {
                return Err(SessionError::Interrupted.into());
            }
            match slot.session()? {
                Some(session) => return Ok(session),
                None if Instant::now() < end => {}
                None if end < connect_by => return Err(CallError::overdue()),
                None => return Err(client.late().into()),
            }
        }
    }
}

enum Failure {
    Connect(ConnectError),
    Overdue,
    Interrupted,
}

fn open(
    client: &Shared,
    start: bool,
    end: Instant,
    inside: &mut Inside<'_>,
) -> Result<Session, Failure> {
    let may_start = start && client.may_start();
    let mut attempts = Attempts::new(&client.endpoint, may_start);
    loop {
        let error = match Session::open(Opening::of(client), end, inside) {
            Ok(session) => return Ok(session),
            Err(OpenError::Overdue) => return Err(Failure::Overdue),
            Err(OpenError::Interrupted) => return Err(Failure::Interrupted),
            Err(error) => error
                .leaving()
                .map_err(|error| Failure::Connect(ConnectError::of(&client.endpoint, error)))?,
        };
        let now = Instant::now();
        match attempts.handle_failure(now, error) {
            Next::Fail(error) => return Err(Failure::Connect(error)),
            Next::Start => start_daemon(client, end, inside)?,
            Next::Again(_) if now >= end => return Err(Failure::Overdue),
            Next::Again(after) => {
                if pause(after) && inside.handle() {
                    return Err(Failure::Interrupted);
                }
            }
        }
    }
}

/// Starts a daemon, and handles signals meanwhile.
fn start_daemon(client: &Shared, end: Instant, inside: &mut Inside<'_>) -> Result<(), Failure> {
    let Builder { daemon, connect_timeout, .. } = &client.config;
    let patience = *connect_timeout * 9 / 10;
    let failed = |error: start::StartError| Failure::Connect(error.into());
    let mut start =
        start::Start::new(&client.endpoint, daemon.as_ref(), patience).map_err(failed)?;
    while let start::Step::Wait(after) = start.step().map_err(failed)? {
        if pause(after) && inside.handle() {
            return Err(Failure::Interrupted);
        }
        if Instant::now() >= end {
            return Err(Failure::Overdue);
        }
    }
    Ok(())
}
