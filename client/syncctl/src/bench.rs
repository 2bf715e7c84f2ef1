//! `bench`: measures this machine in a few seconds, with a raw socket in the same run for
//! comparison.

use std::{
    io,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde::Serialize;
use syncd_client::blocking;

use crate::{
    broker,
    cli::Global,
    failure::Failure,
    text::{Ink, Screen, Table},
    worker::{self, Role, failed},
};

/// The length of each measurement.
const LENGTH: Duration = Duration::from_secs(1);
/// Raw echoes and locks alternate in turns of this many round trips.
const TURN: usize = 200;
/// Requests in flight at once, for throughput.
const IN_FLIGHT: usize = 64;

/// The results. Times are in microseconds.
#[derive(Debug, Serialize)]
struct Figures {
    /// 16 bytes there and back between two processes over a Unix socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_echo: Option<Spread>,
    /// Acquire and release of an uncontended lock, blocking client.
    acquire_release: Spread,
    /// The ratio of the medians.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio_to_raw_echo: Option<f64>,
    /// Release in one process to grant in another: half a ping-pong over two semaphores.
    hand_off: Spread,
    /// One connection, many locks at once.
    pipelined_pairs_per_s: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    p50_us: f64,
    p99_us: f64,
    rounds: usize,
}

impl Spread {
    /// The spread of `rounds`, each divided by `parts`.
    fn of(mut rounds: Vec<Duration>, parts: u32) -> Self {
        rounds.sort_unstable();
        let at = |share: f64| {
            let index = (rounds.len().saturating_sub(1) as f64 * share).round() as usize;
            rounds.get(index).map_or(0.0, |d| (*d / parts).as_nanos() as f64 / 1000.0)
        };
        Self { p50_us: at(0.5), p99_us: at(0.99), rounds: rounds.len() }
    }
}

/// `bench`
pub fn bench(global: &Global, screen: Screen) -> Result<(), Failure> {
    let client = broker::blocking_client(global)?;
    let (raw_echo, acquire_release) = latency(&client)?;
    let hand_off = hand_off(&client, global)?;
    client.close();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = Figures {
        raw_echo,
        acquire_release,
        ratio_to_raw_echo: raw_echo.map(|raw| acquire_release.p50_us / raw.p50_us),
        hand_off,
        pipelined_pairs_per_s: runtime.block_on(throughput(global))?,
    };
    match screen.json {
        true => Ok(screen.json(&figures)?),
        false => Ok(print(screen, &figures)?),
    }
}

fn print(screen: Screen, figures: &Figures) -> io::Result<()> {
    let mut table = Table::new(&["WHAT", ">P50 us", ">P99 us", ">ROUNDS"]);
    let rows = [
        ("raw echo of 16 bytes, Unix socket", figures.raw_echo),
        ("acquire + release, uncontended", Some(figures.acquire_release)),
        ("hand-off between two processes", Some(figures.hand_off)),
    ];
    for (what, spread) in rows {
        let Some(Spread { p50_us, p99_us, rounds }) = spread else { continue };
        table.row([
            (Ink::Plain, what.into()),
            (Ink::Bold, format!("{p50_us:.1}")),
            (Ink::Plain, format!("{p99_us:.1}")),
            (Ink::Dim, rounds.to_string()),
        ]);
    }
    screen.table(&table)?;
    let pairs = screen.paint(Ink::Bold, format!("{:.0}", figures.pipelined_pairs_per_s));
    screen.line(format!(
        "\n{pairs} acquire + release a second, {IN_FLIGHT} at once, one connection"
    ))?;
    if let Some(ratio) = figures.ratio_to_raw_echo {
        let ratio = screen.paint(Ink::Bold, format!("{ratio:.1}"));
        screen.line(format!("a lock costs {ratio} raw echoes"))?;
    }
    Ok(())
}

/// Measures raw echoes and locks, in turns.
fn latency(client: &blocking::Client) -> Result<(Option<Spread>, Spread), Failure> {
    let lock = client.lock("syncctl-bench/lock").map_err(failed)?;
    let mut echo = Echo::start()?;
    let (mut raw, mut locks) = (Vec::new(), Vec::new());
    let end = Instant::now() + 2 * LENGTH;
    while Instant::now() < end {
        if let Some(echo) = &mut echo {
            for _ in 0..TURN {
                let began = Instant::now();
                echo.round()?;
                raw.push(began.elapsed());
            }
        }
        for _ in 0..TURN {
            let began = Instant::now();
            drop(lock.acquire().map_err(failed)?);
            locks.push(began.elapsed());
        }
    }
    // The first turn of each is warm-up.
    let warm = |rounds: Vec<Duration>| Spread::of(rounds[TURN.min(rounds.len())..].into(), 1);
    Ok((echo.map(|_| warm(raw)), warm(locks)))
}

fn hand_off(client: &blocking::Client, global: &Global) -> Result<Spread, Failure> {
    let ping = client.semaphore(worker::PING, 0).map_err(failed)?;
    let pong = client.semaphore(worker::PONG, 0).map_err(failed)?;
    let mut command = worker_command(Role::Pong)?;
    command.arg("--socket").arg(global.endpoint()?.as_path()).arg("--namespace");
    let _partner = Partner(command.arg(&global.namespace).spawn()?);
    let mut rounds = Vec::new();
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let began = Instant::now();
        ping.release().map_err(failed)?;
        pong.acquire_unowned().map_err(failed)?;
        rounds.push(began.elapsed());
        // The first round waits until the partner has started.
        end.get_or_insert_with(|| Instant::now() + LENGTH);
    }
    Ok(Spread::of(rounds.split_off(1), 2))
}

