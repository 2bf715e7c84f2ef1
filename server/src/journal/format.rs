//! What lies in a journal's file, byte by byte: the header, and how a record is sealed. Never
//! here: files, or what to do about a file that is damaged (see `parse`).
//!
//! ```text
//!   0  magic            8    40  snapshot's length   8     80  address           288
//!   8  format version   4    48  position before     8    368  daemon's version   64
//!  12  header's length  4    56  taken at, Unix us   8    480  checksum of 0..480   4
//!  16  boot id         16    64  user                4    488  superseded         8
//!  32  generation       8    68  snapshot's checksum 4    496  position           8
//!                            72  lengths of 80, 368  2+2  504  complete           8
//! ```
//! Little-endian; 76 to 80, 432 to 480 and 484 to 488 are zero. Magic, version, boot id, generation,
//! user and address stay where they are in every later version. The snapshot follows the header;
//! the log begins at the next multiple of 8, and goes on to the end of the file.
//!
//! A record is `[length u32][checksum u32][payload]`, filled up to a multiple of 8. The length is
//! written last, and is never 0 then. Positions count from where the log begins.

use std::ops::Range;

/// Bytes before the snapshot.
pub const HEADER: usize = 512;
/// The format that this daemon writes, and the only one that it reads.
pub const VERSION: u32 = 1;
/// The longest record.
pub const MAX_RECORD: usize = 1 << 20;
/// Before a record's payload.
pub const RECORD_HEAD: usize = 8;

/// A later snapshot was complete: not zero.
pub const SUPERSEDED: usize = 488;
/// All records before this position were written. (One more may have been: it is raised after.)
pub const POSITION: usize = 496;
/// The generation, once all else is written.
pub const COMPLETE: usize = 504;

const MAGIC: [u8; 8] = *b"syncdjrn";
const ADDRESS: Range<usize> = 80..368;
const DAEMON: Range<usize> = 368..432;
const CHECKSUM: usize = 480;

/// The longest address.
pub const MAX_ADDRESS: usize = ADDRESS.end - ADDRESS.start;

/// What the kernel calls this run of the machine; zeros if it doesn't say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

/// What a generation says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub boot: BootId,
    /// Counts the snapshots at an address, from 1.
    pub generation: u64,
    /// Of the daemon that wrote it.
    pub user: u32,
    pub address: String,
    /// Its version.
    pub daemon: String,
    /// When the snapshot was taken, in microseconds since the Unix epoch.
    pub taken_at: u64,
    pub snapshot_length: u64,
    pub snapshot_checksum: u32,
    /// The position in the log of the generation before at which the snapshot was taken.
    pub position_before: u64,
}

/// Why a file holds no generation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was ever written, or a snapshot was begun and not completed.
    #[error("it was not completed")]
    Unfinished,
    #[error("it is shorter than a header")]
    Truncated,
    #[error("it is no journal")]
    NoMagic,
    #[error("it has format {format}, of {daemon}; this daemon reads format {VERSION}")]
    Version { format: u32, daemon: String },
    #[error("its header is damaged")]
    Header,
}

fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut word = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        word.copy_from_slice(found);
    }
    word
}

/// Zero beyond the end.
pub fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(read(bytes, at))
}

/// Zero beyond the end.
pub fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(read(bytes, at))
}

fn read_text(bytes: &[u8], place: Range<usize>, length: usize) -> Option<String> {
    let text = bytes.get(place)?.get(..length)?;
    Some(std::str::from_utf8(text).ok()?.to_owned())
}

/// At most `most` bytes of `text`, cut between characters.
fn cut(text: &str, most: usize) -> &str {
    let fits = (0..=most.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..fits.unwrap_or(0)]
}

