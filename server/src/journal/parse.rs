//! Reading a file of a journal, whatever its bytes are: a pure function over them. It allocates
//! nothing but the header's texts, and looks at each byte a bounded number of times.

use syncd_core::sabotage::{Bug, sabotaged};

use super::format::{
    HEADER, Header, MAX_RECORD, POSITION, RECORD_HEAD, Refusal, SUPERSEDED, read_u32, read_u64,
    record_size, seal,
};

/// A generation as it lies in a file.
pub struct Generation<'a> {
    pub header: Header,
    /// A later one was completed.
    pub is_superseded: bool,
    /// So many bytes of log were written, or one record more.
    pub position: u64,
    snapshot: Option<&'a [u8]>,
    log: &'a [u8],
}

/// What is found in a log, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    Record { position: u64, bytes: &'a [u8] },
    Damage { position: u64, reason: Reason },
}

impl Entry<'_> {
    /// Where in the log it begins.
    pub fn position(&self) -> u64 {
        let (Self::Record { position, .. } | Self::Damage { position, .. }) = self;
        *position
    }
}

/// What is wrong with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the length can't be")]
    Length,
    #[error("the checksum is wrong")]
    Checksum,
    #[error("records that were written are missing")]
    Missing,
}

/// Reads a generation. The records are read as they are asked for.
///
/// # Errors
/// Why the file holds none.
pub fn parse(file: &[u8]) -> Result<Generation<'_>, Refusal> {
    let header = Header::decode(file)?;
    let length = usize::try_from(header.snapshot_length).ok();
    let end = length.and_then(|length| length.checked_add(HEADER));
    let snapshot = end.and_then(|end| file.get(HEADER..end));
    let start = usize::try_from(header.log_start()).unwrap_or(usize::MAX);
    Ok(Generation {
        snapshot,
        is_superseded: read_u64(file, SUPERSEDED) != 0,
        position: read_u64(file, POSITION),
        log: file.get(start..).unwrap_or_default(),
        header,
    })
}

impl<'a> Generation<'a> {
    /// The snapshot; `None`: it isn't the one that was written.
    pub fn snapshot(&self) -> Option<&'a [u8]> {
        self.snapshot.filter(|bytes| crc32fast::hash(bytes) == self.header.snapshot_checksum)
    }

    /// What is in the log.
    pub fn entries(&self) -> Entries<'a> {
        Entries::new(self.log, self.header.generation, self.position)
    }
}

/// Goes through a log.
pub struct Entries<'a> {
    log: &'a [u8],
    generation: u64,
    /// Records before it are there, or missing.
    written: u64,
    at: usize,
    /// So many bytes were read in search of records after damage.
    pub(super) searched: usize,
    is_over: bool,
}

/// What is at one place in a log.
enum Found<'a> {
    Record(&'a [u8]),
    /// The length is zero, or beyond the end.
    Nothing,
    Wrong(Reason),
}

impl<'a> Entries<'a> {
    /// A log that begins with `log`, of which `written` bytes were written, or one record more.
    pub fn new(log: &'a [u8], generation: u64, written: u64) -> Self {
        Self { log, generation, written, at: 0, searched: 0, is_over: false }
    }

    /// The rest of it, from a place where a record begins.
    pub fn starting_at(self, position: u64) -> Self {
        Self { at: usize::try_from(position).unwrap_or(usize::MAX), ..self }
    }

    /// Where the next one is looked for.
    pub fn position(&self) -> u64 {
        self.at as u64
    }

    fn look(&self, at: usize) -> Found<'a> {
        let rest = self.log.get(at..).unwrap_or_default();
        let length = read_u32(rest, 0) as usize;
        if length == 0 {
            return Found::Nothing;
        }
        let payload = rest.get(RECORD_HEAD..).and_then(|rest| rest.get(..length));
        match payload.filter(|_| length <= MAX_RECORD) {
            None => Found::Wrong(Reason::Length),
            Some(payload)
                if seal(self.generation, at as u64, payload) == read_u32(rest, 4)
                    || sabotaged(Bug::TornRecordAccepted) =>
            {
                Found::Record(payload)
            }
            Some(_) => Found::Wrong(Reason::Checksum),
        }
    }

    /// Goes on to the next place after damage where there is a record. It gives up where lengths
    /// alone, of which each byte may be one, would have it read the log over and over.
    fn search(&mut self) {
        let most = self.log.len().saturating_mul(4);
        for at in (self.at.saturating_add(8)..self.log.len()).step_by(8) {
            match self.look(at) {
                Found::Record(_) => {
                    self.at = at;
                    return;
                }
                Found::Wrong(Reason::Checksum) => {
                    self.searched += read_u32(self.log, at) as usize;
                    if self.searched > most {
                        break;
                    }
                }
                _ => {}
            }
        }
        self.is_over = true;
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        if self.is_over {
            return None;
        }
        let position = self.at as u64;
        let reason = match self.look(self.at) {
            Found::Record(bytes) => {
                self.at += record_size(bytes.len());
                return Some(Entry::Record { position, bytes });
            }
            Found::Nothing if position >= self.written => {
                self.is_over = true;
                return None;
            }
            Found::Nothing => Reason::Missing,
            Found::Wrong(reason) => reason,
        };
        self.search();
        Some(Entry::Damage { position, reason })
    }
}
