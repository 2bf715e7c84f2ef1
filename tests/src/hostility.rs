//! Hostility: a program that attacks a living daemon in every way that it knows, while
//! bystanders lock, unlock and time out, and measure their longest wait. What they see must be
//! right; how long it took is printed beside the same without an attack, and never asserted.

mod attacks;
mod bytes;
mod frames;
pub(crate) mod peer;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::process::Signal;
use syncd_proto::v1::{self, ErrorCode, client_message::Request, server_message::Message};

use self::{
    attacks::{ATTACKS, NAMESPACE},
    peer::{Peer, acquire},
};
use crate::daemon::{Daemon, WATCHDOG, program};

/// What a daemon may have grown by when all attackers are gone: what it allocated for them is
/// free by then, though not all of it returned to the system.
const MAY_KEEP: u64 = 256 << 10;
/// How long one attacker is let work at most.
const LONGEST: Duration = Duration::from_secs(4);

/// Is an attacker: `SOCKET ATTACK SEED`.
///
/// # Errors
/// If the arguments are none.
pub fn attacker(arguments: &[String]) -> Result<(), String> {
    let [socket, attack, seed] = arguments else {
        return Err(format!("SOCKET ATTACK SEED; attacks: {}", ATTACKS.join(" ")));
    };
    let seed = seed.parse().map_err(|_| "SEED is a number")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(attacks::attack(
        attack,
        Path::new(socket),
        seed,
    ));
    Ok(())
}

/// The longest waits of the bystanders, without an attack and with.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Waits {
    pub without: Duration,
    pub with: Duration,
}

/// Draws so many attacks, at times two at once, by a seed.
///
/// # Errors
/// What a bystander saw that was wrong; or that the daemon has left, or kept too much memory.
pub fn attacks(trials: u64, seed: u64) -> Result<Waits, String> {
    let mut rng = Rng::with_seed(seed);
    let daemon = Daemon::start(&[]);
    let bystanders =
        || [NAMESPACE, "elsewhere"].map(|namespace| Bystander::start(daemon.socket(), namespace));
    let calm = bystanders();
    sleep(Duration::from_millis(500));
    let without = longest(calm)?;
    let before = daemon.memory();
    let watching = bystanders();
    let mut drawn: Vec<&str> = Vec::new();
    for trial in 0..trials {
        // Each once, and then as it comes.
        let attack = ATTACKS.get(trial as usize).copied();
        let attack = attack.unwrap_or_else(|| ATTACKS[rng.usize(..ATTACKS.len())]);
        drawn.push(attack);
        let mut attackers = vec![Attacker::start(&daemon.socket(), attack, rng.u64(..))];
        if rng.u8(..4) == 0 {
            let second = ATTACKS[rng.usize(..ATTACKS.len())];
            attackers.push(Attacker::start(&daemon.socket(), second, rng.u64(..)));
        }
        let killed_after = LONGEST.mul_f64(rng.f64().max(0.1));
        for attacker in attackers {
            attacker.finish(killed_after, rng.u8(..4) == 0);
        }
        if watching.iter().any(|bystander| bystander.thread.is_finished()) {
            break;
        }
    }
    let with = longest(watching).map_err(|why| format!("{why}, after {}", drawn.join(" ")))?;
    let kept = daemon.memory().saturating_sub(before);
    if kept > MAY_KEEP {
        return Err(format!("the daemon kept {} MiB, after {}", kept >> 10, drawn.join(" ")));
    }
    Ok(Waits { without, with })
}

/// A process that attacks.
struct Attacker(std::process::Child);

impl Attacker {
    fn start(socket: &Path, attack: &str, seed: u64) -> Self {
        let mut command = Command::new(program("hostile"));
        command.arg(socket).args([attack, &seed.to_string()]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Attacker(process.expect("an attacker"))
    }

    /// Lets it work for a while, and kills it if it isn't done by then; at times it is stopped
    /// before that, with all that it has under way.
    fn finish(mut self, after: Duration, stopped: bool) {
        let end = Instant::now() + after;
        while Instant::now() < end && self.0.try_wait().expect("its state").is_none() {
            sleep(Duration::from_millis(10));
        }
        if stopped && self.0.try_wait().expect("its state").is_none() {
            super::faults::signal(self.0.id(), Signal::STOP);
            sleep(Duration::from_millis(300));
        }
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One who only wants to lock, to unlock, and to be told when time is up.
struct Bystander {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Result<Duration, String>>,
}

fn longest<const N: usize>(bystanders: [Bystander; N]) -> Result<Duration, String> {
    let waits = bystanders.map(Bystander::finish).into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(waits.into_iter().max().unwrap_or_default())
}

impl Bystander {
    fn start(socket: PathBuf, namespace: &'static str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::spawn({
            let over = over.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let work = work(&socket, namespace, &over, ready);
                runtime.map_err(|error| error.to_string())?.block_on(work)
            }
        });
        let _ = is_ready.recv();
        Bystander { over, thread }
    }

    fn finish(self) -> Result<Duration, String> {
        self.over.store(true, Relaxed);
        self.thread.join().map_err(|_| "a bystander panicked")?
    }
}

/// Works until it is told to stop; its longest wait.
async fn work(
    socket: &Path,
    namespace: &str,
    over: &AtomicBool,
    ready: std::sync::mpsc::Sender<()>,
) -> Result<Duration, String> {
    let failed = |what: &str, why: String| format!("a bystander in {namespace}: {what}: {why}");
    let opened = Peer::open(socket, namespace).await;
    let mut peer = opened.map_err(|status| failed("open", status.to_string()))?;
    let [own, held] = ["own", "held"].map(|what| format!("bystander's {what}"));
    let own = peer.lock(&own).await.map_err(|status| failed("lock", status.to_string()))?;
    let held = peer.lock(&held).await.map_err(|status| failed("lock", status.to_string()))?;
    let mut longest = Duration::ZERO;
    let mut last_token = 0;
    let mut turns = 0_u64;
    let first = peer.ask(acquire(held, 1, None)).await;
    first.map_err(|status| failed("acquire", status.to_string()))?;
    let _ = ready.send(());
    while !over.load(Relaxed) {
        let start = Instant::now();
        let times_out = turns % 16 == 15;
        let patience = Duration::from_millis(10);
        let request =
            if times_out { acquire(held, 2, Some(patience)) } else { acquire(own, 1, None) };
        let reply = tokio::time::timeout(WATCHDOG, peer.ask(request)).await;
        let reply = reply.map_err(|_| failed("acquire", "no answer".into()))?;
        match reply.map_err(|status| failed("acquire", status.to_string()))? {
            Message::Granted(granted) if !times_out && granted.token > last_token => {
                last_token = granted.token;
                longest = longest.max(start.elapsed());
                let release =
                    v1::Release { handle: own, owner: 1, token: granted.token, quiet: true };
                peer.say(Request::Release(release)).await;
            }
            Message::Error(error) if times_out && error.code() == ErrorCode::TimedOut => {
                longest = longest.max(start.elapsed().saturating_sub(patience));
            }
            other => return Err(failed("acquire", format!("{other:?} after {last_token}"))),
        }
        turns += 1;
    }
    Ok(longest)
}

/// As one of the page's faults: prints what bystanders waited.
pub(crate) fn hostile_peers(trials: u64) -> Result<u64, String> {
    let Waits { without, with } = attacks(trials, 1)?;
    println!(
        "bystanders' longest wait: {:.1} ms without an attack, {:.1} ms with {trials}",
        without.as_secs_f64() * 1e3,
        with.as_secs_f64() * 1e3
    );
    Ok(trials)
}
