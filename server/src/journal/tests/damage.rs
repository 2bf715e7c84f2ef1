//! Files that aren't as they were written, or not for this daemon: told apart, and by place.

use std::fs;

use super::{
    super::{
        Directory, Journal, Refusal, Store as _, StoreError, Why,
        directory::Slot,
        format::{BootId, COMPLETE, HEADER, Header, SUPERSEDED, record_size},
    },
    Place, add, expected, record, records,
};

#[test]
fn damage_in_the_log_is_told_by_place_and_what_follows_it_is_marked() {
    let place = Place::new();
    let mut journal = place.create(b"s");
    add(&mut journal, 0..10);
    drop(journal);
    let at = |n: u64| HEADER + 8 + (0..n).map(|n| record_size(record(n).len())).sum::<usize>();
    let whole = fs::read(place.file(0)).unwrap();
    let cases: [(&str, usize, &[u8], &str); 4] = [
        ("a bit of the payload", at(4) + 9, &[0xff], "the checksum is wrong"),
        ("a length within bounds", at(4), &[1], "the checksum is wrong"),
        ("a length that can't be", at(4) + 3, &[0xff], "the length can't be"),
        ("a length of zero", at(4), &[0, 0, 0, 0], "records that were written are missing"),
    ];
    for (what, offset, bytes, reason) in cases {
        place.change(0, |file| {
            file.copy_from_slice(&whole);
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        });
        let found = place.found();
        let damage = &found.damage[0];
        assert_eq!((found.damage.len(), &*damage.reason), (1, reason), "{what}");
        assert_eq!(damage.record, Some((4, at(4) as u64)), "{what}");
        assert_eq!(damage.file, place.file(0), "{what}");
        assert!(damage.to_string().contains("1.0, record 5 at byte"), "{damage}");
        assert!(!found.is_whole);
        let marks: Vec<bool> = found.records().map(|record| record.is_after_damage).collect();
        assert_eq!(marks, [[false; 4].as_slice(), &[true; 5]].concat(), "{what}");
        assert_eq!(records(&found), [expected(0..4), expected(5..10)].concat(), "{what}");
        let refused = Journal::resume(&place.directory, &found).err().unwrap();
        assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    }
    // A page of zeros at the end, or no end at all.
    fs::write(place.file(0), &whole).unwrap();
    place.change(0, |file| file[at(7)..].fill(0));
    let found = place.found();
    assert_eq!((records(&found), found.is_whole), (expected(0..7), false));
    place.change(0, |file| file.truncate(at(7)));
    let found = place.found();
    assert_eq!((records(&found), found.is_whole), (expected(0..7), false));
}

#[test]
fn the_file_before_stands_in_for_a_damaged_snapshot() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..10);
    journal.switch(b"second").unwrap();
    add(&mut journal, 10..20);
    drop(journal);
    place.change(1, |bytes| bytes[HEADER] ^= 1);
    let found = place.found();
    assert_eq!((found.snapshot(), found.is_whole), (&b"first"[..], true));
    assert_eq!(records(&found), expected(0..20));
    assert_eq!(found.damage[0].file, place.file(1));

    // But not if records before it are missing.
    let whole = fs::read(place.file(0)).unwrap();
    place.change(0, |bytes| bytes[HEADER + 24] ^= 1);
    assert!(!place.found().is_whole);
    fs::write(place.file(0), whole).unwrap();
    let found = place.found();

    // The new journal counts for more, also if the old files are still there.
    let mut after =
        Journal::create(&place.directory, "1000/a", Some(found.generation), b"restored").unwrap();
    add(&mut after, 0..1);
    let loaded = place.load();
    assert_eq!(loaded.found.len(), 1);
    assert_eq!(loaded.found[0].snapshot(), b"restored");
    assert_eq!(loaded.unusable.iter().filter(|u| u.why.is_worthless()).count(), 2);
    let aside = place.directory.keep_aside(&found.files()[1]).unwrap();
    assert_eq!(aside, place.path().join("1.1.aside-1"));
    fs::copy(&aside, place.file(1)).unwrap();
    let aside = place.directory.keep_aside(&found.files()[1]).unwrap();
    assert_eq!(aside, place.path().join("1.1.aside-2"));
    place.directory.discard(&found.files()[0]).unwrap();
    assert_eq!(place.load().found.len(), 1);
    drop(after);

    // Both snapshots damaged: nothing that could be proved.
    place.change_file("2.0", |bytes| bytes[HEADER] ^= 1);
    let loaded = place.load();
    assert!(loaded.found.is_empty());
    assert!(loaded.unusable.iter().any(|u| matches!(&u.why, Why::NoSnapshot(a) if a == "1000/a")));
}

