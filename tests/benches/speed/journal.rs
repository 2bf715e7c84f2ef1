//! What it costs to keep a record: a store to a mapped file against a call of write(2), on memory
//! and on the disk.

use std::{
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use syncd::journal::{Directory, Journal, Need, Store as _};

use crate::{
    Lab,
    table::{Goal, Unit},
};

const RECORDS: u64 = 500_000;
/// A namespace with some tens of objects.
const SNAPSHOT: usize = 4 << 10;

/// The mean time of a record, in nanoseconds; snapshots, when they are due, are in it.
fn mapped(path: &Path, length: usize) -> f64 {
    let directory = Directory::open(path).expect("a directory of one's own");
    let snapshot = vec![1; SNAPSHOT];
    let mut journal = Journal::create(&directory, "0/bench", None, &snapshot).expect("room");
    let record = vec![2; length];
    let start = Instant::now();
    for _ in 0..RECORDS {
        journal.append(black_box(&record), Need::Growth).expect("room");
        if journal.is_due() {
            journal.switch(&snapshot).expect("room");
        }
    }
    let mean = start.elapsed().as_nanos() as f64 / RECORDS as f64;
    journal.remove().expect("its files are there");
    mean
}

/// One write(2) for each record, to a file that has room, from its start again each 128 KiB.
fn written(path: &Path, length: usize) -> f64 {
    let file = path.join("written");
    let target = File::create(&file).expect("a file");
    target.write_all_at(&vec![0; 256 << 10], 0).expect("room");
    let record = vec![2; length + 8];
    let start = Instant::now();
    let mut at = 0;
    for _ in 0..RECORDS {
        // As a journal would have to: its checksum, too.
        black_box(crc32fast::hash(black_box(&record[8..])));
        target.write_all_at(black_box(&record), at).expect("room");
        at = if at > 128 << 10 { 0 } else { at + record.len() as u64 };
    }
    let mean = start.elapsed().as_nanos() as f64 / RECORDS as f64;
    std::fs::remove_file(file).expect("it was made");
    mean
}

/// Both, on a tmpfs and where temporary files lie.
pub fn rows(lab: &mut Lab) {
    let memory = tempfile::tempdir_in("/dev/shm").ok();
    let disk = lab.dir.path().join("journal");
    let memory = memory.as_ref().map(|memory| ("tmpfs", memory.path().join("journal")));
    let places: Vec<(&str, PathBuf)> = memory.into_iter().chain([("disk", disk)]).collect();
    for (place, path) in &places {
        Directory::open(path).expect("a directory of one's own");
        let mut taken = Vec::new();
        for length in [40, 200] {
            let [ours, rival] = lab
                .rounds([&mut || vec![mapped(path, length)], &mut || vec![written(path, length)]]);
            taken.push((length, ours, rival));
        }
        for (length, ours, rival) in taken {
            let row = lab.row("journal", &format!("{length} bytes, {place}"), Unit::Time, &ours[0]);
            row.against("write(2)", &rival[0]).goal(Goal::AtMost(100.0));
        }
    }
}
