//! One session that does what lines on stdin say, in the language of the conformance scripts
//! (`tests/conformance/README.md`): `actor FACE NAMESPACE`.

mod alone;
mod crowd;
mod face;
mod wire;
mod words;

use std::{io, process::ExitCode, sync::mpsc, thread, time::Duration};

use syncd_tests::script::{Object, Op, Words};

/// One line.
#[derive(Clone, Debug)]
enum Line {
    /// `by`: how to attach to what somebody else has created without a name.
    Object {
        object: Object,
        by: Option<String>,
    },
    Do {
        owner: u64,
        op: Op,
    },
}

fn read(line: &str) -> Result<Line, String> {
    let mut words = Words::new(line);
    if words.take("object") {
        let name = words.next()?.to_owned();
        let (spec, by) = match words.rest() {
            rest if rest.contains(" by ") => {
                let (spec, by) = rest.rsplit_once(" by ").expect("just seen");
                (spec.to_owned(), Some(by.to_owned()))
            }
            rest => (rest, None),
        };
        return Ok(Line::Object { object: Object::parse(&name, &mut Words::new(&spec))?, by });
    }
    let owner = words.next()?.parse().map_err(|_| format!("no owner: {line}"))?;
    let op = Op::parse(&mut words)?;
    Ok(Line::Do { owner, op })
}

/// Stdin's lines, from a thread of its own.
fn lines() -> mpsc::Receiver<Line> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lines() {
            let line = read(&line.expect("readable")).unwrap_or_else(|why| panic!("{why}"));
            if sender.send(line).is_err() {
                break;
            }
        }
        // As a process that is killed would: nothing is released.
        std::process::exit(0);
    });
    lines
}

/// Tells the runner.
fn say(owner: u64, outcome: &str) {
    println!("{owner} {outcome}");
}

/// `pid:17`, which the runner knows by a letter.
fn pids(before: &str, pids: impl Iterator<Item = u32>) -> String {
    let pids: String = pids.map(|pid| format!(" pid:{pid}")).collect();
    if pids.is_empty() { pids } else { format!("{before}{pids}") }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (face, namespace) = (arguments.next(), arguments.next());
    match (face.as_deref(), namespace) {
        (Some("wire"), Some(namespace)) => wire::run(namespace),
        (Some("async"), Some(namespace)) => face::run_async(namespace),
        (Some("blocking"), Some(namespace)) => face::run_blocking(namespace),
        (Some("toil"), Some(namespace)) => alone::toil(namespace),
        (Some("fork"), Some(namespace)) => alone::fork(namespace),
        (Some("reclaim"), Some(namespace)) => {
            alone::reclaim(namespace);
            return ExitCode::SUCCESS;
        }
        (Some("crowd"), Some(namespace)) => crowd::run(&namespace),
        _ => {
            eprintln!("usage: actor wire|async|blocking|toil|fork|reclaim|crowd NAMESPACE");
            return ExitCode::from(2);
        }
    }
    // The thread that reads ends the process.
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
