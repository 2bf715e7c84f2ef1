//! A journal that is written, left and found again: whole, damaged, in want of room.

mod fuzz;

use std::{fs, path::Path, sync::Arc, sync::atomic::Ordering::Relaxed};

use tempfile::TempDir;

use super::{
    Directory, Done, Found, Journal, Loaded, Need, Store as _, StoreError, Why,
    format::{BootId, COMPLETE, HEADER, SUPERSEDED},
};

const BOOT: BootId = BootId([1; 16]);

struct Place {
    dir: TempDir,
    directory: Arc<Directory>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directory = open(&dir.path().join("journal"), BOOT);
        Self { dir, directory }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("journal")
    }

    fn create(&self, snapshot: &[u8]) -> Journal {
        Journal::create(&self.directory, "1000/a", None, snapshot).unwrap()
    }

    /// As the next daemon finds it.
    fn load(&self) -> Loaded {
        open(&self.path(), BOOT).load().unwrap()
    }

    /// The one journal that there is.
    fn found(&self) -> Found {
        let mut loaded = self.load();
        assert!(loaded.unusable.iter().all(|u| matches!(u.why, Why::Unfinished)), "{loaded:?}");
        assert_eq!(loaded.found.len(), 1);
        loaded.found.pop().unwrap()
    }

    fn file(&self, slot: usize) -> std::path::PathBuf {
        self.path().join(format!("1.{slot}"))
    }

    fn change(&self, slot: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(slot)).unwrap();
        change(&mut bytes);
        fs::write(self.file(slot), bytes).unwrap();
    }

    /// No more room than is reserved.
    fn fill(&self) {
        self.directory.quota.store(0, Relaxed);
    }
}

fn open(path: &Path, boot: BootId) -> Arc<Directory> {
    Directory::open_as(path, Some(boot)).unwrap()
}

fn record(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(8 + (number as usize * 7) % 60, number as u8);
    bytes
}

fn add(journal: &mut Journal, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(journal.append(&record(number), Need::Growth).unwrap(), Done::Now);
    }
}

fn records(found: &Found) -> Vec<Vec<u8>> {
    found.records().map(|record| record.bytes.to_vec()).collect()
}

fn expected(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(record).collect()
}

#[test]
fn what_was_appended_is_found_in_order_after_the_last_snapshot() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    add(&mut journal, 0..100);
    let found = place.found();
    assert_eq!((&*found.address, found.snapshot()), ("1000/a", &b"first"[..]));
    assert_eq!(records(&found), expected(0..100));
    assert!(found.is_whole && found.damage.is_empty());

    for round in 1..6 {
        journal.switch(format!("state {round}").as_bytes()).unwrap();
        add(&mut journal, round * 100..round * 100 + 50);
        let found = place.found();
        assert_eq!(found.snapshot(), format!("state {round}").as_bytes());
        assert_eq!(records(&found), expected(round * 100..round * 100 + 50));
        assert!(found.is_whole && found.damage.is_empty());
    }
    let status = journal.status();
    assert_eq!((status.records, status.snapshot_bytes, status.error), (50, 7, None));
    assert_eq!(status.directory, place.path());
    Box::new(journal).remove().unwrap();
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn the_next_daemon_goes_on_where_the_last_one_was_stopped() {
    let place = Place::new();
    let mut journal = place.create(b"");
    add(&mut journal, 0..10);
    drop(journal);
    for turn in 1..5 {
        let found = place.found();
        assert_eq!(records(&found), expected(0..turn * 10));
        let directory = open(&place.path(), BOOT);
        let mut journal = Journal::resume(&directory, &found).unwrap();
        add(&mut journal, turn * 10..turn * 10 + 10);
    }
    let found = place.found();
    let mut journal = Journal::resume(&place.directory, &found).unwrap();
    journal.switch(b"after").unwrap();
    add(&mut journal, 0..3);
    assert_eq!(
        (place.found().snapshot(), records(&place.found())),
        (&b"after"[..], expected(0..3))
    );
}

