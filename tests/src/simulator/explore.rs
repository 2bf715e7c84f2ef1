//! All interleavings of a small world: three clients, two locks, a condition over the first. From
//! every state every call is made, on the core and on the model, until no new state comes up.
//! States are told apart by what can matter to the future: who holds, who waits in which order and
//! for what, what can still be undone; not by numbers or time.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hasher},
    time::Duration,
};

use syncd_core::{Cause, Class, Config};

use super::{
    generate::{Call, Plan, Verb, World},
    play::Player,
};
use crate::model::Make;

/// Clients of the small world.
pub const CLIENTS: usize = 3;
const LOCKS: [usize; 2] = [0, 1];
const CONDITION: usize = 2;
const TIMEOUT: Duration = Duration::from_millis(100);

/// How much there was to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Explored {
    pub states: usize,
    pub calls: usize,
    /// The most calls that it takes to reach a state.
    pub depth: usize,
}

/// Explores until nothing is new; `poison`: the condition's lock poisons.
///
/// # Errors
/// The calls to the first state where core and model differ, or that there are more states
/// than `cap`.
pub fn explore(poison: bool, cap: usize) -> Result<Explored, String> {
    let lock = Make::Sem { class: Class::Lock, value: 1, max: 1 };
    let plan = |make, poison| Plan { make, named: true, poison, keep: true };
    let condition = Make::Condition(Some(0));
    let objects = vec![plan(lock, poison), plan(lock, false), plan(condition, false)];
    let world = World { config: Config::default(), objects };
    let mut start = Player::new(&world);
    for place in 0..CLIENTS {
        start.call(&Call::Open { place })?;
        for object in [LOCKS[0], LOCKS[1], CONDITION] {
            start.call(&ask(place, object, Verb::Create { exclusive: false }))?;
        }
    }
    let mut seen = HashSet::from([key(&start)]);
    // The way to a state: the state before, and the call.
    let mut ways: Vec<(usize, Option<Call>)> = vec![(0, None)];
    let mut open = VecDeque::from([(start, 0, 0)]);
    let mut explored = Explored { states: 1, calls: 0, depth: 0 };
    while let Some((state, at, depth)) = open.pop_front() {
        for call in calls(&state) {
            let mut next = state.clone();
            explored.calls += 1;
            if let Err(why) = next.attempt(&call) {
                let mut way = vec![format!("{call:?}")];
                let mut at = at;
                while let (before, Some(call)) = &ways[at] {
                    way.push(format!("{call:?}"));
                    at = *before;
                }
                way.reverse();
                return Err(format!("{why}\n  {}", way.join("\n  ")));
            }
            if seen.insert(key(&next)) {
                if ways.len() == cap {
                    return Err(format!("more than {cap} states: the world isn't small"));
                }
                next.forget();
                ways.push((at, Some(call)));
                open.push_back((next, ways.len() - 1, depth + 1));
                explored.depth = depth + 1;
            }
        }
    }
    Ok(Explored { states: ways.len(), ..explored })
}

fn ask(place: usize, object: usize, verb: Verb) -> Call {
    Call::Ask { place, owner: 0, object, unacked: 0, aptly: false, verb }
}

/// Everything that can be done in a state. Who waits does nothing but give up or die.
fn calls(state: &Player<'_>) -> Vec<Call> {
    let mut calls = vec![Call::Restart { resume: true }];
    for place in 0..CLIENTS {
        let Some(session) = state.living(place) else { continue };
        calls.push(Call::Lost { place, cause: Cause::Died });
        let cancel = |give_back| Verb::Cancel { back: 0, give_back };
        let unacked =
            Call::Ask { place, owner: 0, object: 0, unacked: 9, aptly: false, verb: cancel(true) };
        calls.push(unacked);
        if state.model.waits.iter().any(|wait| wait.who.session == session) {
            calls.push(ask(place, 0, cancel(false)));
            continue;
        }
        for lock in LOCKS {
            let acquire = |careful| Verb::Acquire { unowned: false, timeout: None, careful };
            calls.push(ask(place, lock, acquire(false)));
            calls.push(ask(place, lock, acquire(true)));
            calls.push(ask(place, lock, Verb::Release { back: None, quiet: false }));
            calls.push(ask(place, lock, Verb::Release { back: Some(0), quiet: true }));
        }
        for timeout in [None, Some(TIMEOUT), Some(Duration::ZERO)] {
            calls.push(ask(place, CONDITION, Verb::Wait { timeout }));
        }
        if state.poisons(LOCKS[0]) {
            calls.push(ask(place, LOCKS[0], Verb::Mark));
        }
        calls.push(ask(place, CONDITION, Verb::Notify { n: Some(1) }));
        calls.push(ask(place, CONDITION, Verb::Notify { n: None }));
    }
    if state.model.deadline().is_some() {
        calls.push(Call::Advance { by: 2 * TIMEOUT, late: false });
    }
    calls
}

/// The same for all states that can't be told apart by any call: also for those in which the
/// clients have changed places.
fn key(state: &Player<'_>) -> u64 {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let keys = orders.map(|order| {
        let mut hasher = DefaultHasher::new();
        state.model.canonical(order, &mut hasher);
        hasher.finish()
    });
    keys.into_iter().min().expect("six of them")
}
