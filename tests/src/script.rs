//! The language of `tests/conformance/*.script`, described in the README beside them: its values.
//! Reading it is in `parse`.

mod parse;

use std::time::Duration;

pub use parse::{ScriptError, Words, parse};

/// One case: objects, then lines that are played in order.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub title: String,
    /// `file.script:line` of its first line.
    pub place: String,
    /// The rules of SEMANTICS.md that it cites.
    pub rules: Vec<String>,
    /// What a driver must be able to do.
    pub needs: Needs,
    /// In the order of their declaration.
    pub objects: Vec<Object>,
    /// What happens.
    pub lines: Vec<Line>,
}

/// What a case asks of a driver beyond the face that users have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Nothing.
    #[default]
    Api,
    /// To say what only the wire can.
    Wire,
    /// To move time by hand.
    Clock,
}

/// A declared object.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Object {
    pub name: String,
    pub kind: Kind,
    pub poison: bool,
    pub keep: bool,
    pub anonymous: bool,
}

/// An object's kind and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Lock,
    RLock,
    /// `max` 0: the class's own.
    Semaphore {
        value: u32,
        max: u32,
    },
    BoundedSemaphore {
        value: u32,
    },
    Condition {
        lock: String,
    },
    Event,
    Barrier {
        parties: u32,
    },
}

/// A session's letter and the number of one of its owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub struct Actor {
    pub session: char,
    pub owner: u64,
}

/// One line of a case.
#[derive(Clone, Debug)]
pub struct Line {
    /// `file.script:line`.
    pub place: String,
    /// As it is written.
    pub text: String,
    /// What is done.
    pub step: Step,
    /// What comes of it, in order.
    pub outcomes: Vec<(Actor, String)>,
}

/// What a line does.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Step {
    Do(Actor, Op),
    Dies(char),
    Kicked(char),
    Forced(String),
    Advance(Duration),
    Shows(String, String),
}

/// What an actor does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Op {
    Acquire { object: String, unowned: bool, timeout: Option<Duration>, unless_deadlock: bool },
    Release { object: String, bare: bool },
    Forget { object: String },
    Mark { object: String },
    Query { object: String },
    Valid { object: String },
    Open { object: String },
    Wait { object: String, timeout: Option<Duration> },
    Notify { object: String, n: Option<u32> },
    Set { object: String },
    Clear { object: String },
    Await { object: String, timeout: Option<Duration> },
    Meet { object: String, timeout: Option<Duration>, acting: bool },
    Act { object: String, ok: bool },
    Reset { object: String },
    Abort { object: String },
    Create { object: String, exclusive: bool },
    Attach { object: String, by_key: bool },
    Detach { object: String },
    Unlink { object: String },
    Cancel { give_back: bool },
    Leave,
    Disconnect,
    Resume,
}
