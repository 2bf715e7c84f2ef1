//! Faults of real processes, each as a function of its number of trials, so that `cargo test`
//! has a bounded share of what `cargo run -p syncd-tests --bin faults` does in full. Never
//! here: a client in this process, but for the storm of cancels and those who reclaim by hand.

mod crowd;
mod deaths;
mod reclaims;
mod restarts;
mod storms;
mod tears;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};

pub use storms::{fenced_file, read_fenced};

use crate::{
    conformance::split_token,
    daemon::{Daemon, WATCHDOG, eventually, program},
    fuzz::bad_input,
    hostility::hostile_peers,
    process_driver::{ActorProcess, Face},
    script::Needs,
};

/// What is wrong, or how many trials held.
pub type Held = Result<u64, String>;

const NAMESPACE: &str = "faults";

/// Something that can go wrong around a lock.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Fault {
    /// As in the page of acceptance.
    pub name: &'static str,
    pub what: &'static str,
    pub needs: Need,
    /// In full.
    pub trials: u64,
    /// Within `cargo test`.
    pub few: u64,
    pub run: fn(u64) -> Held,
}

/// What a fault can't be made without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It can be made anywhere.
    Nothing,
    /// To be another user, or to choose the number of a process.
    Root,
    /// A build with the feature `failpoints`.
    Failpoints,
}

impl Need {
    /// What is missing here.
    pub fn missing(self) -> Option<&'static str> {
        match self {
            Need::Root if !rustix::process::geteuid().is_root() => Some("it needs root"),
            Need::Failpoints if !cfg!(feature = "failpoints") => {
                Some("it needs a build with --features failpoints")
            }
            _ => None,
        }
    }
}

/// All of them.
pub const FAULTS: [Fault; 22] = [
    Fault {
        name: "F3",
        what: "mixed faults, recorded histories",
        needs: Need::Nothing,
        trials: 200,
        few: 4,
        run: restarts::mixed_faults,
    },
    Fault {
        name: "F5",
        what: "a holder is killed",
        needs: Need::Nothing,
        trials: 500,
        few: 20,
        run: deaths::holder_killed,
    },
    Fault {
        name: "F6a",
        what: "killed with a forked child alive",
        needs: Need::Nothing,
        trials: 100,
        few: 5,
        run: deaths::killed_with_a_child,
    },
    Fault {
        name: "F6b",
        what: "killed while stopped",
        needs: Need::Nothing,
        trials: 100,
        few: 5,
        run: deaths::killed_stopped,
    },
    Fault {
        name: "F7",
        what: "a holder is paused",
        needs: Need::Nothing,
        trials: 30,
        few: 2,
        run: deaths::holder_paused,
    },
    Fault {
        name: "F8",
        what: "a waiter is killed",
        needs: Need::Nothing,
        trials: 500,
        few: 20,
        run: deaths::waiter_killed,
    },
    Fault {
        name: "F9",
        what: "the daemon is killed under load",
        needs: Need::Nothing,
        trials: 300,
        few: 10,
        run: restarts::daemon_killed,
    },
    Fault {
        name: "F10",
        what: "killed at each step of persisting",
        needs: Need::Failpoints,
        trials: 350,
        few: 7,
        run: restarts::killed_at_each_step,
    },
    Fault {
        name: "F10t",
        what: "a journal's files torn or changed",
        needs: Need::Nothing,
        trials: 10_000,
        few: 1000,
        run: tears::torn_files,
    },
    Fault {
        name: "F11a",
        what: "a holder dies while the daemon is down",
        needs: Need::Nothing,
        trials: 200,
        few: 10,
        run: reclaims::both_killed,
    },
    Fault {
        name: "F11b",
        what: "the same, and another process has its number",
        needs: Need::Root,
        trials: 200,
        few: 5,
        run: reclaims::number_taken_over,
    },
    Fault {
        name: "F12a",
        what: "reclaimed too late",
        needs: Need::Nothing,
        trials: 50,
        few: 4,
        run: reclaims::late,
    },
    Fault {
        name: "F12b",
        what: "reclaimed with a forged secret",
        needs: Need::Nothing,
        trials: 50,
        few: 4,
        run: reclaims::forged,
    },
    Fault {
        name: "F12c",
        what: "reclaimed by another process",
        needs: Need::Nothing,
        trials: 50,
        few: 2,
        run: reclaims::other_process,
    },
    Fault {
        name: "F12d",
        what: "reclaimed by another user",
        needs: Need::Root,
        trials: 50,
        few: 2,
        run: reclaims::other_user,
    },
    Fault {
        name: "F12e",
        what: "reclaimed after another held it",
        needs: Need::Nothing,
        trials: 50,
        few: 4,
        run: reclaims::after_another,
    },
    Fault {
        name: "F13",
        what: "the daemon is paused",
        needs: Need::Nothing,
        trials: 20,
        few: 1,
        run: deaths::daemon_paused,
    },
    Fault {
        name: "F14",
        what: "condition waits",
        needs: Need::Nothing,
        trials: 200_000,
        few: 2_000,
        run: storms::condition_waits,
    },
    Fault {
        name: "F15",
        what: "deadlock",
        needs: Need::Nothing,
        trials: 200,
        few: 10,
        run: storms::deadlock,
    },
    Fault {
        name: "F16",
        what: "10,000 cancels",
        needs: Need::Nothing,
        trials: 10,
        few: 1,
        run: storms::cancel_storm,
    },
    Fault {
        name: "F17",
        what: "hostile peers",
        needs: Need::Nothing,
        trials: 240,
        few: 24,
        run: hostile_peers,
    },
    Fault {
        name: "F18",
        what: "bad input",
        needs: Need::Nothing,
        trials: 1_000_000,
        few: 20_000,
        run: bad_input,
    },
];

