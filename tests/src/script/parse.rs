//! The strict parser of scripts.

use std::{fmt, time::Duration};

use super::{Actor, Case, Kind, Line, Needs, Object, Op, Step};

/// Why a script can't be read.
#[derive(Debug)]
pub struct ScriptError {
    place: String,
    why: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

impl std::error::Error for ScriptError {}

type Parsed<T> = Result<T, String>;

/// Reads the cases of one file.
///
/// # Errors
/// At the first line that says nothing, or says something of an object that isn't declared.
pub fn parse(file: &str, text: &str) -> Result<Vec<Case>, ScriptError> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let place = format!("{file}:{}", number + 1);
        let done = match (line.strip_prefix("case "), cases.last_mut()) {
            (Some(title), _) => {
                cases.push(Case {
                    title: title.trim().to_owned(),
                    place: place.clone(),
                    rules: Vec::new(),
                    needs: Needs::Api,
                    objects: Vec::new(),
                    lines: Vec::new(),
                });
                Ok(())
            }
            (None, Some(case)) => case.read(line, &place),
            (None, None) => Err("a file begins with a case".into()),
        };
        done.map_err(|why| ScriptError { place, why })?;
    }
    for case in &cases {
        if case.rules.is_empty() || case.lines.is_empty() {
            let why = "a case cites its rules and does something".into();
            return Err(ScriptError { place: case.place.clone(), why });
        }
    }
    Ok(cases)
}

impl Case {
    fn read(&mut self, line: &str, place: &str) -> Parsed<()> {
        if let Some(rules) = line.strip_prefix("rules ") {
            self.rules.extend(rules.split_whitespace().map(str::to_owned));
        } else if let Some(needs) = line.strip_prefix("needs ") {
            self.needs = match needs {
                "wire" => Needs::Wire,
                "clock" => Needs::Clock,
                other => return Err(format!("nothing is known of a need for {other:?}")),
            };
        } else if let Some((name, spec)) = line.split_once(": ") {
            self.objects.push(Object::parse(name, &mut Words::new(spec))?);
        } else {
            let (step, outcomes) = line.split_once("->").unwrap_or((line, ""));
            let step = self.step(&mut Words::new(step))?;
            let outcomes = self.outcomes(&step, outcomes)?;
            let (place, text) = (place.to_owned(), line.to_owned());
            self.lines.push(Line { place, text, step, outcomes });
        }
        Ok(())
    }

    fn step(&self, words: &mut Words) -> Parsed<Step> {
        let first = words.next()?;
        if first == "advance" {
            let time = words.time()?;
            return words.end(Step::Advance(time));
        }
        if self.objects.iter().any(|object| object.name == first) {
            return match words.next()? {
                "shows" => Ok(Step::Shows(first.into(), words.rest())),
                "is" if words.take("forced") => words.end(Step::Forced(first.into())),
                other => Err(format!("an object can't {other}")),
            };
        }
        let actor = Actor::parse(first)?;
        if words.take("dies") {
            return words.end(Step::Dies(actor.session));
        }
        if words.take("is") {
            return if words.take("kicked") {
                words.end(Step::Kicked(actor.session))
            } else {
                Err("an actor is kicked or nothing".into())
            };
        }
        let op = Op::parse(words)?;
        match op.object() {
            Some(name) if !self.objects.iter().any(|object| object.name == name) => {
                Err(format!("no object {name:?} is declared"))
            }
            _ => Ok(Step::Do(actor, op)),
        }
    }

    fn outcomes(&self, step: &Step, text: &str) -> Parsed<Vec<(Actor, String)>> {
        let mut outcomes = Vec::new();
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            outcomes.push(match step {
                Step::Do(actor, _) if part.starts_with(|c: char| c.is_ascii_lowercase()) => {
                    (*actor, part.to_owned())
                }
                _ => {
                    let (actor, outcome) =
                        part.split_once(' ').ok_or(format!("whose outcome is {part:?}?"))?;
                    (Actor::parse(actor)?, outcome.trim().to_owned())
                }
            });
        }
        match step {
            Step::Do(_, op) if outcomes.is_empty() && !op.is_silent() => {
                Err("what comes of it?".into())
            }
            _ => Ok(outcomes),
        }
    }
}

