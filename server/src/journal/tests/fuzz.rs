//! Files whose bytes were bent, cut, moved or made up. Whatever they are, the parser neither
//! panics nor takes for a record what was never written as one.

use fastrand::Rng;

use super::super::{
    Entry,
    format::{BootId, COMPLETE, HEADER, Header, POSITION, log_start, record_size, seal},
    parse,
};

const FILES: usize = 100_000;

/// A file as a journal writes it, its records, and where its log ends.
fn file(rng: &mut Rng) -> (Vec<u8>, Vec<Vec<u8>>, usize) {
    let snapshot: Vec<u8> = (0..rng.usize(..50)).map(|_| rng.u8(..)).collect();
    let header = Header {
        boot: BootId([1; 16]),
        generation: rng.u64(1..4),
        user: 0,
        address: "1000/a".into(),
        daemon: "0.1.0".into(),
        taken_at: rng.u64(..),
        snapshot_length: snapshot.len() as u64,
        snapshot_checksum: crc32fast::hash(&snapshot),
        position_before: 0,
    };
    let mut bytes = header.encode().to_vec();
    bytes[COMPLETE..].copy_from_slice(&header.generation.to_le_bytes());
    bytes.extend(&snapshot);
    let start = log_start(snapshot.len() as u64) as usize;
    bytes.resize(start, 0);
    let mut records = Vec::new();
    for _ in 0..rng.usize(..10) {
        let record: Vec<u8> = (0..rng.usize(1..60)).map(|_| rng.u8(..4)).collect();
        let at = bytes.len();
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(seal(header.generation, (at - start) as u64, &record).to_le_bytes());
        bytes.extend(&record);
        bytes.resize(at + record_size(record.len()), 0);
        records.push(record);
    }
    let end = bytes.len();
    bytes[POSITION..POSITION + 8].copy_from_slice(&((end - start) as u64).to_le_bytes());
    bytes.resize(end + 8, 0);
    // What an earlier generation has left.
    bytes.extend((0..rng.usize(..20) * 8).map(|_| rng.u8(..8)));
    (bytes, records, end)
}

fn bend(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let (from, at) = (rng.usize(..bytes.len()), rng.usize(..bytes.len()));
    let length = rng.usize(..=(bytes.len() - from.max(at)).min(64));
    match rng.u8(..8) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes.truncate(at),
        2 => bytes[at..at + length].fill(0),
        3 => bytes.copy_within(from..from + length, at),
        4 => bytes[at..at + length].fill_with(|| rng.u8(..)),
        5 => drop(bytes.drain(at..at + length)),
        // A length, or the end that was reached.
        6 => {
            let word = [0, 1, u32::MAX, 1 << 20, (1 << 20) + 1, rng.u32(..)];
            let at = at & !7;
            let value = word[rng.usize(..word.len())].to_le_bytes();
            bytes.get_mut(at..at + 4).into_iter().for_each(|word| word.copy_from_slice(&value));
        }
        _ => bytes.extend((0..length).map(|_| 0xff)),
    }
}

#[test]
fn whatever_a_file_holds_only_what_was_written_is_read() {
    let mut rng = Rng::with_seed(12);
    let (mut read, mut refused, mut damaged) = (0, 0, 0);
    for number in 0..FILES {
        let (mut bytes, written, _) = file(&mut rng);
        for _ in 0..rng.usize(..4) {
            bend(&mut rng, &mut bytes);
        }
        let Ok(generation) = parse(&bytes) else {
            refused += 1;
            continue;
        };
        generation.snapshot();
        let mut rest = written.iter();
        let (mut is_damaged, mut taken) = (false, 0);
        for entry in generation.entries() {
            taken += 1;
            match entry {
                Entry::Record { bytes, .. } => {
                    read += 1;
                    let is_next = is_damaged || rest.len() == written.len() + 1 - taken;
                    let is_one = rest.any(|written| written == bytes);
                    assert!(is_one && is_next, "file {number} of seed 12: {bytes:?}");
                }
                Entry::Damage { .. } => is_damaged = true,
            }
        }
        damaged += usize::from(is_damaged);
        assert!(taken <= bytes.len() / 8, "file {number} of seed 12");
    }
    assert!(read > FILES / 2 && refused > FILES / 10 && damaged > FILES / 10);
}

#[test]
fn bytes_that_were_never_a_journal_are_refused_or_read_to_their_end() {
    let mut rng = Rng::with_seed(13);
    for _ in 0..FILES / 10 {
        let mut bytes: Vec<u8> = (0..rng.usize(..2000)).map(|_| rng.u8(..)).collect();
        // A header that is right, and nothing after it.
        if rng.bool() {
            let (whole, ..) = file(&mut rng);
            bytes.splice(..bytes.len().min(HEADER), whole[..HEADER].iter().copied());
        }
        if let Ok(generation) = parse(&bytes) {
            assert!(generation.entries().count() <= bytes.len() / 8 + 1);
        }
    }
}

#[test]
fn a_log_of_lengths_alone_is_searched_a_bounded_number_of_times() {
    let mut rng = Rng::with_seed(14);
    let (mut bytes, ..) = file(&mut rng);
    // Every place may be where a record of a megabyte begins.
    let start = bytes.len() & !7;
    bytes.resize(start + (8 << 20), 0);
    bytes[start..]
        .chunks_exact_mut(8)
        .for_each(|w| w[..4].copy_from_slice(&(1u32 << 20).to_le_bytes()));
    let position = bytes.len() as u64;
    bytes[POSITION..POSITION + 8].copy_from_slice(&position.to_le_bytes());
    let mut entries = parse(&bytes).unwrap().entries();
    assert!(entries.by_ref().count() < 100);
    assert!((8 << 20..bytes.len() * 4 + (2 << 20)).contains(&entries.searched));
}
