//! The state of the daemon's journal.

use serde::Serialize;
use syncd_proto::v1;

/// The state of the daemon's journal.
#[derive(Clone, Debug, Serialize)]
pub struct Journal {
    pub directory: String,
    pub bytes: u64,
    /// Records since the last snapshot.
    pub records: u64,
    pub snapshot_bytes: u64,
    /// In seconds since the Unix epoch.
    pub last_snapshot: Option<f64>,
    pub healthy: bool,
    /// Empty if it is healthy.
    pub error: String,
}

impl From<v1::JournalStatus> for Journal {
    fn from(j: v1::JournalStatus) -> Self {
        let at = j.last_snapshot_us;
        Self {
            directory: j.directory,
            bytes: j.bytes,
            records: j.records,
            snapshot_bytes: j.snapshot_bytes,
            last_snapshot: (at > 0).then_some(at as f64 / 1e6),
            healthy: j.error.is_empty(),
            error: j.error,
        }
    }
}
