//! What a run is made of, drawn from its seed: the objects, the processes, how often what goes
//! wrong. A plan can be made smaller, which is how a failing run is shrunk.

use fastrand::Rng;

/// A millisecond of simulated time, which is counted in microseconds.
pub const MILLI: u64 = 1_000;

/// Everything about a run that isn't drawn while it goes on.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Plan {
    pub seed: u64,
    /// How many events before the world is healed.
    pub events: usize,
    /// Everybody has opened a session and attached to everything before anything goes wrong.
    pub warm: bool,
    /// In microseconds.
    pub grace: u64,
    /// How much one call of the core does before it leaves the rest to the next.
    pub step: u32,
    /// Messages that wait for a stream above which its reader is dropped.
    pub unsent: usize,
    pub objects: Vec<Kind>,
    /// How many owners each process has.
    pub processes: Vec<u64>,
    /// Messages that a link takes in each direction before its writer has to wait.
    pub window: usize,
    pub chaos: Chaos,
}

/// A simulated object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    /// `stolen`: others release it too, as they may release a Lock.
    Lock {
        poison: bool,
        stolen: bool,
    },
    RLock {
        poison: bool,
    },
    /// Its takers give back what they took.
    Semaphore {
        permits: u32,
        bounded: bool,
    },
    /// A count of items: producers release, consumers acquire, and no permit is owned.
    Counter {
        items: u32,
    },
    /// `lock` is the place of its lock among the objects.
    Condition {
        lock: usize,
    },
    Event,
    Barrier {
        parties: u32,
    },
}

impl Kind {
    /// Lock or RLock.
    pub fn is_exclusive(self) -> bool {
        matches!(self, Kind::Lock { .. } | Kind::RLock { .. })
    }

    /// It has permits.
    pub fn is_semlock(self) -> bool {
        !matches!(self, Kind::Condition { .. } | Kind::Event | Kind::Barrier { .. })
    }

    /// It is made to poison.
    pub fn poisons(self) -> bool {
        matches!(self, Kind::Lock { poison: true, .. } | Kind::RLock { poison: true })
    }

    /// How many permits there are at first.
    pub fn permits(self) -> u32 {
        match self {
            Kind::Semaphore { permits, .. } => permits,
            Kind::Counter { items } => items,
            _ => 1,
        }
    }
}

/// How likely what goes wrong is, as weights beside those of what goes right.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Chaos {
    pub cut: u32,
    /// The daemon is killed, and comes back after a while with all that it knew.
    pub restart: u32,
    /// Of the cuts, how many in ten last for a while.
    pub partition: u32,
    pub die: u32,
    pub close: u32,
    pub kick: u32,
    pub force: u32,
    /// In a hundred of a waiting owner's turns.
    pub withdraw: u32,
    pub recall: u32,
    /// In a thousand of an owner's turns: a session gives up an object that it still uses.
    pub detach: u32,
    /// Calls by the hundred, to fill what is bounded.
    pub flood: u32,
}

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        // Runs differ in what goes wrong, lest all be a little of everything.
        let mut some = |most: u32, of: u32| if rng.u32(..of) == 0 { rng.u32(1..=most) } else { 0 };
        let chaos = Chaos {
            cut: some(4, 2) + some(2, 3),
            partition: some(6, 2),
            die: some(2, 3),
            close: some(1, 5),
            kick: some(1, 8),
            force: some(1, 8),
            withdraw: some(20, 2),
            recall: some(15, 3),
            detach: some(15, 8),
            flood: some(10, 60),
            restart: 0,
        };
        let mut objects = Vec::new();
        let many = [0, 1, 1, 1, 2, 2, 3][rng.usize(..7)];
        (0..many).for_each(|_| object(rng, &mut objects));
        if many == 0 {
            // A storm of waits.
            let poison = rng.u32(..4) == 0;
            objects.push(Kind::Lock { poison, stolen: false });
            objects.push(Kind::Condition { lock: 0 });
        }
        let processes = (0..rng.usize(2..=4)).map(|_| rng.u64(1..=3)).collect();
        // Of its own, so that half of the runs are what they would be without.
        let mut restarts = Rng::with_seed(seed ^ 0xDEAD);
        let restart = if restarts.bool() { restarts.u32(1..=3) } else { 0 };
        let chaos = Chaos { restart, ..chaos };
        Self {
            seed,
            events: rng.usize(100..=400),
            warm: rng.u32(..4) > 0,
            grace: [200, 1_000, 10_000][rng.usize(..3)] * MILLI,
            step: [1, 2, 4, 512][rng.usize(..4)],
            unsent: if rng.u32(..20) == 0 { rng.usize(1..4) } else { usize::MAX },
            objects,
            processes,
            window: [1, 2, 5, 64][rng.usize(..4)],
            chaos,
        }
    }

    /// Plans with a little less in them.
    pub fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut plan = self.clone();
            change(&mut plan);
            plans.push(plan);
        };
        for by in [2, 4, 8, 16] {
            with(&|plan| plan.events -= plan.events / by);
        }
        with(&|plan| plan.events = plan.events.saturating_sub(1));
        if self.processes.len() > 1 {
            (0..self.processes.len()).for_each(|at| with(&|plan| _ = plan.processes.remove(at)));
        }
        for at in 0..self.processes.len() {
            if self.processes[at] > 1 {
                with(&|plan| plan.processes[at] -= 1);
            }
        }
        for at in 0..self.objects.len() {
            let is_lock = |kind: &Kind| matches!(kind, Kind::Condition { lock } if *lock == at);
            if self.objects.len() > 1 && !self.objects.iter().any(is_lock) {
                with(&|plan| {
                    plan.objects.remove(at);
                    for kind in &mut plan.objects {
                        if let Kind::Condition { lock } = kind {
                            *lock -= usize::from(*lock > at);
                        }
                    }
                });
            }
        }
        let knobs: [fn(&mut Chaos) -> &mut u32; 11] = [
            |c| &mut c.cut,
            |c| &mut c.restart,
            |c| &mut c.partition,
            |c| &mut c.die,
            |c| &mut c.close,
            |c| &mut c.kick,
            |c| &mut c.force,
            |c| &mut c.withdraw,
            |c| &mut c.recall,
            |c| &mut c.detach,
            |c| &mut c.flood,
        ];
        for knob in knobs {
            if *knob(&mut self.chaos.clone()) > 0 {
                with(&|plan| *knob(&mut plan.chaos) = 0);
            }
        }
        plans
    }
}

fn object(rng: &mut Rng, objects: &mut Vec<Kind>) {
    let lock = |rng: &mut Rng| match rng.u32(..6) {
        0 => Kind::Lock { poison: true, stolen: false },
        1 => Kind::Lock { poison: false, stolen: true },
        2 => Kind::RLock { poison: true },
        3 => Kind::RLock { poison: false },
        _ => Kind::Lock { poison: false, stolen: false },
    };
    let kind = match rng.u32(..10) {
        0..=2 => lock(rng),
        3 => Kind::Semaphore { permits: rng.u32(1..=3), bounded: rng.bool() },
        4 => Kind::Counter { items: rng.u32(..3) },
        5 => Kind::Event,
        6 => Kind::Barrier { parties: rng.u32(1..=3) },
        _ => {
            objects.push(lock(rng));
            Kind::Condition { lock: objects.len() - 1 }
        }
    };
    objects.push(kind);
}
