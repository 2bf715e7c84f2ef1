//! The checker sees what it is there for: each history here but the good ones has one fault.

use super::{End, History, check};

/// Histories of a lock `l`, a semaphore `s` of two permits, and items.
fn end(free: (usize, usize), items: u64) -> End {
    End { permits: [("l".into(), (1, free.0)), ("s".into(), (2, free.1))].into(), items }
}

/// Of processes, each of which wrote this; times are in the lines.
fn history(texts: &[&str]) -> History {
    let mut history = History::default();
    for (process, text) in texts.iter().enumerate() {
        let lines: String = text.split(';').map(|line| format!("{}\n", line.trim())).collect();
        history.add(process, &lines).unwrap();
    }
    history
}

fn verdict(texts: &[&str], deaths: &[(usize, u64)], end: &End) -> Result<(), String> {
    let mut history = history(texts);
    history.deaths.extend(deaths.iter().copied());
    check(&history, end).map_err(|violation| violation.to_string())
}

#[track_caller]
fn good(texts: &[&str], deaths: &[(usize, u64)], end: End) {
    verdict(texts, deaths, &end).unwrap();
}

#[track_caller]
fn bad(texts: &[&str], deaths: &[(usize, u64)], end: End, why: &str) {
    let found = verdict(texts, deaths, &end).unwrap_err();
    assert!(found.contains(why), "{found}");
}

#[test]
fn turns_are_good_even_if_their_calls_overlap() {
    let first = "0 10 acquire l; 0 20 granted 1; 1 30 release l 1; 1 60 done 0";
    // It heard of its grant before the release was answered.
    good(
        &[first, "0 15 acquire l; 0 40 granted 2; 1 50 release l 2; 1 55 done 0"],
        &[],
        end((1, 2), 0),
    );
    good(&[first, "0 15 acquire l; 0 25 refused"], &[], end((1, 2), 0));
}

#[test]
fn a_lock_that_is_granted_twice_is_seen() {
    let first = "0 10 acquire l; 0 20 granted 1; 1 30 release l 1; 1 60 done 0";
    let early = "0 15 acquire l; 0 29 granted 2; 1 50 release l 2; 1 55 done 0";
    bad(&[first, early], &[], end((1, 2), 0), "granted while it was held");
    // Whose holder still lives.
    let never = "0 10 acquire l; 0 20 granted 1";
    let later = "0 35 acquire l; 0 40 granted 2; 1 50 release l 2; 1 55 done 0";
    bad(&[never, later], &[], end((0, 2), 0), "granted while it was held");
}

#[test]
fn more_permits_than_there_are_are_seen() {
    let hold = |token: u64| {
        format!("0 10 acquire s; 0 20 granted {token}; 1 30 release s {token}; 1 40 done 0")
    };
    let (a, b, c) = (hold(1), hold(2), hold(3));
    good(&[&a, &b], &[], end((1, 2), 0));
    bad(&[&a, &b, &c], &[], end((1, 2), 0), "s was granted while it was held");
}

#[test]
fn tokens_that_fall_or_come_twice_are_seen() {
    let hold = |object: &str, from: u64, token: u64| {
        let to = from + 10;
        format!(
            "0 {from} acquire {object}; 0 {to} granted {token}; 1 {to} release {object} {token}; 1 {to} done 0"
        )
    };
    bad(&[&hold("l", 10, 5), &hold("l", 30, 4)], &[], end((1, 2), 0), "a lower one");
    // Of different objects, too.
    bad(&[&hold("l", 10, 5), &hold("s", 30, 4)], &[], end((1, 2), 0), "a lower one");
    bad(&[&hold("l", 10, 5), &hold("s", 30, 5)], &[], end((1, 2), 0), "token 5 twice");
}

#[test]
fn a_release_that_is_lost_or_doubled_is_seen() {
    let hold = "0 10 acquire l; 0 20 granted 1; 1 30 release l 1; 1 40 done 0";
    bad(&[hold], &[], end((0, 2), 0), "0 free and 0 held are not 1");
    bad(&["0 10 acquire l; 0 20 granted 1"], &[], end((1, 2), 0), "1 free and 1 held are not 1");
    bad(&[hold, "0 50 release l 1; 0 60 done 0"], &[], end((1, 2), 0), "given back twice");
    bad(&["0 10 acquire l; 0 20 failed session lost"], &[], end((1, 2), 0), "a call failed");
}