impl Line {
    /// The operation alone, as it is written.
    pub fn operation(&self) -> &str {
        let step = self.text.split("->").next().unwrap_or_default();
        step.split_once(' ').map_or("", |(_, operation)| operation.trim())
    }
}

impl Object {
    /// Reads what follows the name in a declaration.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn parse(name: &str, words: &mut Words) -> Parsed<Self> {
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(format!("an object's name is lower-case, not {name:?}"));
        }
        let kind = match words.next()? {
            "Lock" => Kind::Lock,
            "RLock" => Kind::RLock,
            "Semaphore" => {
                let value = words.number()?;
                Kind::Semaphore { value, max: if words.take("max") { words.number()? } else { 0 } }
            }
            "BoundedSemaphore" => Kind::BoundedSemaphore { value: words.number()? },
            "Condition" if words.take("on") => Kind::Condition { lock: words.next()?.into() },
            "Event" => Kind::Event,
            "Barrier" => Kind::Barrier { parties: words.number()? },
            other => return Err(format!("no such kind: {other}")),
        };
        let (poison, keep) = (words.take("poison"), words.take("keep"));
        let anonymous = words.take("anonymous");
        words.end(Object { name: name.into(), kind, poison, keep, anonymous })
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)?;
        for (set, word) in
            [(self.poison, " poison"), (self.keep, " keep"), (self.anonymous, " anonymous")]
        {
            f.write_str(if set { word } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Lock => f.write_str("Lock"),
            Kind::RLock => f.write_str("RLock"),
            Kind::Semaphore { value, max: 0 } => write!(f, "Semaphore {value}"),
            Kind::Semaphore { value, max } => write!(f, "Semaphore {value} max {max}"),
            Kind::BoundedSemaphore { value } => write!(f, "BoundedSemaphore {value}"),
            Kind::Condition { lock } => write!(f, "Condition on {lock}"),
            Kind::Event => f.write_str("Event"),
            Kind::Barrier { parties } => write!(f, "Barrier {parties}"),
        }
    }
}

impl Actor {
    fn parse(text: &str) -> Parsed<Self> {
        let mut chars = text.chars();
        let session = chars.next().filter(char::is_ascii_uppercase);
        let owner = match chars.as_str() {
            "" => Some(0),
            digits => digits.parse().ok(),
        };
        match (session, owner) {
            (Some(session), Some(owner)) => Ok(Actor { session, owner }),
            _ => Err(format!("{text:?} is no actor (A, A1), and no declared object")),
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            0 => write!(f, "{}", self.session),
            owner => write!(f, "{}{owner}", self.session),
        }
    }
}

