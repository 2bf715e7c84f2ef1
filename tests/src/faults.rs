//! Faults of real processes, each as a function of its number of trials, so that `cargo test`
//! has a bounded share of what `cargo run -p syncd-tests --bin faults` does in full. Never
//! here: a client in this process, but for the storm of cancels.

mod deaths;
mod storms;

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
    /// In full.
    pub trials: u64,
    /// Within `cargo test`.
    pub few: u64,
    pub run: fn(u64) -> Held,
}

/// All of them.
pub const FAULTS: [Fault; 11] = [
    Fault {
        name: "F5",
        what: "a holder is killed",
        trials: 500,
        few: 20,
        run: deaths::holder_killed,
    },
    Fault {
        name: "F6a",
        what: "killed with a forked child alive",
        trials: 100,
        few: 5,
        run: deaths::killed_with_a_child,
    },
    Fault {
        name: "F6b",
        what: "killed while stopped",
        trials: 100,
        few: 5,
        run: deaths::killed_stopped,
    },
    Fault {
        name: "F7",
        what: "a holder is paused",
        trials: 30,
        few: 2,
        run: deaths::holder_paused,
    },
    Fault {
        name: "F8",
        what: "a waiter is killed",
        trials: 500,
        few: 20,
        run: deaths::waiter_killed,
    },
    Fault {
        name: "F13",
        what: "the daemon is paused",
        trials: 20,
        few: 1,
        run: deaths::daemon_paused,
    },
    Fault {
        name: "F14",
        what: "condition waits",
        trials: 200_000,
        few: 2_000,
        run: storms::condition_waits,
    },
    Fault { name: "F15", what: "deadlock", trials: 200, few: 10, run: storms::deadlock },
    Fault { name: "F16", what: "10,000 cancels", trials: 10, few: 1, run: storms::cancel_storm },
    Fault { name: "F17", what: "hostile peers", trials: 240, few: 24, run: hostile_peers },
    Fault { name: "F18", what: "bad input", trials: 1_000_000, few: 20_000, run: bad_input },
];

/// A daemon, and chance.
struct Room {
    daemon: Daemon,
    face: Face,
    rng: Rng,
}

impl Room {
    fn new(flags: &[&str]) -> Self {
        let (program, arguments) = (program("actor"), vec!["blocking".into()]);
        let face = Face { ability: Needs::Api, program, arguments };
        Room { daemon: Daemon::start(flags), face, rng: Rng::with_seed(1) }
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
