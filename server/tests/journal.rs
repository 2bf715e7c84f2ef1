//! A journal whose writer is killed while it writes. Each writer is a process of its own (this test
//! binary, run again), which reports the records that it has written: they must be found.
#![cfg(unix)]

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use syncd::journal::{Directory, Found, Journal, Need, Store as _};

/// The environment variable with the writer's journal directory.
const DIRECTORY: &str = "SYNCD_TEST_JOURNAL";

/// Record number `n`, of a length that depends on it.
fn record(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(8 + (n * n % 190) as usize, n as u8);
    bytes
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// The state is the number of the last record, and the records in front of it, as ballast.
fn snapshot(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(20_000, n as u8);
    bytes
}

fn rebuild(
    before: &[u8],
    records: &mut dyn Iterator<Item = &[u8]>,
) -> Result<Vec<u8>, &'static str> {
    let mut last = number(before);
    for bytes in records {
        if bytes != record(last + 1) {
            return Err("not the next one");
        }
        last += 1;
    }
    Ok(snapshot(last))
}

/// Asserts that all records up to the last are there, and returns its number.
fn last(found: &Found) -> u64 {
    assert!(found.is_whole && found.damage.is_empty(), "{:?}", found.damage);
    let state = rebuild(found.snapshot(), &mut found.records().map(|record| record.bytes));
    number(&state.unwrap())
}

fn load(path: &Path) -> Option<Found> {
    let mut loaded = Directory::open(path).unwrap().load().unwrap();
    assert!(loaded.unusable.iter().all(|unusable| unusable.why.is_worthless()), "{loaded:?}");
    assert!(loaded.found.len() <= 1, "{loaded:?}");
    loaded.found.pop()
}

/// Not a test, but a writer, until it is killed: it appends records and reports them, and takes
/// snapshots when due, in turn at once and in the background.
#[test]
fn the_writer() {
    let Ok(path) = std::env::var(DIRECTORY) else { return };
    // Standard error is for numbers only, and a panic ends the writer.
    std::panic::set_hook(Box::new(|panic| {
        println!("{panic}");
        std::process::abort();
    }));
    let directory = Directory::open(Path::new(&path)).unwrap();
    let found = directory.load().unwrap().found.pop();
    let mut n = found.as_ref().map_or(0, last);
    let mut journal = match &found {
        Some(found) => Journal::resume(&directory, found).unwrap(),
        None => Journal::create(&directory, "1000/a", None, &snapshot(0)).unwrap(),
    };
    let (send_done, done) = mpsc::channel();
    let mut said = std::io::stderr();
    for snapshots in 0.. {
        while !journal.is_due() {
            n += 1;
            journal.append(&record(n), Need::Growth).unwrap();
            // A write of eight bytes is atomic.
            said.write_all(&n.to_le_bytes()).unwrap();
            if let Ok(mut compaction) = done.try_recv() {
                while !journal.finish(&mut compaction).unwrap() {
                    compaction.catch_up().unwrap();
                }
            }
        }
        if snapshots % 2 == 0 {
            journal.switch(&snapshot(n)).unwrap();
        } else {
            let mut compaction = journal.compaction().unwrap();
            let send_done = send_done.clone();
            thread::spawn(move || {
                compaction.work(rebuild).unwrap();
                send_done.send(compaction).unwrap();
            });
        }
    }
}

/// A writer, and the last number that it reported.
struct Writer {
    child: Child,
    said: mpsc::Receiver<u64>,
}

impl Writer {
    fn start(path: &Path, failpoint: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "the_writer", "--nocapture", "--test-threads=1"]);
        command.env(DIRECTORY, path).stderr(Stdio::piped());
        if let Some(failpoint) = failpoint {
            command.env("SYNCD_FAILPOINT", failpoint);
        }
        let mut child = command.spawn().unwrap();
        let mut from = child.stderr.take().unwrap();
        let (send, said) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 8];
            while from.read_exact(&mut bytes).is_ok() {
                let _ = send.send(u64::from_le_bytes(bytes));
            }
        });
        Self { child, said }
    }

    /// Waits for its end, which must be by SIGKILL. Returns the last number that it reported, or
    /// `before` if there is none.
    fn end(mut self, before: u64) -> u64 {
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
        self.said.into_iter().last().unwrap_or(before)
    }
}