#[test]
fn a_log_grows_beyond_its_room_and_a_snapshot_is_asked_for_in_time() {
    let place = Place::new();
    let mut journal = place.create(b"s");
    let mut due_at = None;
    for number in 0..20_000 {
        add(&mut journal, number..number + 1);
        if due_at.is_none() && journal.is_due() {
            due_at = Some(number);
        }
    }
    assert!((200..1000).contains(&due_at.unwrap()), "{due_at:?}");
    assert_eq!(records(&place.found()), expected(0..20_000));
    let long = vec![7; super::MAX_RECORD];
    journal.append(&long, Need::Relief).unwrap();
    assert_eq!(records(&place.found()).last().unwrap(), &long);
    for wrong in [0, super::MAX_RECORD + 1] {
        let refused = journal.append(&vec![7; wrong], Need::Relief).unwrap_err();
        assert!(matches!(refused, StoreError::Length(length) if length == wrong));
    }
}

#[test]
fn a_record_that_was_not_committed_is_not_there_and_the_next_takes_its_place() {
    let place = Place::new();
    let mut journal = place.create(b"s");
    add(&mut journal, 0..3);
    drop(journal);
    let end =
        HEADER + 8 + (0..3).map(|n| super::format::record_size(record(n).len())).sum::<usize>();
    // All but the length of the fourth one, as a process that is killed leaves it.
    place.change(0, |bytes| bytes[end + 4..end + 60].fill(0xee));
    let found = place.found();
    assert_eq!((records(&found), found.is_whole, found.damage.len()), (expected(0..3), true, 0));
    let mut journal = Journal::resume(&place.directory, &found).unwrap();
    add(&mut journal, 3..30);
    assert_eq!(records(&place.found()), expected(0..30));
}

#[test]
fn damage_in_the_log_is_told_by_place_and_what_follows_it_is_marked() {
    let place = Place::new();
    let mut journal = place.create(b"s");
    add(&mut journal, 0..10);
    drop(journal);
    let at = |n: u64| {
        HEADER + 8 + (0..n).map(|n| super::format::record_size(record(n).len())).sum::<usize>()
    };
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

    // The new journal counts for more, also if the old files are still there.
    let mut after = Journal::create(&place.directory, "1000/a", Some(&found), b"restored").unwrap();
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
    assert!(matches!(why(&|bytes| bytes.truncate(5)), Why::Refused(super::Refusal::Truncated)));
    assert!(matches!(why(&|bytes| bytes[0] = 0), Why::Refused(super::Refusal::NoMagic)));
    assert!(matches!(why(&|bytes| bytes[40] ^= 1), Why::Refused(super::Refusal::Header)));
    let later = why(&|bytes| bytes[8] = 9);
    assert!(later.to_string().contains("format 9, of 0."), "{later}");
    let theirs = why(&|bytes| {
        let mut header = super::format::Header::decode(bytes).unwrap();
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

impl Place {
    fn change_file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }
}

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
    std::thread::sleep(super::log::RETRY);
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
    add(&mut journal, 0..4000);
    assert!(!journal.finish(&mut compaction).unwrap());
    compaction.catch_up().unwrap();
    add(&mut journal, 4000..4100);
    assert!(journal.finish(&mut compaction).unwrap());
    assert_eq!(records(&place.found()), expected(0..4100));
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

#[cfg(unix)]
#[test]
fn a_directory_that_others_may_enter_or_a_link_is_refused() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("state");
    drop(Directory::open(&dir).unwrap());
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    symlink(&dir, base.path().join("link")).unwrap();
    for path in [base.path().join("link"), base.path().join("link/")] {
        let refused = Directory::open(&path).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o750)).unwrap();
    let refused = Directory::open(&dir).unwrap_err();
    assert!(refused.to_string().contains("open to other users"), "{refused}");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    // A link in a file's place leads nowhere.
    let directory = open(&dir, BOOT);
    let journal = Journal::create(&directory, "1000/a", None, b"s").unwrap();
    drop(journal);
    fs::rename(dir.join("1.0"), base.path().join("elsewhere")).unwrap();
    symlink(base.path().join("elsewhere"), dir.join("1.0")).unwrap();
    let loaded = open(&dir, BOOT).load().unwrap();
    assert!(loaded.found.is_empty());
    assert!(loaded.unusable.iter().any(|u| matches!(u.why, Why::Unreadable(_))));
}
