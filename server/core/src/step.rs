//! A step: one call of a [`Space`], and all that came of it, as values that can be kept, stored
//! and handed out later.

use serde::{Deserialize, Serialize};

use crate::{
    Cause, Message, ObjectId, Process, Record, Request, RequestId, SessionId, Space, Time,
    sabotage::{Bug, sabotaged},
};

/// One call and what came of it. Steps of a namespace are handed out in the order of the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The time of the call.
    pub at: Time,
    /// The call.
    pub input: Input,
    /// What came of it, in order.
    pub outputs: Vec<Output>,
}

/// One call of a [`Space`]: the method of the same name, and its arguments but the time.
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

/// What comes out of a [`Space`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell a session. If it is disconnected, drop it: a resume brings it again.
    Send {
        /// Whom.
        session: SessionId,
        /// What.
        message: Message,
    },
    /// Something happened.
    Record(Record),
    /// The session's request that took several steps is over: the next one may be handled. See
    /// [`Space::is_working`].
    Ready {
        /// Whose.
        session: SessionId,
    },
}

/// Room for more outputs than this isn't kept for the next step.
const REUSED: usize = 64;

impl Step {
    /// A number that tells two steps of different outcome apart: whoever makes the same calls
    /// again learns by it whether what was decided then is what is decided now.
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
    /// Makes a call again that was made before, on this `Space` or another: the same calls at
    /// the same times have the same outputs.
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

    /// The call that was made, and what came of it; `None` if none was made since the last time.
    /// To be taken after each call.
    pub fn take_step(&mut self) -> Option<Step> {
        let (at, input) = self.call.take()?;
        Some(Step { at, input, outputs: std::mem::take(&mut self.outputs) })
    }

    /// Takes a step's outputs back, once they are read, to write the next step's in their place.
    pub fn reuse(&mut self, step: Step) {
        if self.outputs.is_empty() && step.outputs.capacity() <= REUSED {
            self.outputs = step.outputs;
            self.outputs.clear();
        }
    }

    /// Notes a call, and how much it may do.
    pub(crate) fn call(&mut self, at: Time, input: Input) {
        self.begin_call();
        self.call = Some((at, input));
    }

    /// Begins a call that is noted when it is over.
    pub(crate) fn begin_call(&mut self) {
        debug_assert!(self.call.is_none(), "the step before hasn't been taken");
        self.budget = self.config.limits.step.max(1);
    }
}
