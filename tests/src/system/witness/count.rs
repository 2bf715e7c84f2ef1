//! How much of what a run has seen. Never here: whether that was right.

/// How much there was of what a run is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Count {
    pub events: u64,
    pub granted: u64,
    pub timed_out: u64,
    pub cancelled: u64,
    pub undone: u64,
    pub resumed: u64,
    pub restarted: u64,
    pub lost: u64,
    pub died: u64,
    pub abandoned: u64,
    pub taken: u64,
    pub notified: u64,
    pub passed_on: u64,
    pub woken: u64,
    pub passed: u64,
    pub deadlocks: u64,
    pub poisoned: u64,
    pub unowned: u64,
}

impl Count {
    /// Adds up.
    pub fn add(&mut self, other: &Self) {
        let Self { events, granted, timed_out, cancelled, undone, resumed, lost, .. } = other;
        self.events += events;
        self.granted += granted;
        self.timed_out += timed_out;
        self.cancelled += cancelled;
        self.undone += undone;
        self.resumed += resumed;
        self.restarted += other.restarted;
        self.lost += lost;
        self.died += other.died;
        self.abandoned += other.abandoned;
        self.taken += other.taken;
        self.notified += other.notified;
        self.passed_on += other.passed_on;
        self.woken += other.woken;
        self.passed += other.passed;
        self.deadlocks += other.deadlocks;
        self.poisoned += other.poisoned;
        self.unowned += other.unowned;
    }
}
