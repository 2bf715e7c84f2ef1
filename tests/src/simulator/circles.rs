//! Deadlocks: circles of 2 to 8 owners, closed by a waiter that asks to be refused, or by one
//! that waits; and chains that don't close. Owners are spread over sessions at random, and
//! others wait at the same locks.

use fastrand::Rng;
use syncd_core::{Answer, Class, Cycle, ErrorKind, Handle, RecordKind, Spec};

use super::table::Table;
use crate::panics::caught;

const SESSIONS: usize = 5;
const LOCKS: usize = 8;

/// One owner of the circle: session, owner number, and the lock that it holds.
type Link = (usize, u64, Handle);

/// Tries as many circles and as many chains.
///
/// # Errors
/// The first that is missed, or reported without being one.
pub fn deadlocks(seed: u64, trials: u64) -> Result<(), String> {
    (seed..seed + trials).try_for_each(|seed| {
        let mut rng = Rng::with_seed(seed);
        caught(|| trial(&mut rng, true).and_then(|()| trial(&mut rng, false)))
            .map_err(|why| format!("seed {seed}: {why}"))
    })
}

fn trial(rng: &mut Rng, closed: bool) -> Result<(), String> {
    let mut table = Table::new(SESSIONS);
    let mut locks: Vec<Handle> = (0..LOCKS)
        .map(|i| {
            let class = if rng.bool() { Class::Lock } else { Class::RLock };
            table.object(&format!("lock {i}"), Spec::SemLock { class, value: 1, max: 1 })
        })
        .collect();
    rng.shuffle(&mut locks);
    let length = rng.usize(2..=LOCKS);
    let circle: Vec<Link> =
        (0..length).map(|i| (rng.usize(..SESSIONS), i as u64, locks[i])).collect();
    for &(session, owner, lock) in &circle {
        table.acquire(session, owner, lock, rng.bool());
    }
    // Each waits for the next's lock, in any order; the last to come closes the circle.
    let mut comers: Vec<usize> = (0..length).collect();
    rng.shuffle(&mut comers);
    let mut onlooker = 100;
    let (&last, first) = comers.split_last().expect("2 or more");
    for &i in first {
        let (session, owner, _) = circle[i];
        if rng.u8(..3) == 0 {
            onlooker += 1;
            table.acquire(rng.usize(..SESSIONS), onlooker, locks[rng.usize(..length)], true);
        }
        table.acquire(session, owner, circle[(i + 1) % length].2, rng.bool());
    }
    if !table.events.iter().all(|event| !matches!(event.kind, RecordKind::Deadlock { .. })) {
        return Err("reported before it was closed".into());
    }
    table.replies.clear();
    let (session, owner, _) = circle[last];
    let careful = rng.bool();
    let wants = if closed {
        circle[(last + 1) % length].2
    } else {
        // Somebody outside holds another lock, and waits for nothing: a chain.
        let other = table.object("other", Spec::SemLock { class: Class::Lock, value: 1, max: 1 });
        table.acquire(rng.usize(..SESSIONS), 99, other, true);
        table.replies.clear();
        other
    };
    let id = table.acquire(session, owner, wants, careful);
    let refused = table.replies.iter().find_map(|(s, request, reply)| match reply {
        Err(error) if (*s, *request) == (session, id) => match &error.kind {
            ErrorKind::Deadlock { cycle } => Some(cycle.clone()),
            other => panic!("{other:?}"),
        },
        Ok(Answer::Granted(_)) => panic!("a held lock was granted"),
        _ => None,
    });
    let reported = table.events.iter().rev().find_map(|event| match &event.kind {
        RecordKind::Deadlock { cycle } => Some(cycle.clone()),
        _ => None,
    });
    if !closed {
        return match (refused, reported) {
            (None, None) => Ok(()),
            found => Err(format!("a chain of {length} is taken for a circle: {found:?}")),
        };
    }
    if refused.is_some() != careful {
        return Err(format!("refused {refused:?}, asked for it {careful}"));
    }
    let reported = reported.ok_or(format!("a circle of {length} isn't reported"))?;
    check(&table, &circle, last, &reported)
}

/// Every edge, from the one who closed it on.
fn check(table: &Table, circle: &[Link], last: usize, cycle: &Cycle) -> Result<(), String> {
    let cycle = &cycle.edges;
    let found: Vec<_> = cycle.iter().map(|e| (e.waiter.session, e.waiter.owner.0)).collect();
    let wanted: Vec<_> = (0..circle.len())
        .map(|i| circle[(last + i) % circle.len()])
        .map(|(session, owner, _)| (table.sessions[session], owner))
        .collect();
    let mut objects: Vec<_> = cycle.iter().map(|edge| edge.object.id).collect();
    objects.sort();
    objects.dedup();
    if found == wanted && objects.len() == circle.len() {
        return Ok(());
    }
    Err(format!("edges {cycle:?}, not of {wanted:?}"))
}
