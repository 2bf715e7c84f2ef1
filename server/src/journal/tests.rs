//! A journal that is written, left and found again: whole, damaged, in want of room.

mod compaction;
mod damage;
mod fuzz;
mod room;

use std::{fs, path::Path, sync::Arc};

use tempfile::TempDir;

use super::{
    Directory, Done, Found, Journal, Loaded, Need, Store as _, StoreError, Why,
    format::{BootId, HEADER},
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

    fn change_file(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// No more room than is reserved.
    fn fill(&self) {
        self.directory.fill();
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
    journal.remove().unwrap();
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
fn what_is_removed_goes_oldest_first() {
    let place = Place::new();
    let mut journal = place.create(b"first");
    journal.switch(b"second").unwrap();
    fs::remove_file(place.file(0)).unwrap();
    // It stops at the first that it can't remove.
    assert!(journal.remove().is_err());
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
