//! Chance: what a world is like, and what is done in it. Calls name sessions and objects by their
//! places, so that any call can be left out of a life.

use std::time::Duration;

use fastrand::Rng;
use syncd_core::{Cause, Class, Config, Limits};

use crate::model::Make;

/// How many sessions there are at once, and owners in each.
pub const SESSIONS: usize = 4;
/// See [`SESSIONS`].
pub const OWNERS: u64 = 2;

/// What there can be. The objects by their place; a Condition says its lock's.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct World {
    pub config: Config,
    pub objects: Vec<Plan>,
}

/// An object that may be made.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Plan {
    pub make: Make,
    pub named: bool,
    pub poison: bool,
    pub keep: bool,
}

/// One call.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Call {
    Open {
        place: usize,
    },
    /// `object`: its place. `unacked`: how many messages the client leaves unacknowledged.
    /// `aptly`: not without a session and the object, and if whoever holds it can do it, so.
    Ask {
        place: usize,
        owner: u64,
        object: usize,
        unacked: u64,
        aptly: bool,
        verb: Verb,
    },
    Disconnect {
        place: usize,
    },
    /// The daemon is killed, and another goes on from what it kept; `resume`: all sessions find
    /// it at once.
    Restart {
        resume: bool,
    },
    /// `missed`: how many of the last messages the client says it didn't get.
    Resume {
        place: usize,
        missed: u64,
    },
    Lost {
        place: usize,
        cause: Cause,
    },
    Force {
        object: usize,
    },
    /// Time goes on, and what is due is done: or, `late`, comes with a later call.
    Advance {
        by: Duration,
        late: bool,
    },
}

/// What is asked.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Verb {
    Create {
        exclusive: bool,
    },
    AttachName,
    AttachKey,
    Detach,
    Unlink,
    Acquire {
        unowned: bool,
        timeout: Option<Duration>,
        careful: bool,
    },
    /// `back`: which of the session's grants, counted from the last.
    Release {
        back: Option<usize>,
        quiet: bool,
    },
    Forget {
        back: usize,
    },
    Mark,
    Wait {
        timeout: Option<Duration>,
    },
    Notify {
        n: Option<u32>,
    },
    Set(bool),
    Await {
        timeout: Option<Duration>,
    },
    Meet {
        timeout: Option<Duration>,
        acting: bool,
    },
    Act {
        ok: bool,
    },
    Reset,
    Abort,
    Query,
    /// `back`: which of the session's requests, counted from the last.
    Cancel {
        back: u64,
        give_back: bool,
    },
    Goodbye,
    /// An id that has been used.
    Again,
}

pub(super) fn life(seed: u64, calls: usize) -> (World, Vec<Call>) {
    let mut rng = Rng::with_seed(seed);
    let world = world(&mut rng);
    let mut life: Vec<Call> = (0..SESSIONS).map(|place| Call::Open { place }).collect();
    // Lives differ in what they are about, lest all be a little of everything.
    let favourites: Vec<usize> = (0..3).map(|_| rng.usize(..world.objects.len())).collect();
    life.extend((0..calls).map(|_| call(&mut rng, &world, &favourites)));
    (world, life)
}

fn world(rng: &mut Rng) -> World {
    let sem = |class, value, max| Make::Sem { class, value, max };
    let plan = |rng: &mut Rng, make| {
        let lock = matches!(make, Make::Sem { class, .. } if class.is_exclusive());
        Plan {
            make,
            named: rng.u8(..5) > 0,
            poison: lock && rng.u8(..3) == 0,
            keep: rng.u8(..6) == 0,
        }
    };
    let value = rng.u32(..3);
    let above = rng.u32(..6);
    let makes = [
        sem(Class::Lock, 1, 1),
        sem(Class::RLock, 1, 1),
        Make::Condition(Some(0)),
        Make::Condition(Some(1)),
        Make::Condition(Some(0)),
        sem(Class::Semaphore, above, 4),
        sem(Class::BoundedSemaphore, value, value),
        sem(Class::Lock, 1, 1),
        Make::Event,
        Make::Barrier(rng.u32(1..4)),
    ];
    let mut config = Config::default();
    if rng.u8(..4) == 0 {
        config.limits = Limits {
            sessions: 3,
            objects: 6,
            waiters: rng.usize(1..6),
            waiters_per_session: rng.usize(1..4),
            holds: rng.usize(1..5),
            holds_per_session: rng.usize(1..4),
            references_per_session: rng.usize(1..7),
            unacknowledged_per_session: rng.usize(1..1_500),
            ..Limits::default()
        };
    }
    // The smallest steps: what concerns several takes many.
    if rng.bool() {
        config.limits.step = 1;
    }
    World { config, objects: makes.into_iter().map(|make| plan(rng, make)).collect() }
}

