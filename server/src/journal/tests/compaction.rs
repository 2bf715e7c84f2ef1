//! Snapshots made beside the work.

use super::{
    super::{Found, Store as _, StoreError, format::HEADER},
    Place, add, expected, records,
};

/// The state of these tests: all records, one after the other.
fn rebuild(snapshot: &[u8], records: &mut dyn Iterator<Item = &[u8]>) -> Result<Vec<u8>, String> {
    Ok(records.fold(snapshot.to_vec(), |state, record| [&state, record].concat()))
}

fn state(found: &Found) -> Vec<u8> {
    found.records().fold(found.snapshot().to_vec(), |state, r| [&state, r.bytes].concat())
}

#[test]
fn a_snapshot_made_beside_the_work_holds_it_all() {
    let place = Place::new();
    let mut journal = place.create(b"");
    add(&mut journal, 0..500);
    let mut compaction = journal.compaction().unwrap();
    assert!(matches!(journal.compaction().err(), Some(StoreError::Busy)));
    assert!(matches!(journal.switch(b""), Err(StoreError::Busy)));
    add(&mut journal, 500..700);
    compaction
        .work(|snapshot, records| {
            // Far more than the log had room for.
            add(&mut journal, 700..9000);
            rebuild(snapshot, records)
        })
        .unwrap();
    let all = expected(0..9100).concat();
    assert_eq!(state(&place.found()), expected(0..9000).concat(), "the old one still stands");
    add(&mut journal, 9000..9100);
    assert!(journal.finish(&mut compaction).unwrap());
    let found = place.found();
    assert_eq!(state(&found), all);
    assert_eq!(found.snapshot(), expected(0..500).concat());
    assert!(journal.finish(&mut compaction).is_err(), "once");
    drop(compaction);

    // And the one before it stands in, should the snapshot be damaged.
    let newest = place.file(found.newest().slot);
    let name = newest.file_name().unwrap().to_str().unwrap();
    place.change_file(name, |bytes| bytes[HEADER + 3] ^= 1);
    let restored = place.found();
    assert!(restored.is_whole);
    assert_eq!((restored.snapshot(), state(&restored)), (&b""[..], all.clone()));
    place.change_file(name, |bytes| bytes[HEADER + 3] ^= 1);

    add(&mut journal, 9100..9200);
    journal.switch(&expected(0..9200).concat()).unwrap();
    add(&mut journal, 9200..9300);
    assert_eq!(state(&place.found()), expected(0..9300).concat());
}

#[test]
fn what_is_too_much_to_finish_with_is_caught_up_with_first() {
    let place = Place::new();
    let mut journal = place.create(b"");
    let mut compaction = journal.compaction().unwrap();
    compaction.work(rebuild).unwrap();
    // The other file grows, too, with room for the snapshot after this one.
    add(&mut journal, 0..20_000);
    assert!(!journal.finish(&mut compaction).unwrap());
    compaction.catch_up().unwrap();
    add(&mut journal, 20_000..20_100);
    assert!(journal.finish(&mut compaction).unwrap());
    assert_eq!(records(&place.found()), expected(0..20_100));
}

#[test]
fn a_compaction_that_is_given_up_or_fails_changes_nothing() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..100);
    let mut compaction = journal.compaction().unwrap();
    let failed = compaction.work(|_, _| Err("no")).unwrap_err();
    assert!(matches!(failed, StoreError::Rebuild(_)));
    drop(compaction);
    let mut compaction = journal.compaction().unwrap();
    compaction.work(rebuild).unwrap();
    add(&mut journal, 100..200);
    drop(compaction);
    assert_eq!(records(&place.found()), expected(0..200));
    let mut compaction = journal.compaction().unwrap();
    place.fill();
    let failed = compaction.work(|_, _| Ok::<_, String>(vec![1; 4 << 20])).unwrap_err();
    assert!(matches!(failed, StoreError::NoRoom { .. }));
    drop(compaction);
    assert_eq!(
        (place.found().snapshot(), records(&place.found())),
        (&b"first"[..], expected(0..200))
    );
    journal.switch(b"second").unwrap();
    assert_eq!(place.found().snapshot(), b"second");
}
