//! Steps of the core, for those who see to all of its work at once.

use syncd_core::{Output, Reason, Space, Step, Time};

/// What came of the last call, and of the work that it left to later ones.
pub(crate) fn outputs(space: &mut Space, now: Time) -> Vec<Output> {
    steps(space, now).into_iter().flat_map(|step| step.outputs).collect()
}

/// The same, call by call.
pub(crate) fn steps(space: &mut Space, now: Time) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some(step) = space.take_step() {
        steps.push(step);
        space.check();
        if space.poll_timeout().is_some_and(|due| due.reason == Reason::Work) {
            space.handle_work(now);
        }
    }
    steps
}