fn call(rng: &mut Rng, world: &World, favourites: &[usize]) -> Call {
    let place = rng.usize(..SESSIONS);
    match rng.u32(..100) {
        0..3 => Call::Open { place },
        3 => {
            let causes = [Cause::Died, Cause::Died, Cause::Kicked, Cause::Misbehaved];
            Call::Lost { place, cause: causes[rng.usize(..causes.len())] }
        }
        4 if rng.u8(..3) == 0 => Call::Restart { resume: rng.bool() },
        4 => Call::Disconnect { place },
        5..7 => Call::Resume { place, missed: rng.u64(..6) },
        7 => Call::Force { object: rng.usize(..world.objects.len()) },
        8..18 => {
            let by = match rng.u8(..8) {
                0 => Duration::from_secs(rng.u64(..70)),
                _ => Duration::from_millis(rng.u64(..300)),
            };
            Call::Advance { by, late: rng.u8(..4) == 0 }
        }
        _ => {
            let object = match rng.u8(..4) {
                0 => rng.usize(..world.objects.len()),
                _ => favourites[rng.usize(..favourites.len())],
            };
            // A Condition is nothing without its lock.
            let object = match world.objects[object].make {
                Make::Condition(Some(lock)) if rng.u8(..3) == 0 => lock,
                _ => object,
            };
            let (owner, unacked) = (rng.u64(..OWNERS), rng.u64(..6));
            let verb = verb(rng, world.objects[object].make);
            Call::Ask { place, owner, object, unacked, aptly: rng.u8(..8) > 0, verb }
        }
    }
}

fn timeout(rng: &mut Rng) -> Option<Duration> {
    match rng.u8(..10) {
        0..4 => None,
        4 => Some(Duration::ZERO),
        5 => Some(Duration::MAX),
        // Few different ones, so that several fall due in the same moment.
        _ => Some(Duration::from_millis(100 * rng.u64(1..4))),
    }
}

fn verb(rng: &mut Rng, make: Make) -> Verb {
    match rng.u32(..100) {
        0..3 => Verb::Create { exclusive: rng.u8(..4) == 0 },
        10 => Verb::AttachName,
        11 => Verb::AttachKey,
        12..14 => Verb::Detach,
        14 => Verb::Unlink,
        15..21 => Verb::Cancel { back: rng.u64(..5), give_back: rng.bool() },
        21..24 => Verb::Query,
        24 => Verb::Goodbye,
        25 => Verb::Again,
        // At times, what isn't for an object of its kind.
        26 => of_kind(rng, Make::Event),
        27 => of_kind(rng, Make::Barrier(1)),
        28 => of_kind(rng, Make::Condition(None)),
        29 => of_kind(rng, Make::Sem { class: Class::Lock, value: 1, max: 1 }),
        _ => of_kind(rng, make),
    }
}

fn of_kind(rng: &mut Rng, make: Make) -> Verb {
    match make {
        Make::Sem { .. } => match rng.u32(..20) {
            0..10 => Verb::Acquire {
                unowned: rng.u8(..5) == 0,
                timeout: timeout(rng),
                careful: rng.bool(),
            },
            10..15 => Verb::Release { back: Some(rng.usize(..2)), quiet: rng.bool() },
            15..18 => Verb::Release { back: None, quiet: rng.bool() },
            18 => Verb::Forget { back: rng.usize(..2) },
            _ => Verb::Mark,
        },
        Make::Condition(_) => match rng.u32(..9) {
            0..6 => Verb::Wait { timeout: timeout(rng) },
            6 => Verb::Notify { n: None },
            _ => Verb::Notify { n: Some(rng.u32(..3)) },
        },
        Make::Event => match rng.u32(..5) {
            0 => Verb::Set(true),
            1 => Verb::Set(false),
            _ => Verb::Await { timeout: timeout(rng) },
        },
        Make::Barrier(_) => match rng.u32(..12) {
            0 => Verb::Reset,
            1 => Verb::Abort,
            2..4 => Verb::Act { ok: rng.u8(..4) > 0 },
            _ => Verb::Meet { timeout: timeout(rng), acting: rng.bool() },
        },
    }
}