#[test]
fn all_records_that_a_killed_writer_reported_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let (mut reached, mut generations) = (0, HashMap::new());
    for round in 0..40 {
        let mut writer = Writer::start(&path, None);
        writer.said.recv().unwrap();
        thread::sleep(Duration::from_micros(fastrand::u64(..20_000)));
        writer.child.kill().unwrap();
        let said = writer.end(reached);
        let found = load(&path).unwrap();
        *generations.entry(found.taken_at).or_insert(0) += 1;
        let last = last(&found);
        assert!(last == said || last == said + 1, "round {round}: {said} were said, {last} found");
        reached = last;
    }
    assert!(generations.len() > 5, "many snapshots were taken: {generations:?}");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_writer_killed_at_any_failpoint_leaves_its_records() {
    let places = [
        "journal.append.before",
        "journal.append.middle",
        "journal.append.after",
        "journal.switch.middle",
        "journal.switch.before_complete",
        "journal.switch.complete",
        "journal.compaction.copied",
        "journal.compaction.before_complete",
    ];
    for place in places {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut reached = 0;
        for time in [1, 2, 3, 2, 1] {
            let said = Writer::start(&path, Some(&format!("{place}:{time}"))).end(reached);
            let Some(found) = load(&path) else {
                assert_eq!((place, said), ("journal.switch.middle", 0), "nothing is there yet");
                continue;
            };
            let last = last(&found);
            // The last record was written, but the writer died before it could report it.
            let unsaid = u64::from(place == "journal.append.after");
            let is_right = match place {
                // It died in another thread, not the one that appends.
                "journal.compaction.copied" => last == said || last == said + 1,
                _ => last == said + unsaid,
            };
            assert!(is_right, "{place}, time {time}: {said} were said, {last} found");
            reached = last;
        }
        assert!(reached > 0, "{place}");
    }
}

/// A full tmpfs, in its own mount namespace. Only root can make one; otherwise this passes.
#[cfg(target_os = "linux")]
#[test]
fn a_full_tmpfs_refuses_growth_and_stops_no_release() {
    const MOUNTED: &str = "SYNCD_TEST_TMPFS";
    let Some(path) = std::env::var_os(MOUNTED).map(PathBuf::from) else {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let script = "mount -t tmpfs -o size=2m,mode=700 none \"$0\" || exit 77; exec \"$@\"";
        let name = "a_full_tmpfs_refuses_growth_and_stops_no_release";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", script]).arg(dir.path());
        command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
        let output = command.env(MOUNTED, dir.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // 77, or unshare's 1: this root may not mount.
        let may_not = output.status.code() == Some(77) || said.contains("unshare failed");
        assert!(output.status.success() || may_not, "{}: {said}", output.status);
        return;
    };
    let directory = Directory::open(&path).unwrap();
    let mut journal = Journal::create(&directory, "1000/a", None, b"s").unwrap();
    let filler = path.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    // So that some of what is then asked for can be had.
    file.set_len(file.metadata().unwrap().len() - (12 << 10)).unwrap();
    let (mut state, mut refused) = (1usize, 0);
    for _ in 0..20_000 {
        match journal.make_room(40) {
            Ok(()) => {
                journal.append(&[1; 40], Need::Growth).unwrap();
                state += 2 * 40;
            }
            Err(error) => {
                assert!(error.to_string().contains("No space left"), "{error}");
                refused += 1;
            }
        }
        if journal.is_due() {
            journal.switch(&vec![3; state]).unwrap();
        }
    }
    assert!(refused > 1000, "{refused}");
    let files = directory.load().unwrap().found.remove(0).files().to_vec();
    let lengths: u64 = files.iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(lengths, journal.status().bytes, "what was tried in vain was given back");
    for _ in 0..20_000 {
        journal.append(&[2; 40], Need::Relief).unwrap();
        if journal.is_due() {
            journal.switch(&vec![3; state]).unwrap();
        }
    }
    fs::remove_file(&filler).unwrap();
    drop(file);
    thread::sleep(Duration::from_millis(150));
    for _ in 0..5000 {
        journal.make_room(40).unwrap();
        journal.append(&[1; 40], Need::Growth).unwrap();
    }
    assert_eq!(journal.status().error, None);
    assert_eq!(
        directory.load().unwrap().found[0].records().count() as u64,
        journal.status().records
    );
}
