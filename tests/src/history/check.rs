//! Whether a history is one of a broker that keeps its promises. The tokens of grants are the order
//! in which the broker says that it granted, so nothing has to be searched for: each grant is put at
//! the earliest moment that this order, the call's own begin and the holds before it allow, and each
//! hold ends as early as its release was asked for (or its process was killed). If one of the grants
//! then lies behind the end of its call no other choice of moments could help, and if none does,
//! these moments are a proof. A call without a known outcome may have been granted or not, and no
//! conclusion is drawn from it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    fmt,
};

use super::{Call, History, Operation, Outcome};

/// What is there when all have gone or wait no more.
#[derive(Clone, Debug, Default)]
pub struct End {
    /// Of each object with permits: how many it has, and how many are free.
    pub permits: BTreeMap<String, (usize, usize)>,
    /// The permits that are nobody's: there were none at first.
    pub items: u64,
}

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    what: String,
    trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        self.trace.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// The lines of a trace, at most.
const LINES: usize = 14;

/// One grant of a known token.
struct Grant {
    /// Its call.
    at: usize,
    token: u64,
    begun: u64,
    ended: u64,
    after: Option<u64>,
    /// The earliest end of the hold; `u64::MAX`: it goes on.
    until: u64,
    release: Release,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Release {
    Never,
    /// It isn't known whether it came to anything.
    Begun,
    Acknowledged,
}

struct Check<'a> {
    history: &'a History,
    end: &'a End,
    /// By token.
    grants: BTreeMap<u64, Grant>,
}

/// Checks a history, of which the end is known.
///
/// # Errors
/// What is wrong with it.
pub fn check(history: &History, end: &End) -> Result<(), Violation> {
    let check = Check::new(history, end)?;
    check.order()?;
    check.abandonments()?;
    check.permits()?;
    check.items()?;
    check.notifies()
}

fn object(call: &Call) -> &str {
    match call {
        Call::Acquire { object } | Call::Release { object, .. } | Call::Wait { object, .. } => {
            object
        }
        Call::Notify | Call::Give | Call::Take => "",
    }
}

impl<'a> Check<'a> {
    fn new(history: &'a History, end: &'a End) -> Result<Self, Violation> {
        let mut check = Self { history, end, grants: BTreeMap::new() };
        let mut releases = HashMap::new();
        for (at, operation) in history.operations.iter().enumerate() {
            let Operation { call, begun, ended, .. } = operation;
            if let Some((_, Outcome::Failed(why))) = ended {
                return Err(check.violation(&[at], format!("a call failed: {why}")));
            }
            if let Call::Release { token, .. } | Call::Wait { token, .. } = call {
                let release = if ended.is_some() { Release::Acknowledged } else { Release::Begun };
                if releases.insert(*token, (*begun, release)).is_some() {
                    return Err(
                        check.violation(&[at], format!("hold {token} was given back twice"))
                    );
                }
            }
            if let Some((ended, Outcome::Granted { token, after, .. })) = ended {
                let (begun, ended) = (*begun, *ended);
                let (until, release) = (u64::MAX, Release::Never);
                let grant =
                    Grant { at, token: *token, begun, ended, after: *after, until, release };
                if let Some(twin) = check.grants.insert(*token, grant) {
                    return Err(check.violation(&[twin.at, at], format!("token {token} twice")));
                }
            }
        }
        for grant in check.grants.values_mut() {
            let death = history.deaths.get(&history.operations[grant.at].process);
            match releases.get(&grant.token) {
                Some(&(begun, release)) => (grant.until, grant.release) = (begun, release),
                None => grant.until = death.copied().unwrap_or(u64::MAX),
            }
        }
        Ok(check)
    }