/// That of a name.
pub fn named(name: &str) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.name == name)
}

static SEED: AtomicU64 = AtomicU64::new(1);

/// What chance begins with, from here on: a failure names it where it decides what was done.
pub fn set_seed(seed: u64) {
    SEED.store(seed, Relaxed);
}

fn seed() -> u64 {
    SEED.load(Relaxed)
}

/// A daemon, and chance.
struct Room {
    daemon: Daemon,
    face: Face,
    rng: Rng,
    /// The process that was killed last, if that is asked for.
    last_killed: Option<u32>,
}

impl Room {
    fn new(flags: &[&str]) -> Self {
        let (program, arguments) = (program("actor"), vec!["blocking".into()]);
        let face = Face { ability: Needs::Api, program, arguments };
        Room { daemon: Daemon::start(flags), face, rng: Rng::with_seed(seed()), last_killed: None }
    }

    /// A client process that knows an object.
    fn actor(&self, objects: &[&str]) -> ActorProcess {
        let mut actor = ActorProcess::start(&self.face, &self.daemon, NAMESPACE);
        for object in objects {
            actor.tell(&format!("object {object}")).expect("it lives");
        }
        actor
    }

    fn waiters(&self, object: &str) -> usize {
        self.daemon.describe(NAMESPACE, object).map_or(0, |detail| detail.waiters.len())
    }

    fn value(&self, object: &str) -> u32 {
        let detail = self.daemon.describe(NAMESPACE, object);
        detail.and_then(|detail| detail.object).map_or(u32::MAX, |object| object.value)
    }

    /// Asks for it, and sees it join the queue behind as many.
    fn queue(&self, actor: &mut ActorProcess, object: &str, behind: usize) -> Result<(), String> {
        actor.tell(&format!("0 acquire {object}"))?;
        eventually("a waiter's arrival", || (self.waiters(object) > behind).then_some(()));
        Ok(())
    }
}

/// Long work says how far it is.
fn tell_progress(done: u64, of: u64) {
    if of >= 50 && (done.is_multiple_of(of / 10) || done == of) {
        eprintln!("{done} of {of}");
    }
}

/// Does as it is told, with that outcome, whose token is returned.
fn expect(actor: &mut ActorProcess, operation: &str, wanted: &str) -> Result<u64, String> {
    actor.tell(&format!("0 {operation}"))?;
    outcome(actor, wanted).map_err(|why| format!("{operation}: {why}"))
}

fn outcome(actor: &mut ActorProcess, wanted: &str) -> Result<u64, String> {
    let heard = actor.hear(0, WATCHDOG).ok_or("it says nothing")?;
    let (found, token) = split_token(&heard);
    if found == wanted { Ok(token.unwrap_or(0)) } else { Err(format!("{found}, not {wanted}")) }
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    kill_process(pid, signal).expect("ours");
}
