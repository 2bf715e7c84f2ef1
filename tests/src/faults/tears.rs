//! Journals that aren't as they were written: cut, torn, changed, or with something behind them. What
//! the next daemon is told must be what was written, from the last snapshot on, and no more; and if it
//! isn't all of it, that must be told, too.

use std::{fs, path::PathBuf, sync::Arc};

use fastrand::Rng;
use syncd::journal::{Directory, Journal, Loaded, Need, Store as _};

use super::{Held, seed};

/// Records of a journal, at most.
const RECORDS: u64 = 60;

/// Each trial is a journal.
pub(super) fn torn_files(trials: u64) -> Held {
    for seed in seed()..seed() + trials {
        one(&mut Rng::with_seed(seed)).map_err(|why| format!("seed {seed}: {why}"))?;
    }
    Ok(trials)
}

/// What the record of a number is; the same number is a snapshot of all up to it.
fn record(number: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(number);
    let filler = (0..rng.usize(..100)).map(|_| rng.u8(..));
    number.to_le_bytes().into_iter().chain(filler).collect()
}

fn number(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*bytes.first_chunk()?);
    (bytes == record(number)).then_some(number)
}

fn one(rng: &mut Rng) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = dir.path().join("journal");
    let directory: Arc<Directory> = Directory::open(&path).map_err(|error| error.to_string())?;
    let journal = Journal::create(&directory, "1000/a", None, &record(0));
    let mut journal = journal.map_err(|error| error.to_string())?;
    let written = rng.u64(1..=RECORDS);
    for number in 1..=written {
        journal.append(&record(number), Need::Growth).map_err(|error| error.to_string())?;
        if rng.u8(..30) == 0 {
            journal.switch(&record(number)).map_err(|error| error.to_string())?;
        }
    }
    drop((journal, directory));
    let mut files: Vec<PathBuf> = vec![];
    for file in fs::read_dir(&path).map_err(|error| error.to_string())? {
        files.push(file.map_err(|error| error.to_string())?.path());
    }
    files.sort();
    let harm = harm(rng, &files).map_err(|error| error.to_string())?;
    let directory = Directory::open(&path).map_err(|error| error.to_string())?;
    let loaded = directory.load().map_err(|error| error.to_string())?;
    let of_harm = |why: String| format!("of {written} records, {harm}: {why}");
    found(&loaded, written, harm == NO_HARM).map_err(of_harm)
}

const NO_HARM: &str = "none is harmed";
/// The header, whose words change one at a time, and whole. Its last one, emptied, says that there
/// never was anything.
const HEADER: usize = 512;

/// Does something to one of the files, or nothing.
fn harm(rng: &mut Rng, files: &[PathBuf]) -> std::io::Result<String> {
    let file = &files[rng.usize(..files.len())];
    let mut bytes = fs::read(file)?;
    // Most of a file is room for more.
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    if used <= HEADER {
        return Ok(NO_HARM.into());
    }
    let at = rng.usize(HEADER..used);
    let name = file.file_name().unwrap_or_default().display();
    let (harm, bytes) = match rng.u8(..5) {
        0 => return Ok(NO_HARM.into()),
        1 => {
            bytes[at] ^= 1 << rng.u8(..8);
            (format!("a bit of byte {at} of {name} is changed"), bytes)
        }
        2 => {
            bytes.truncate(at);
            (format!("{name} is cut at byte {at}"), bytes)
        }
        3 => {
            bytes[at..].fill(0);
            (format!("{name} is empty from byte {at} on"), bytes)
        }
        _ => {
            let end = bytes.len().min(used + 200);
            bytes[used..end].fill_with(|| rng.u8(..4));
            (format!("{name} has something behind byte {used}"), bytes)
        }
    };
    fs::write(file, bytes)?;
    Ok(harm)
}

fn found(loaded: &Loaded, written: u64, is_unharmed: bool) -> Result<(), String> {
    let [found] = &loaded.found[..] else {
        // It may be that nobody can tell what was written, if that is told.
        let is_told = loaded.unusable.iter().any(|unusable| !unusable.why.is_worthless());
        return if is_told && !is_unharmed { Ok(()) } else { Err(format!("found {loaded:?}")) };
    };
    let mut last = number(found.snapshot()).ok_or("a snapshot that was never taken")?;
    for record in found.records().take_while(|record| !record.is_after_damage) {
        let number = number(record.bytes).ok_or("a record that was never written")?;
        if number != last + 1 {
            return Err(format!("record {number} comes after {last}"));
        }
        last = number;
    }
    let is_told = !found.is_whole && !found.damage.is_empty();
    match last == written {
        true if is_unharmed && !(found.is_whole && found.damage.is_empty()) => {
            Err(format!("damage is told of where none was done: {:?}", found.damage))
        }
        false if !is_told => Err(format!("record {last} is taken for the last one")),
        _ => Ok(()),
    }
}
