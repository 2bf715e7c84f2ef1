//! Storms of Condition waits, some of which are killed, time out or are cancelled at any moment.
//! The count is simple: who is notified, or heir to a notify, is woken once as notified; who timed
//! out or cancelled is woken once as not; the rest waits.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;
use syncd_core::{Answer, Cause, Class, ErrorKind, Handle, Owner, Request, RequestId, Spec};

use super::table::Table;
use crate::panics::caught;

const TIMEOUT: Duration = Duration::from_secs(1);

/// What must come of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Waits,
    Notified,
    Unnotified,
    Cancelled,
    Dead,
}

/// Makes at least so many waits, in storms of up to 40.
///
/// # Errors
/// The first storm in which a waiter's fate is another than it must be.
pub fn storm(mut seed: u64, waits: u64) -> Result<(), String> {
    let mut done = 0;
    while done < waits {
        let storm = caught(|| one(&mut Rng::with_seed(seed)));
        done += storm.map_err(|why| format!("seed {seed}: {why}"))?;
        seed += 1;
    }
    Ok(())
}

fn one(rng: &mut Rng) -> Result<u64, String> {
    let count = rng.usize(1..=40);
    let mut table = Table::new(count + 1);
    let class = if rng.bool() { Class::Lock } else { Class::RLock };
    let lock = table.object("lock", Spec::SemLock { class, value: 1, max: 1 });
    let condition = table.object("condition", Spec::Condition { lock });
    let owner = Owner(0);
    let mut fates = vec![Fate::Waits; count];
    let mut ids = vec![0; count];
    let mut timed = vec![false; count];
    for s in 0..count {
        table.acquire(s, 0, lock, false);
        timed[s] = rng.u8(..4) == 0;
        let timeout = timed[s].then_some(TIMEOUT);
        ids[s] = table.ask(s, Request::Wait { handle: condition, owner, timeout });
    }
    table.replies.clear();
    // The one who notifies holds the lock all the while, so that nobody is woken yet.
    let notifier = count;
    table.acquire(notifier, 0, lock, false);
    let mut queue: VecDeque<usize> = (0..count).collect();
    for _ in 0..rng.usize(1..=count + 3) {
        match rng.u32(..100) {
            0..60 => {
                let n = rng.u32(1..4);
                table.ask(notifier, Request::Notify { handle: condition, owner, n: Some(n) });
                for _ in 0..n {
                    inherit(&mut queue, &mut fates);
                }
            }
            60..75 => {
                let s = rng.usize(..count);
                table.space.handle_lost(table.now, table.sessions[s], Cause::Died);
                leave(s, Fate::Dead, &mut queue, &mut fates);
            }
            75..95 => {
                let (s, give_back) = (rng.usize(..count), rng.bool());
                if fates[s] == Fate::Dead {
                    continue;
                }
                table.ask(s, Request::Cancel { request: RequestId(ids[s]), give_back });
                if give_back && fates[s] != Fate::Cancelled {
                    leave(s, Fate::Cancelled, &mut queue, &mut fates);
                } else if fates[s] == Fate::Waits {
                    queue.retain(|&other| other != s);
                    fates[s] = Fate::Unnotified;
                }
            }
            _ => {
                table.now = table.now + TIMEOUT;
                table.space.handle_timeout(table.now);
                for s in 0..count {
                    if timed[s] && fates[s] == Fate::Waits {
                        queue.retain(|&other| other != s);
                        fates[s] = Fate::Unnotified;
                    }
                }
            }
        }
        table.drain();
    }
    settle(&mut table, lock, &ids, &fates)?;
    Ok(count as u64)
}

/// The oldest waiter, if there is one, has a notify.
fn inherit(queue: &mut VecDeque<usize>, fates: &mut [Fate]) {
    if let Some(next) = queue.pop_front() {
        fates[next] = Fate::Notified;
    }
}

/// A waiter is gone for good; a notify that it had is the next one's.
fn leave(s: usize, fate: Fate, queue: &mut VecDeque<usize>, fates: &mut [Fate]) {
    if std::mem::replace(&mut fates[s], fate) == Fate::Notified {
        inherit(queue, fates);
    }
    queue.retain(|&other| other != s);
}

/// The notifier lets go, and so does everybody who gets the lock, until nobody has it.
fn settle(table: &mut Table, lock: Handle, ids: &[u64], fates: &[Fate]) -> Result<(), String> {
    table.release(ids.len(), 0, lock);
    let alive = |fate: &Fate| if *fate == Fate::Dead { Fate::Dead } else { Fate::Waits };
    let mut found: Vec<Fate> = fates.iter().map(alive).collect();
    while !table.replies.is_empty() {
        for (s, id, reply) in std::mem::take(&mut table.replies) {
            // What the dead were told while they lived is no matter.
            if s == ids.len() || id != ids[s] || fates[s] == Fate::Dead {
                continue;
            }
            let fate = match reply {
                Ok(Answer::Woken { notified: true, .. }) => Fate::Notified,
                Ok(Answer::Woken { notified: false, .. }) => Fate::Unnotified,
                Err(error) if error.kind == ErrorKind::Cancelled => Fate::Cancelled,
                other => return Err(format!("{s} is told {other:?}")),
            };
            if std::mem::replace(&mut found[s], fate) != Fate::Waits {
                return Err(format!("{s} is woken twice"));
            }
            if fate != Fate::Cancelled {
                table.release(s, 0, lock);
            }
        }
    }
    if found == *fates { Ok(()) } else { Err(format!("found {found:?}\n wanted {fates:?}")) }
}
