//! What processes asked of a broker and heard from it, as each wrote it down: call by call, with the
//! times of a clock that all processes of a machine share. Never here: a daemon.

mod check;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

pub use check::{End, Violation, check};

use crate::script::Words;

/// Nanoseconds of `CLOCK_MONOTONIC`, which is one for all processes.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Call {
    /// An owned permit.
    Acquire { object: String },
    /// The hold with that token is given back.
    Release { object: String, token: u64 },
    /// That hold of a condition's lock is given back, and another one is got.
    Wait { object: String, token: u64 },
    /// Of a condition, by who holds its lock.
    Notify,
    /// A permit that is nobody's is added.
    Give,
    /// A permit is taken, and is nobody's.
    Take,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Outcome {
    /// It is held: since a wait was notified, or in spite of it; and the token of whose hold was
    /// abandoned, if that was told.
    Granted { token: u64, notified: bool, after: Option<u64> },
    /// A notify says how many it woke.
    Done { count: u64 },
    /// Nothing was got or given: the time was over, or it was withdrawn.
    Refused,
    /// What must not be: in the client's words.
    Failed(String),
}

/// A call, and what came of it if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Operation {
    pub process: usize,
    pub call: Call,
    pub begun: u64,
    /// `None`: its process didn't live to write it down.
    pub ended: Option<(u64, Outcome)>,
}

/// Of several processes.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct History {
    pub operations: Vec<Operation>,
    /// Who was killed, and when it still lived.
    pub deaths: BTreeMap<usize, u64>,
}

/// Where a process writes it down: what is written outlives it.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    next: AtomicU64,
}

impl Recorder {
    /// A new file.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).open(path)?;
        Ok(Self { file, next: AtomicU64::new(0) })
    }

    /// To be called before the call; its number.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn begin(&self, call: &Call) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        let call = match call {
            Call::Acquire { object } => format!("acquire {object}"),
            Call::Release { object, token } => format!("release {object} {token}"),
            Call::Wait { object, token } => format!("wait {object} {token}"),
            Call::Notify => "notify".into(),
            Call::Give => "give".into(),
            Call::Take => "take".into(),
        };
        self.write(number, &call);
        number
    }

    /// To be called after the call.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn end(&self, number: u64, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Granted { token, notified, after } => {
                let after = after.map_or(String::new(), |after| format!(" after {after}"));
                let notified = if *notified { " notified" } else { "" };
                format!("granted {token}{notified}{after}")
            }
            Outcome::Done { count } => format!("done {count}"),
            Outcome::Refused => "refused".into(),
            Outcome::Failed(why) => format!("failed {}", why.replace('\n', " ")),
        };
        self.write(number, &outcome);
    }

    fn write(&self, number: u64, what: &str) {
        let line = format!("{number} {} {what}\n", clock());
        (&self.file).write_all(line.as_bytes()).expect("a history is written");
    }
}

impl History {
    /// The first call that failed.
    pub fn failed(&self) -> Option<String> {
        let mut operations = self.operations.iter();
        operations.find_map(|operation| match &operation.ended {
            Some((_, Outcome::Failed(why))) => Some(format!("{:?}: {why}", operation.call)),
            _ => None,
        })
    }

    /// Adds what one process wrote.
    ///
    /// # Errors
    /// If that can't be read.
    pub fn add(&mut self, process: usize, text: &str) -> Result<(), String> {
        let mut begun = BTreeMap::new();
        // A line without its end is as good as not written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let broken = |why: String| format!("process {process}: {line:?}: {why}");
            let mut words = Words::new(line);
            let number: u64 = number(&mut words).map_err(broken)?;
            let time = self::number(&mut words).map_err(broken)?;
            match read(&mut words).map_err(broken)? {
                Line::Begun(call) => {
                    begun.insert(number, self.operations.len());
                    let operation = Operation { process, call, begun: time, ended: None };
                    self.operations.push(operation);
                }
                Line::Ended(outcome) => {
                    let at =
                        begun.remove(&number).ok_or_else(|| broken("it never began".into()))?;
                    self.operations[at].ended = Some((time, outcome));
                }
            }
        }
        Ok(())
    }
}

enum Line {
    Begun(Call),
    Ended(Outcome),
}

fn read(words: &mut Words<'_>) -> Result<Line, String> {
    let first = words.next()?;
    let object = |words: &mut Words<'_>| words.next().map(str::to_owned);
    Ok(match first {
        "acquire" => Line::Begun(Call::Acquire { object: object(words)? }),
        "release" => Line::Begun(Call::Release { object: object(words)?, token: number(words)? }),
        "wait" => Line::Begun(Call::Wait { object: object(words)?, token: number(words)? }),
        "notify" => Line::Begun(Call::Notify),
        "give" => Line::Begun(Call::Give),
        "take" => Line::Begun(Call::Take),
        "granted" => {
            let token = number(words)?;
            let notified = words.take("notified");
            let after = if words.take("after") { Some(number(words)?) } else { None };
            Line::Ended(Outcome::Granted { token, notified, after })
        }
        "done" => Line::Ended(Outcome::Done { count: number(words)? }),
        "refused" => Line::Ended(Outcome::Refused),
        "failed" => Line::Ended(Outcome::Failed(words.rest())),
        other => return Err(format!("{other:?} is nothing")),
    })
}

fn number<T: FromStr>(words: &mut Words<'_>) -> Result<T, String> {
    let word = words.next()?;
    word.parse().map_err(|_| format!("{word:?} is no number"))
}