#[test]
fn a_later_snapshot_that_is_gone_is_missed() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..10);
    journal.switch(b"second").unwrap();
    drop(journal);
    let whole = fs::read(place.file(1)).unwrap();
    let spoil: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[COMPLETE..HEADER].fill(0),
        |bytes| bytes[100] ^= 1,
        |bytes| bytes.truncate(100),
        |bytes| bytes.fill(0),
    ];
    for spoil in spoil {
        place.change(1, |bytes| {
            bytes.clone_from(&whole);
            spoil(bytes);
        });
        let mut loaded = place.load();
        let found = loaded.found.pop().unwrap();
        assert_eq!((found.snapshot(), found.is_whole), (&b"first"[..], false));
        assert!(found.damage.iter().any(|damage| damage.reason.contains("later snapshot")));
    }
    fs::remove_file(place.file(1)).unwrap();
    assert!(!place.found().is_whole);
    // It was killed between the two words: all is in the first file still.
    fs::write(place.file(1), whole).unwrap();
    place.change(1, |bytes| bytes[COMPLETE..HEADER].fill(0));
    place.change(0, |bytes| bytes[SUPERSEDED..SUPERSEDED + 8].fill(0));
    assert!(place.found().is_whole);
}

#[test]
fn files_that_are_not_for_this_daemon_are_told_apart_and_left() {
    let place = Place::new();
    drop(place.create(b"s"));
    let why = |spoil: &dyn Fn(&mut Vec<u8>)| {
        let whole = fs::read(place.file(0)).unwrap();
        place.change(0, spoil);
        let loaded = place.load();
        assert!(loaded.found.is_empty());
        let mine = loaded.unusable.into_iter().find(|u| u.file == place.file(0)).unwrap();
        fs::write(place.file(0), whole).unwrap();
        mine.why
    };
    assert!(matches!(why(&|bytes| bytes.truncate(5)), Why::Refused(Refusal::Truncated)));
    assert!(matches!(why(&|bytes| bytes[0] = 0), Why::Refused(Refusal::NoMagic)));
    assert!(matches!(why(&|bytes| bytes[40] ^= 1), Why::Refused(Refusal::Header)));
    let later = why(&|bytes| bytes[8] = 9);
    assert!(later.to_string().contains("format 9, of 0."), "{later}");
    let theirs = why(&|bytes| {
        let mut header = Header::decode(bytes).unwrap();
        header.user = 54_321;
        bytes[..SUPERSEDED].copy_from_slice(&header.encode()[..SUPERSEDED]);
    });
    assert!(matches!(theirs, Why::OtherUser(54_321)));
    fs::write(place.path().join("notes.txt"), "precious").unwrap();
    assert_eq!(place.found().files().len(), 2);

    for boot in [Some(BootId([2; 16])), None] {
        let loaded = Directory::open_as(&place.path(), boot).unwrap().load().unwrap();
        assert!(loaded.found.is_empty());
        assert!(loaded.unusable.iter().any(|u| matches!(u.why, Why::OtherBoot)));
    }
}

#[test]
fn one_that_was_killed_before_its_files_had_room_leaves_nothing_that_anybody_minds() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..3);
    for slot in 0..2 {
        // As it lies there between its making and its room.
        std::mem::forget(Slot::open(&place.directory, 7, slot, true).unwrap());
    }
    let loaded = place.load();
    assert_eq!(records(&loaded.found[0]), expected(0..3));
    assert_eq!(loaded.unusable.len(), 2);
    for unusable in &loaded.unusable {
        assert!(unusable.why.is_worthless(), "{unusable:?}");
        place.directory.discard(&unusable.file).unwrap();
    }
    assert!(place.load().unusable.is_empty());

    // Whereas one of that name has been shortened by somebody.
    fs::write(place.path().join("8.0"), "").unwrap();
    assert!(!place.load().unusable[0].why.is_worthless());
}