impl Op {
    /// Reads an operation in the words of the README.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn parse(words: &mut Words) -> Parsed<Self> {
        let verb = words.next()?;
        let timeless = match verb {
            "cancel" => {
                let give_back = words.take("giving") && words.take("back");
                return words.end(Op::Cancel { give_back });
            }
            "leaves" => Some(Op::Leave),
            "disconnects" => Some(Op::Disconnect),
            "resumes" => Some(Op::Resume),
            _ => None,
        };
        if let Some(op) = timeless {
            return words.end(op);
        }
        let object = words.next()?.to_owned();
        let op = match verb {
            "acquire" => Op::Acquire {
                object,
                unowned: words.take("unowned"),
                timeout: words.timeout()?,
                unless_deadlock: words.take("unless") && words.take("deadlock"),
            },
            "try" => Op::Acquire {
                object,
                unowned: words.take("unowned"),
                timeout: Some(Duration::ZERO),
                unless_deadlock: false,
            },
            "release" => Op::Release { object, bare: words.take("bare") },
            "forget" => Op::Forget { object },
            "mark" => Op::Mark { object },
            "query" => Op::Query { object },
            "valid" => Op::Valid { object },
            "open" => Op::Open { object },
            "wait" => Op::Wait { object, timeout: words.timeout()? },
            "notify" if words.take("all") => Op::Notify { object, n: None },
            "notify" => Op::Notify { object, n: Some(words.number()?) },
            "set" => Op::Set { object },
            "clear" => Op::Clear { object },
            "await" => Op::Await { object, timeout: words.timeout()? },
            "meet" => Op::Meet { object, timeout: words.timeout()?, acting: words.take("acting") },
            "act" if words.take("ok") => Op::Act { object, ok: true },
            "act" if words.take("failed") => Op::Act { object, ok: false },
            "reset" => Op::Reset { object },
            "abort" => Op::Abort { object },
            "create" => Op::Create { object, exclusive: words.take("exclusive") },
            "attach" => Op::Attach { object, by_key: words.take("by") && words.take("key") },
            "detach" => Op::Detach { object },
            "unlink" => Op::Unlink { object },
            other => return Err(format!("nobody can {other}")),
        };
        words.end(op)
    }

    /// The declared object that it is about.
    pub fn object(&self) -> Option<&str> {
        match self {
            Op::Acquire { object, .. }
            | Op::Release { object, .. }
            | Op::Forget { object }
            | Op::Mark { object }
            | Op::Query { object }
            | Op::Valid { object }
            | Op::Open { object }
            | Op::Wait { object, .. }
            | Op::Notify { object, .. }
            | Op::Set { object }
            | Op::Clear { object }
            | Op::Await { object, .. }
            | Op::Meet { object, .. }
            | Op::Act { object, .. }
            | Op::Reset { object }
            | Op::Abort { object }
            | Op::Create { object, .. }
            | Op::Attach { object, .. }
            | Op::Detach { object }
            | Op::Unlink { object } => Some(object),
            Op::Cancel { .. } | Op::Leave | Op::Disconnect | Op::Resume => None,
        }
    }

    /// Has no outcome of its own.
    fn is_silent(&self) -> bool {
        matches!(self, Op::Cancel { .. } | Op::Disconnect | Op::Resume)
    }
}

/// Words, taken from the left.
#[derive(Debug)]
pub struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    /// Of one line.
    pub fn new(text: &'a str) -> Self {
        Words(text.trim())
    }

    /// The next one.
    ///
    /// # Errors
    /// If there is none.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Parsed<&'a str> {
        let (word, rest) = self.0.split_once(' ').unwrap_or((self.0, ""));
        self.0 = rest.trim_start();
        if word.is_empty() { Err("a word is missing at the end".into()) } else { Ok(word) }
    }

    /// Takes the next one if it is `word`.
    pub fn take(&mut self, word: &str) -> bool {
        let rest = self.0.strip_prefix(word).filter(|r| r.is_empty() || r.starts_with(' '));
        if let Some(rest) = rest {
            self.0 = rest.trim_start();
        }
        rest.is_some()
    }

    /// All that is left.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.0).into()
    }

    fn end<T>(&self, value: T) -> Parsed<T> {
        if self.0.is_empty() { Ok(value) } else { Err(format!("too much: {:?}", self.0)) }
    }

    fn number(&mut self) -> Parsed<u32> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("{word:?} is no number"))
    }

    fn timeout(&mut self) -> Parsed<Option<Duration>> {
        if self.take("timeout") { self.time().map(Some) } else { Ok(None) }
    }

    /// `5s`, `5ms`, or microseconds.
    fn time(&mut self) -> Parsed<Duration> {
        let word = self.next()?;
        let number = |digits: &str| digits.parse::<u64>().map_err(|_| format!("{word:?}: no time"));
        if let Some(ms) = word.strip_suffix("ms") {
            number(ms).map(Duration::from_millis)
        } else if let Some(s) = word.strip_suffix('s') {
            number(s).map(Duration::from_secs)
        } else {
            number(word).map(Duration::from_micros)
        }
    }
}
