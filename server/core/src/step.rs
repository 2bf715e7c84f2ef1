//! A step: one call of a [`Space`] and its outputs, as values that can be stored, and delivered
//! later.

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Message, ObjectId, Process, Record, Request, RequestId, SessionId, Space, Time,
    sabotage::{Bug, sabotaged},
};

/// One call and its outputs. Steps of a namespace must be delivered in the order of the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The time of the call.
    pub at: Time,
    /// The call.
    pub input: Input,
    /// Its outputs, in order.
    pub outputs: Vec<Output>,
}

/// One call of a [`Space`]: the method of the same name, and its arguments except the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Input {
    Open(Process),
    Disconnect(SessionId),
    Restored(SessionId),
    Resume { session: SessionId, received: u64 },
    Lost { session: SessionId, cause: Cause },
    Request { session: SessionId, id: RequestId, ack: u64, request: Request },
    ForceRelease(ObjectId),
    Timeout,
    Work,
    Numbers(u64),
    Shortage { most: usize },
}

/// An output of a [`Space`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message to a session. If that is disconnected, drop it: a resume sends it again.
    Send {
        /// The receiver.
        session: SessionId,
        /// The message.
        message: Message,
    },
    /// A log record.
    Record(Record),
    /// The session's request that took several steps is finished: the next one may be handled. See
    /// [`Space::is_working`].
    Ready {
        /// The session.
        session: SessionId,
    },
}

/// The largest capacity for outputs that is kept for the next step.
const REUSED: usize = 64;

impl Step {
    /// A digest of the outputs: a replay of the same call compares it to see whether the outcome is
    /// the same.
    pub fn digest(&self) -> u32 {
        let mut digest = 0_u64;
        let mut mix = |number: u64| {
            digest = (digest.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        };
        for output in &self.outputs {
            match output {
                Output::Send { session, message } => {
                    mix(session.0);
                    mix(message.seq);
                    mix(message.body.gist());
                }
                Output::Record(record) => mix(record.number),
                Output::Ready { session } => mix(!session.0),
            }
        }
        (digest >> 32) as u32
    }
}

impl Space {
    /// Repeats a recorded call. The same calls at the same times have the same outputs.
    pub fn replay(&mut self, at: Time, input: Input) {
        match input {
            Input::Open(process) => drop(self.handle_open(at, process)),
            Input::Disconnect(session) => self.handle_disconnect(at, session),
            Input::Restored(session) => self.handle_restored(at, session),
            Input::Resume { session, received } => drop(self.handle_resume(at, session, received)),
            Input::Lost { session, cause } => drop(self.handle_lost(at, session, cause)),
            Input::Request { session, id, ack, request } => {
                let again = sabotaged(Bug::ReleaseReplayedTwice).then(|| request.clone());
                self.handle_request(at, session, id, ack, request);
                if let Some(Request::Release { handle, owner, token, .. }) = again
                    && !self.is_ended(session)
                {
                    let _ = self.release(at, session, handle, owner, token);
                }
            }
            Input::ForceRelease(object) => drop(self.handle_force_release(at, object)),
            Input::Timeout => self.handle_timeout(at),
            Input::Work => self.handle_work(at),
            Input::Numbers(first) => self.handle_numbers(at, first),
            Input::Shortage { most } => self.handle_shortage(at, most),
        }
    }

    /// Takes the step of the last call; `None` if there was no call since the last time. Must be
    /// called after each call.
    pub fn take_step(&mut self) -> Option<Step> {
        let (at, input) = self.call.take()?;
        Some(Step { at, input, outputs: std::mem::take(&mut self.outputs) })
    }

    /// Reuses the memory of a step's outputs for the next step.
    pub fn reuse(&mut self, step: Step) {
        if self.outputs.is_empty() && step.outputs.capacity() <= REUSED {
            self.outputs = step.outputs;
            self.outputs.clear();
        }
    }

    /// Begins a call and records it.
    pub(crate) fn call(&mut self, at: Time, input: Input) {
        self.begin_call();
        self.call = Some((at, input));
    }

    /// Begins a call that the caller records at its end.
    pub(crate) fn begin_call(&mut self) {
        debug_assert!(self.call.is_none(), "the step before hasn't been taken");
        self.budget = self.config.limits.step.max(1);
    }
}