#[test]
fn what_the_dead_held_is_told_once() {
    let dead = "0 10 acquire l; 0 20 granted 1";
    let heir = "0 25 acquire l; 0 40 granted 2 after 1; 1 50 release l 2; 1 60 done 0";
    let second = "0 65 acquire l; 0 70 granted 3 after 1; 1 75 release l 3; 1 80 done 0";
    let unaware = "0 25 acquire l; 0 40 granted 2; 1 50 release l 2; 1 60 done 0";
    good(&[dead, heir], &[(0, 30)], end((1, 2), 0));
    bad(&[dead, heir], &[(0, 45)], end((1, 2), 0), "granted while it was held");
    bad(&[dead, heir, second], &[(0, 30)], end((1, 2), 0), "told twice");
    bad(&[dead, unaware], &[(0, 30)], end((1, 2), 0), "nobody is told");
    // Another one may have been told, and died of it: that is told then.
    let between = "0 22 acquire l";
    let third = "0 25 acquire l; 0 40 granted 3 after 2; 1 50 release l 3; 1 60 done 0";
    good(&[dead, third, between], &[(0, 30), (2, 39)], end((1, 2), 0));
    bad(&[dead, unaware, between], &[(0, 30), (2, 39)], end((1, 2), 0), "nobody is told");
    bad(
        &[dead, heir, "0 65 acquire l; 0 70 granted 3 after 9; 1 75 release l 3; 1 80 done 0"],
        &[(0, 30)],
        end((1, 2), 0),
        "that nobody can have had",
    );
}

#[test]
fn what_was_released_or_lives_is_not_told_as_abandoned() {
    let heir = "0 25 acquire l; 0 70 granted 2 after 1; 1 75 release l 2; 1 80 done 0";
    let released = "0 10 acquire l; 0 20 granted 1; 1 30 release l 1; 1 40 done 0";
    let unanswered = "0 10 acquire l; 0 20 granted 1; 1 30 release l 1";
    bad(&[released, heir], &[], end((1, 2), 0), "is told to be abandoned");
    bad(&[released, heir], &[(0, 50)], end((1, 2), 0), "is told to be abandoned");
    good(&[unanswered, heir], &[(0, 50)], end((1, 2), 0));
}

#[test]
fn unknown_is_neither_granted_nor_refused() {
    let hold = "0 10 acquire l; 0 20 granted 5; 1 30 release l 5; 1 40 done 0";
    good(&[hold, "0 5 acquire l"], &[(1, 50)], end((1, 2), 0));
    good(&[hold, "0 5 give"], &[(1, 50)], end((1, 2), 0));
    good(&[hold, "0 5 give"], &[(1, 50)], end((1, 2), 1));
    bad(&[hold, "0 5 give"], &[(1, 50)], end((1, 2), 2), "2 items are left, not 0 to 1");
}

#[test]
fn items_are_neither_lost_nor_made() {
    let give = "0 10 give; 0 20 done 0";
    good(&[give, "0 5 take; 0 15 done 0"], &[], end((1, 2), 0));
    bad(&[give, "0 5 take; 0 9 done 0"], &[], end((1, 2), 0), "when fewer had been given");
    bad(&[give, give], &[], end((1, 2), 1), "1 items are left, not 2 to 2");
    bad(&[give, give], &[], end((1, 2), 3), "3 items are left, not 2 to 2");
}

#[test]
fn a_wait_gives_back_and_takes_in_one() {
    let waits = "0 10 acquire l; 0 20 granted 1; 1 30 wait l 1; 1 90 granted 3 notified; 2 95 release l 3; 2 99 done 0";
    let notifies =
        "0 25 acquire l; 0 40 granted 2; 1 45 notify; 1 50 done 1; 2 55 release l 2; 2 60 done 0";
    good(&[waits, notifies], &[], end((1, 2), 0));
    let early = notifies.replace("0 25 acquire l; 0 40", "0 25 acquire l; 0 28");
    bad(&[waits, &early], &[], end((1, 2), 0), "granted while it was held");
    bad(
        &[waits, &notifies.replace("done 1", "done 0")],
        &[],
        end((1, 2), 0),
        "0 were notified, 1 woke",
    );
    bad(
        &[&waits.replace(" notified", ""), notifies],
        &[],
        end((1, 2), 0),
        "1 were notified, 0 woke",
    );
}

#[test]
fn a_line_that_its_writer_did_not_end_is_as_good_as_not_written() {
    let mut history = History::default();
    history.add(0, "0 10 acquire l\n0 20 grant").unwrap();
    assert_eq!(history.operations[0].ended, None);
    assert!(history.add(1, "0 20 granted 1\n").is_err());
}
