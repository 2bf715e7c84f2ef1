//! Plays scripts on a [`Driver`] and compares outcomes, as text, with what is written. Never
//! here: how a driver does what it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use crate::script::{Actor, Case, Line, Needs, Step};

/// How many cases are played at once: most of a case is waiting.
const AT_A_TIME: usize = 4;

/// A face of syncd that can be told what to do.
pub trait Driver {
    /// The most that it is able to.
    fn ability(&self) -> Needs;

    /// Begins the world of a case, once.
    fn begin(&mut self, case: &Case);

    /// Does what the line says, and waits for nothing.
    fn perform(&mut self, line: &Line) -> Result<(), String>;

    /// The actor's next outcome, waited for if this face is a real one. `None`: none comes.
    fn outcome(&mut self, actor: Actor) -> Option<String>;

    /// Compares, once nothing is under way any more: each session waits with so many
    /// requests, and nothing has come that nobody asked for.
    fn settle(&mut self, waiting: &BTreeMap<char, usize>) -> Result<(), String>;

    /// What inspection says of an object, until it is `wanted` or stays another.
    fn shows(&mut self, object: &str, wanted: &str) -> String;
}

/// Reads every script of `dir`, in the order of their names.
///
/// # Panics
/// With the place, if one can't be read.
pub fn suite(dir: &Path) -> Vec<Case> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "script"))
        .collect();
    files.sort();
    let read = |path: &Path| {
        let text = fs::read_to_string(path).expect("a readable script");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        crate::script::parse(&name, &text).unwrap_or_else(|error| panic!("{error}"))
    };
    files.iter().flat_map(|path| read(path)).collect()
}

/// Plays every case that the driver is able to, several at a time, and says how many.
///
/// # Panics
/// With each failure, once all have been played.
pub fn play_all<D: Driver>(cases: &[Case], driver: impl Fn() -> D + Sync) -> usize {
    let ability = driver().ability();
    let able: Vec<_> = cases.iter().filter(|case| case.needs <= ability).collect();
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let work = || {
        while let Some(case) = able.get(next.fetch_add(1, Relaxed)) {
            if let Err(why) = play(case, &mut driver()) {
                let failure = format!("{} ({})\n    {why}", case.title, case.place);
                failures.lock().expect("no panic").push(failure);
            }
        }
    };
    thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().expect("no panic");
    let (failed, all) = (failures.len(), able.len());
    assert!(failed == 0, "{failed} of {all} cases failed\n{}", failures.join("\n"));
    all
}

fn play(case: &Case, driver: &mut impl Driver) -> Result<(), String> {
    driver.begin(case);
    let mut waiting: BTreeSet<Actor> = BTreeSet::new();
    let mut last_token = 0;
    for line in &case.lines {
        let at = |why: String| format!("{}: {}\n    {why}", line.place, line.text);
        if let Step::Shows(object, wanted) = &line.step {
            let found = driver.shows(object, wanted);
            if found != *wanted {
                return Err(at(format!("shows {found}")));
            }
            continue;
        }
        driver.perform(line).map_err(at)?;
        if let Step::Dies(session) = line.step {
            waiting.retain(|actor| actor.session != session);
        }
        for (actor, wanted) in &line.outcomes {
            if wanted == "waits" {
                waiting.insert(*actor);
                continue;
            }
            waiting.remove(actor);
            if wanted == "unheard" {
                continue;
            }
            let outcome = driver.outcome(*actor).unwrap_or_else(|| "nothing".into());
            let (found, token) = split_token(&outcome);
            if !is(found, wanted) {
                return Err(at(format!("{actor} {found}")));
            }
            if let Some(token) = token.filter(|_| !found.contains(" depth ")) {
                if token <= last_token {
                    return Err(at(format!("{actor}'s token is {token}, after {last_token}")));
                }
                last_token = token;
            }
        }
        let mut counts = BTreeMap::new();
        waiting.iter().for_each(|actor| *counts.entry(actor.session).or_default() += 1);
        driver.settle(&counts).map_err(at)?;
    }
    Ok(())
}

/// Whether that is the outcome; a face that is told no counts says `ok ?`.
fn is(found: &str, wanted: &str) -> bool {
    found == wanted || found == "ok ?" && wanted.starts_with("ok ")
}

/// Splits `granted @17` into `granted` and 17.
pub fn split_token(outcome: &str) -> (&str, Option<u64>) {
    match outcome.rsplit_once(" @") {
        Some((text, token)) => (text, token.parse().ok()),
        None => (outcome, None),
    }
}
