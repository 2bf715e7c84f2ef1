//! The speed table: `cargo bench -p syncd-tests -- [S1 S4 ...] [--pinned | --unpinned]
//! [--rounds N]`. Each figure is taken in turn with its rival's, round by round, and stands
//! beside its goal; none makes this fail. With SYNCD_NO_JOURNAL set the daemon keeps nothing, as one
//! by the name of `syncd` would. What is measured lies in the modules, never here.

mod core;
mod daemon;
mod journal;
mod latency;
mod raw;
mod restart;
mod scale;
mod stack;
mod table;
mod throughput;
mod wire;
mod worker;

use std::env;

use tempfile::TempDir;

use crate::{
    table::{HEAD, Row, Unit},
    worker::{Cpus, ROLE},
};

/// Where measurements are taken, and their rows.
struct Lab {
    cpus: Cpus,
    rounds: usize,
    dir: TempDir,
    rows: Vec<Row>,
}

impl Lab {
    /// What each side answers, by figure and round, the sides in turns; a first round warms up.
    pub fn rounds<const SIDES: usize>(
        &self,
        mut sides: [&mut dyn FnMut() -> Vec<f64>; SIDES],
    ) -> [Vec<Vec<f64>>; SIDES] {
        let mut taken = sides.each_mut().map(|side| vec![Vec::new(); side().len()]);
        for _ in 0..self.rounds {
            for (side, taken) in sides.iter_mut().zip(&mut taken) {
                taken.iter_mut().zip(side()).for_each(|(taken, figure)| taken.push(figure));
            }
        }
        taken
    }

    /// Adds a row to the table.
    pub fn row(&mut self, id: &'static str, work: &str, unit: Unit, ours: &[f64]) -> &mut Row {
        let (work, cpus, ours) = (work.into(), self.cpus, ours.to_vec());
        self.rows.push(Row { id, work, cpus, unit, ours, rival: None, goal: None });
        self.rows.last_mut().expect("it was just pushed")
    }
}

/// A benchmark of the acceptance page, and on which CPUs its goal is set.
struct Bench {
    id: &'static str,
    run: fn(&mut Lab),
    cpus: &'static [Cpus],
}

const BOTH: &[Cpus] = &[Cpus::Pinned, Cpus::Free];
const BENCHES: &[Bench] = &[
    Bench { id: "core", run: core::rows, cpus: &[Cpus::Pinned] },
    Bench { id: "journal", run: journal::rows, cpus: &[Cpus::Pinned] },
    Bench { id: "S1", run: latency::uncontended, cpus: BOTH },
    Bench { id: "S3", run: latency::handoff, cpus: BOTH },
    Bench { id: "S4", run: throughput::pipelined, cpus: BOTH },
    Bench { id: "S5", run: throughput::fan_in, cpus: &[Cpus::Free] },
    Bench { id: "S6", run: scale::idle, cpus: &[Cpus::Free] },
    Bench { id: "S7", run: scale::queues, cpus: &[Cpus::Pinned] },
    Bench { id: "S8", run: scale::death, cpus: &[Cpus::Free] },
    Bench { id: "S9", run: scale::wake_ups, cpus: BOTH },
    Bench { id: "S10", run: restart::journal, cpus: BOTH },
    Bench { id: "S11", run: restart::restart, cpus: &[Cpus::Free] },
    Bench { id: "replace", run: restart::replace, cpus: &[Cpus::Free] },
];

fn role(role: &str, args: &[String]) {
    match (role, args) {
        ("echo", [path]) => raw::echo(path),
        ("relay", [path]) => raw::relay(path),
        ("driver", [path]) => raw::driver(path),
        ("raw-loop", [path]) => raw::exchanges(path),
        ("returner", [path]) => raw::returner(path),
        ("daemon", [path, journal]) => daemon::serve(path, journal),
        ("stack", [path]) => stack::serve(path),
        ("uncontended", [path]) => latency::uncontended_client(path),
        ("ping", [path]) => latency::ping(path),
        ("pong", [path]) => latency::pong(path),
        ("closed-loop", [path, name, _]) => throughput::closed_loop(path, name),
        ("tasks", [path, name, depth]) => throughput::tasks(path, name, depth, false),
        ("tasks-on-one", [path, name, depth]) => throughput::tasks(path, name, depth, true),
        ("by-hand", [path, depth]) => throughput::by_hand(path, depth),
        ("crowd", [path]) => restart::crowd(path),
        ("queuers", [path]) => restart::queuers(path),
        ("creator", [path]) => scale::creator(path),
        ("turns", [path, name, waiters]) => scale::turns(path, name, waiters),
        ("queue", [path]) => scale::queue(path),
        ("holder", [path]) => scale::holder(path),
        ("heirs", [path]) => scale::heirs(path),
        ("sleeper", [path]) => scale::sleeper(path),
        ("notifier", [path]) => scale::notifier(path),
        ("event", [path]) => scale::event(path),
        _ => panic!("no role {role} {args:?}"),
    }
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, name, args @ ..] = &args[..]
        && flag == ROLE
    {
        return role(name, args);
    }
    // Under `cargo test --all-targets` there is nothing to do: a timing proves nothing.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let only = [("--pinned", Cpus::Pinned), ("--unpinned", Cpus::Free)]
        .into_iter()
        .find_map(|(flag, cpus)| args.iter().any(|arg| arg == flag).then_some(cpus));
    let rounds = args.iter().skip_while(|arg| *arg != "--rounds").nth(1);
    let rounds = rounds.map_or(7, |n| n.parse().expect("--rounds N"));
    let ids: Vec<_> = BENCHES
        .iter()
        .filter(|bench| args.iter().any(|arg| arg.eq_ignore_ascii_case(bench.id)))
        .map(|bench| bench.id)
        .collect();

    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut lab = Lab { cpus: Cpus::Free, rounds, dir, rows: Vec::new() };
    for bench in BENCHES.iter().filter(|bench| ids.is_empty() || ids.contains(&bench.id)) {
        for &cpus in bench.cpus.iter().filter(|&&cpus| only.is_none_or(|only| only == cpus)) {
            cpus.bind();
            lab.cpus = cpus;
            let before = lab.rows.len();
            (bench.run)(&mut lab);
            lab.rows[before..].iter().for_each(|row| eprintln!("{}", row.rounds()));
        }
    }
    println!("{HEAD}");
    lab.rows.iter().for_each(|row| println!("{row}"));
}
