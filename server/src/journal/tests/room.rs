//! A journal in want of room.

use std::{fs, sync::atomic::Ordering::Relaxed};

use super::{
    super::{Journal, Need, Store as _, StoreError, log::RETRY},
    Place, add, expected, records,
};

#[test]
fn without_room_growth_is_refused_and_releases_go_on_for_ever() {
    let place = Place::new();
    let mut journal = place.create(b"s");
    place.fill();
    let (mut state, mut refused) = (1usize, 0);
    // Each record of growth adds as much as is allowed to the state; each release takes as much.
    for _ in 0..20_000 {
        let grown = journal.make_room(40).and_then(|()| journal.append(&[1; 40], Need::Growth));
        match grown {
            Ok(_) => state += 2 * 40,
            Err(StoreError::NoRoom { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
        if journal.is_due() {
            journal.switch(&vec![3; state]).unwrap();
        }
    }
    assert!(refused > 1000 && state > 20 << 10, "{refused} {state}");
    let error = journal.status().error.unwrap();
    assert!(error.contains("no room in") && error.contains("1."), "{error}");
    for _ in 0..50_000 {
        journal.append(&[2; 30], Need::Relief).unwrap();
        state -= state.min(20) * usize::from(state > 1);
        if journal.is_due() {
            journal.switch(&vec![3; state]).unwrap();
        }
    }
    // It heals by itself.
    place.directory.quota.store(10 << 20, Relaxed);
    std::thread::sleep(RETRY);
    for _ in 0..5000 {
        journal.make_room(40).unwrap();
        journal.append(&[1; 40], Need::Growth).unwrap();
    }
    assert_eq!(journal.status().error, None);
}

#[test]
fn no_journal_is_begun_without_room_and_nothing_of_it_stays() {
    let place = Place::new();
    place.fill();
    let refused = Journal::create(&place.directory, "1000/a", None, b"s").err().unwrap();
    assert!(matches!(refused, StoreError::NoRoom { .. }));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    let long = "a".repeat(289);
    place.directory.quota.store(10 << 20, Relaxed);
    assert!(Journal::create(&place.directory, &long, None, b"s").is_err());
}

#[test]
fn a_switch_that_fails_leaves_all_as_it_was() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..10);
    place.fill();
    assert!(matches!(journal.switch(&[1; 1 << 20]), Err(StoreError::NoRoom { .. })));
    assert!(journal.status().error.is_some());
    add(&mut journal, 10..20);
    assert_eq!(
        (place.found().snapshot(), records(&place.found())),
        (&b"first"[..], expected(0..20))
    );
    journal.switch(b"second").unwrap();
    assert_eq!(place.found().snapshot(), b"second");
    assert_eq!(journal.status().error, None);
}

#[test]
fn files_shrink_when_the_state_has() {
    let place = Place::new();
    let mut journal = place.create(b"");
    journal.switch(&vec![1; 8 << 20]).unwrap();
    let large = journal.status().bytes;
    assert!(large > 24 << 20, "{large}");
    for _ in 0..2 {
        journal.switch(b"small").unwrap();
    }
    let small = journal.status().bytes;
    assert!(small < 1 << 20, "{small}");
    add(&mut journal, 0..1000);
    assert_eq!(records(&place.found()), expected(0..1000));
}