impl Header {
    /// The bytes of the header, not yet complete.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let address = cut(&self.address, ADDRESS.len());
        let daemon = cut(&self.daemon, DAEMON.len());
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &(HEADER as u32).to_le_bytes());
        put(16, &self.boot.0);
        put(32, &self.generation.to_le_bytes());
        put(40, &self.snapshot_length.to_le_bytes());
        put(48, &self.position_before.to_le_bytes());
        put(56, &self.taken_at.to_le_bytes());
        put(64, &self.user.to_le_bytes());
        put(68, &self.snapshot_checksum.to_le_bytes());
        put(72, &(address.len() as u16).to_le_bytes());
        put(74, &(daemon.len() as u16).to_le_bytes());
        put(ADDRESS.start, address.as_bytes());
        put(DAEMON.start, daemon.as_bytes());
        let sum = crc32fast::hash(&bytes[..CHECKSUM]);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header that is complete.
    ///
    /// # Errors
    /// Why there is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let Some(bytes) = bytes.get(..HEADER) else { return Err(Refusal::Truncated) };
        let complete = read_u64(bytes, COMPLETE);
        if bytes[..8] != MAGIC {
            let is_blank = bytes.iter().all(|&byte| byte == 0);
            return Err(if is_blank { Refusal::Unfinished } else { Refusal::NoMagic });
        }
        let address = read_text(bytes, ADDRESS, u16::from_le_bytes(read(bytes, 72)).into());
        let daemon = read_text(bytes, DAEMON, u16::from_le_bytes(read(bytes, 74)).into());
        let format = read_u32(bytes, 8);
        if format != VERSION {
            let daemon = daemon.unwrap_or_default();
            return Err(Refusal::Version { format, daemon });
        }
        if complete == 0 {
            return Err(Refusal::Unfinished);
        }
        let generation = read_u64(bytes, 32);
        let is_sound = crc32fast::hash(&bytes[..CHECKSUM]) == read_u32(bytes, CHECKSUM)
            && read_u32(bytes, 12) as usize == HEADER
            && complete == generation;
        match (address, daemon) {
            (Some(address), Some(daemon)) if is_sound => Ok(Self {
                boot: BootId(read(bytes, 16)),
                generation,
                user: read_u32(bytes, 64),
                address,
                daemon,
                taken_at: read_u64(bytes, 56),
                snapshot_length: read_u64(bytes, 40),
                snapshot_checksum: read_u32(bytes, 68),
                position_before: read_u64(bytes, 48),
            }),
            _ => Err(Refusal::Header),
        }
    }

    /// Where in the file the log begins.
    pub fn log_start(&self) -> u64 {
        log_start(self.snapshot_length)
    }
}

/// Where in the file the log begins after a snapshot of so many bytes.
pub fn log_start(snapshot: u64) -> u64 {
    (HEADER as u64).saturating_add(snapshot).saturating_add(7) & !7
}

/// How many bytes of log a record takes.
pub fn record_size(payload: usize) -> usize {
    (RECORD_HEAD + payload + 7) & !7
}

/// The checksum of a record. The generation and the position are in it, so that what an earlier
/// generation left in the same file, or a copy of a record elsewhere, is never taken for a record.
pub fn seal(generation: u64, position: u64, payload: &[u8]) -> u32 {
    let words = [
        (generation as u32).wrapping_mul(0x9e37_79b1),
        ((generation >> 32) as u32).wrapping_mul(0xc2b2_ae3d),
        ((position >> 3) as u32).wrapping_mul(0x27d4_eb2f),
        ((position >> 35) as u32).wrapping_mul(0x1656_67b1),
        (payload.len() as u32).wrapping_mul(0x85eb_ca77),
    ];
    let mut hasher = crc32fast::Hasher::new_with_initial(words.iter().fold(0, |a, b| a ^ b));
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            boot: BootId([7; 16]),
            generation: 3,
            user: 1000,
            address: "1000/name".into(),
            daemon: "0.1.0".into(),
            taken_at: 1,
            snapshot_length: 13,
            snapshot_checksum: 5,
            position_before: 48,
        }
    }

    fn complete(header: &Header) -> [u8; HEADER] {
        let mut bytes = header.encode();
        bytes[COMPLETE..].copy_from_slice(&header.generation.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_only_when_complete() {
        assert_eq!(Header::decode(&complete(&header())), Ok(header()));
        assert_eq!(Header::decode(&header().encode()), Err(Refusal::Unfinished));
        assert_eq!(Header::decode(&[0; HEADER]), Err(Refusal::Unfinished));
        assert_eq!(Header::decode(&[0; HEADER - 1]), Err(Refusal::Truncated));
        assert_eq!(Header::decode(&[1; HEADER]), Err(Refusal::NoMagic));
    }

    #[test]
    fn no_bit_of_a_header_goes_wrong_unseen() {
        let good = complete(&header());
        for bit in (0..SUPERSEDED * 8).chain(COMPLETE * 8..HEADER * 8) {
            let mut bent = good;
            bent[bit / 8] ^= 1 << (bit % 8);
            let in_gap = (CHECKSUM + 4) * 8..SUPERSEDED * 8;
            assert!(in_gap.contains(&bit) || Header::decode(&bent).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_later_format_is_named_with_its_daemon() {
        let mut bytes = complete(&Header { daemon: "9.8.7".into(), ..header() });
        bytes[8] = 2;
        let refused = Header::decode(&bytes).unwrap_err();
        assert_eq!(refused, Refusal::Version { format: 2, daemon: "9.8.7".into() });
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        let long = Header { address: "ä".repeat(200), daemon: "é".repeat(40), ..header() };
        let read = Header::decode(&complete(&long)).unwrap();
        assert_eq!((read.address, read.daemon), ("ä".repeat(144), "é".repeat(32)));
    }

    #[test]
    fn a_seal_fits_one_record_at_one_place() {
        let seals = [
            seal(1, 0, b"a"),
            seal(2, 0, b"a"),
            seal(1, 8, b"a"),
            seal(1, 0, b"b"),
            seal(1, 0, b"a\0"),
            seal(1 << 32, 0, b"a"),
        ];
        let distinct: std::collections::HashSet<_> = seals.into_iter().collect();
        assert_eq!(distinct.len(), seals.len());
    }
}