    fn object(&self, grant: &Grant) -> &'a str {
        object(&self.history.operations[grant.at].call)
    }

    fn death(&self, at: usize) -> Option<u64> {
        self.history.deaths.get(&self.history.operations[at].process).copied()
    }

    fn capacity(&self, object: &str) -> usize {
        self.end.permits.get(object).map_or(1, |permits| permits.0)
    }

    /// Nobody is granted what others hold, and tokens rise with time, across objects.
    fn order(&self) -> Result<(), Violation> {
        let mut now = (0, None);
        let mut held: HashMap<&str, BinaryHeap<Reverse<(u64, usize)>>> = HashMap::new();
        for grant in self.grants.values() {
            let object = self.object(grant);
            if now.0 > grant.ended {
                let concerned: Vec<usize> = now.1.into_iter().chain([grant.at]).collect();
                let what = format!("token {}: a later grant has a lower one", grant.token);
                return Err(self.violation(&concerned, what));
            }
            let mut moment = now.0.max(grant.begun);
            let held = held.entry(object).or_default();
            if held.len() == self.capacity(object) {
                let Reverse((until, holder)) = held.pop().expect("it has a capacity");
                moment = moment.max(until);
                if moment > grant.ended {
                    let what = format!("{object} was granted while it was held");
                    return Err(self.violation(&[holder, grant.at], what));
                }
            }
            held.push(Reverse((grant.until, grant.at)));
            if moment > now.0 {
                now = (moment, Some(grant.at));
            }
        }
        Ok(())
    }

    /// Who holds what a dead process held is told so, once; nobody is told it of others.
    fn abandonments(&self) -> Result<(), Violation> {
        let mut told: HashMap<u64, usize> = HashMap::new();
        let mut of_unknown: HashMap<&str, usize> = HashMap::new();
        let mut before: HashMap<&str, &Grant> = HashMap::new();
        for grant in self.grants.values() {
            let object = self.object(grant);
            if let Some(token) = grant.after {
                if let Some(first) = told.insert(token, grant.at) {
                    let what = format!("{object}: that hold {token} was abandoned is told twice");
                    return Err(self.violation(&[first, grant.at], what));
                }
                match self.grants.get(&token) {
                    Some(left) => {
                        let is_so = self.death(left.at).is_some()
                            && left.release != Release::Acknowledged
                            && self.object(left) == object;
                        if !is_so {
                            let what = format!("{object}: hold {token} is told to be abandoned");
                            return Err(self.violation(&[left.at, grant.at], what));
                        }
                    }
                    None => *of_unknown.entry(object).or_default() += 1,
                }
            }
            // Who was told and died of it, unknown to us, has left it in turn, which is told.
            let left = before.insert(object, grant).filter(|left| {
                let is_left = left.release == Release::Never && self.death(left.at).is_some();
                is_left && self.capacity(object) == 1
            });
            if let Some(left) = left
                && grant.after.is_none()
            {
                let what =
                    format!("{object}: nobody is told that hold {} was abandoned", left.token);
                return Err(self.violation(&[left.at, grant.at], what));
            }
        }
        for (object, count) in of_unknown {
            let possible = self.unknown(object);
            if count > possible {
                let what = format!("{object}: {count} holds abandoned that nobody can have had");
                return Err(self.violation(&[], what));
            }
        }
        Ok(())
    }

    /// How many calls of the dead may have been granted, unknown to us.
    fn unknown(&self, of: &str) -> usize {
        let operations = self.history.operations.iter().enumerate();
        let unknown = operations.filter(|(at, operation)| {
            let acquires = matches!(operation.call, Call::Acquire { .. } | Call::Wait { .. });
            acquires
                && object(&operation.call) == of
                && operation.ended.is_none()
                && self.death(*at).is_some()
        });
        unknown.count()
    }

    /// What is free in the end and what is held make up the capacity.
    fn permits(&self) -> Result<(), Violation> {
        for (object, &(capacity, free)) in &self.end.permits {
            let holds = |grant: &&Grant| grant.until == u64::MAX && self.object(grant) == *object;
            let held: Vec<usize> = self.grants.values().filter(holds).map(|held| held.at).collect();
            if free + held.len() != capacity {
                let what =
                    format!("{object}: {free} free and {} held are not {capacity}", held.len());
                return Err(self.violation(&held, what));
            }
        }
        Ok(())
    }

    /// No permit that is nobody's is taken before it is there, and none is lost or gained.
    fn items(&self) -> Result<(), Violation> {
        let (mut given, mut taken) = (vec![], vec![]);
        let (mut sure_given, mut perhaps_taken) = (0, 0);
        for operation in &self.history.operations {
            match (&operation.call, &operation.ended) {
                (Call::Give, ended) => {
                    given.push(operation.begun);
                    sure_given += u64::from(ended.is_some());
                }
                (Call::Take, Some((ended, Outcome::Done { .. }))) => taken.push(*ended),
                (Call::Take, None) => perhaps_taken += 1,
                _ => {}
            }
        }
        given.sort_unstable();
        taken.sort_unstable();
        for (count, time) in taken.iter().enumerate() {
            if given.partition_point(|given| given <= time) <= count {
                let what = format!("{} items were taken when fewer had been given", count + 1);
                return Err(self.violation(&[], what));
            }
        }
        let most = given.len() as u64 - taken.len() as u64;
        let least = sure_given.saturating_sub(taken.len() as u64 + perhaps_taken);
        if (least..=most).contains(&self.end.items) {
            return Ok(());
        }
        let what = format!("{} items are left, not {least} to {most}", self.end.items);
        Err(self.violation(&[], what))
    }

    /// As many wake notified as were notified.
    fn notifies(&self) -> Result<(), Violation> {
        let (mut sent, mut unsure, mut woken, mut unknown) = (0, false, 0, 0);
        for operation in &self.history.operations {
            match (&operation.call, &operation.ended) {
                (Call::Notify, Some((_, Outcome::Done { count }))) => sent += count,
                (Call::Notify, _) => unsure = true,
                (Call::Wait { .. }, Some((_, Outcome::Granted { notified, .. }))) => {
                    woken += u64::from(*notified);
                }
                (Call::Wait { .. }, _) => unknown += 1,
                _ => {}
            }
        }
        if (woken > sent && !unsure) || woken + unknown < sent {
            let what =
                format!("{sent} were notified, {woken} woke notified, {unknown} are unknown");
            return Err(self.violation(&[], what));
        }
        Ok(())
    }

    fn violation(&self, concerned: &[usize], what: String) -> Violation {
        let operations = &self.history.operations;
        let Some(&last) = concerned.last() else { return Violation { what, trace: vec![] } };
        let about = object(&operations[last].call);
        let end =
            |operation: &Operation| operation.ended.as_ref().map_or(u64::MAX, |ended| ended.0);
        let latest = concerned.iter().map(|&at| end(&operations[at])).min().unwrap_or(u64::MAX);
        let near =
            |at: &usize| object(&operations[*at].call) == about && operations[*at].begun <= latest;
        let mut chosen: Vec<usize> = (0..operations.len()).filter(near).collect();
        chosen.sort_by_key(|&at| operations[at].begun);
        chosen.drain(..chosen.len().saturating_sub(LINES - concerned.len()));
        chosen.extend(concerned);
        chosen.sort_by_key(|&at| (operations[at].begun, at));
        chosen.dedup();
        let first = chosen.first().map_or(0, |&at| operations[at].begun);
        let trace = chosen.into_iter().map(|at| self.line(at, first)).collect();
        Violation { what, trace }
    }

    fn line(&self, at: usize, first: u64) -> String {
        let operation = &self.history.operations[at];
        let time = |time: u64| {
            let (sign, apart) = if time < first { ("-", first - time) } else { ("", time - first) };
            format!("{sign}{}.{:03}", apart / 1_000_000, apart / 1000 % 1000)
        };
        let ended = match &operation.ended {
            Some((ended, outcome)) => format!("{} ms: {outcome:?}", time(*ended)),
            None => "never heard of".into(),
        };
        let death =
            self.death(at).map_or(String::new(), |death| format!(", killed {}", time(death)));
        let Operation { process, call, begun, .. } = operation;
        format!("process {process}{death}: {call:?} from {} to {ended}", time(*begun))
    }
}
