//! The core behind one door: every call of it goes in here as a value, and all that comes of it
//! comes out here, so this is where a saboteur stands, and where it is kept for the next daemon.

use syncd_core::{
    Config, Error, Input, Limits, ObjectId, Output, Process, Reason, RequestId, SessionId, Space,
    Time,
};

use super::{
    Checked,
    daemon::Surroundings,
    plan::{MILLI, Plan},
};
use crate::simulator::Kept;

/// The core's clock counts nanoseconds, the world's microseconds.
pub(super) fn time(now: u64) -> Time {
    Time(now * 1000)
}

/// How long an object without references lingers, in microseconds.
pub(super) const LINGER: u64 = 100 * MILLI;

/// See the [module](self).
pub(super) struct Core {
    config: Config,
    space: Space,
    /// What the next daemon has of it, if there may be one.
    kept: Option<Kept>,
}

impl Core {
    pub fn new(plan: &Plan) -> Self {
        let config = Config {
            grace: std::time::Duration::from_micros(plan.grace),
            linger: std::time::Duration::from_micros(LINGER),
            limits: Limits { step: plan.step, ..Limits::default() },
        };
        let space = Space::new(config.clone(), 1000);
        let kept = (plan.chaos.restart > 0).then(|| Kept::of(&space));
        Self { config, space, kept }
    }

    /// The next daemon goes on from what was kept.
    pub fn restart(&mut self) -> Checked {
        let Some(kept) = &self.kept else { return Ok(()) };
        self.space = kept.restore(self.config.clone())?;
        self.kept = Some(Kept::of(&self.space));
        Ok(())
    }

    pub fn open(
        &mut self,
        process: Process,
        around: &mut Surroundings<'_>,
    ) -> (Result<SessionId, Box<Error>>, Vec<Output>) {
        let opened = self.space.handle_open(time(around.now), process);
        (opened, self.outputs())
    }

    pub fn resume(
        &mut self,
        session: SessionId,
        received: u64,
        around: &mut Surroundings<'_>,
    ) -> (Result<RequestId, Box<Error>>, Vec<Output>) {
        let received = around.sabotage.resumes(around.now, session, received);
        let resumed = self.space.handle_resume(time(around.now), session, received);
        let outputs = self.outputs();
        let outputs = around.sabotage.comes_out(&Input::Resume { session, received }, outputs);
        (resumed.map(|last| around.sabotage.handled(session, last)), outputs)
    }

    /// Makes a call that returns nothing but what comes out.
    pub fn call(&mut self, input: Input, around: &mut Surroundings<'_>) -> Vec<Output> {
        let mut outputs = Vec::new();
        for input in around.sabotage.goes_in(around.now, input) {
            let now = time(around.now);
            self.space.replay(now, input.clone());
            let came = self.outputs();
            outputs.extend(around.sabotage.comes_out(&input, came));
        }
        outputs
    }

    fn outputs(&mut self) -> Vec<Output> {
        self.space.check();
        let Some(step) = self.space.take_step() else { return vec![] };
        self.kept.iter_mut().for_each(|kept| kept.add(&step));
        step.outputs
    }

    /// The session's last request isn't done yet: it is to be handed no other.
    pub fn is_working(&self, session: SessionId) -> bool {
        self.space.is_working(session)
    }

    /// Something was begun and is to be continued.
    pub fn has_work(&self) -> bool {
        self.space.poll_timeout().is_some_and(|deadline| deadline.reason == Reason::Work)
    }

    /// When something is due, in microseconds.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.space.poll_timeout().map(|deadline| deadline.at.0.div_ceil(1000))
    }

    pub fn find(&self, object: &str) -> Option<ObjectId> {
        self.space.find(object)
    }

    /// What is left, if anything is.
    pub fn remains(&self) -> Option<String> {
        (!self.space.is_empty()).then(|| format!("{:?}", self.space.totals()))
    }

    pub fn sessions(&self) -> usize {
        self.space.totals().sessions
    }
}