async fn throughput(global: &Global) -> Result<f64, Failure> {
    let client = broker::client(global).await?;
    let began = Instant::now();
    let lane = async |number: usize| {
        let name = format!("syncctl-bench/lane-{number}");
        let lock = client.lock(&name).await.map_err(failed)?;
        let mut pairs = 0_u64;
        while began.elapsed() < LENGTH {
            // Dropping the guard would send each release in a write of its own.
            let guard = lock.acquire().await.map_err(failed)?;
            guard.release().await.map_err(failed)?;
            pairs += 1;
        }
        Ok::<_, Failure>(pairs)
    };
    let pairs = futures_util::future::try_join_all((0..IN_FLIGHT).map(lane)).await?;
    let took = began.elapsed();
    client.close().await;
    Ok(pairs.iter().sum::<u64>() as f64 / took.as_secs_f64())
}

fn worker_command(role: Role) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["worker", &role.name(), "bench", "."]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

/// A process that is killed when this is dropped.
struct Partner(Child);

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that echoes, at the other end of a socket pair.
#[cfg(unix)]
struct Echo {
    socket: std::os::unix::net::UnixStream,
    _partner: Partner,
}

#[cfg(unix)]
impl Echo {
    fn start() -> io::Result<Option<Self>> {
        let (socket, theirs) = std::os::unix::net::UnixStream::pair()?;
        let theirs = std::os::fd::OwnedFd::from(theirs);
        let partner = Partner(worker_command(Role::Echo)?.stdin(theirs).spawn()?);
        Ok(Some(Self { socket, _partner: partner }))
    }

    fn round(&mut self) -> io::Result<()> {
        use std::io::{Read as _, Write as _};

        let mut message = [0; 16];
        self.socket.write_all(&message)?;
        self.socket.read_exact(&mut message)
    }
}

/// Windows has no socket pairs.
#[cfg(windows)]
enum Echo {}

#[cfg(windows)]
impl Echo {
    fn start() -> io::Result<Option<Self>> {
        Ok(None)
    }

    fn round(&mut self) -> io::Result<()> {
        match *self {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_sorted_rounds() {
        let rounds = (1..=101).rev().map(Duration::from_micros).collect();
        let Spread { p50_us, p99_us, rounds } = Spread::of(rounds, 1);
        assert_eq!((p50_us, p99_us, rounds), (51.0, 100.0, 101));
        assert_eq!(Spread::of(Vec::new(), 1).p50_us, 0.0);
    }
}
