//! What happened in a run: always as a hash, and as text when the run is to be read.

use std::hash::{DefaultHasher, Hash, Hasher};

/// See the [module](self).
pub(super) struct Trace {
    hasher: DefaultHasher,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub fn new(reading: bool) -> Self {
        Self { hasher: DefaultHasher::new(), lines: reading.then(Vec::new) }
    }

    /// Something happened: `what` goes into the hash, `line` is made when somebody reads.
    pub fn note(&mut self, now: u64, what: impl Hash, line: impl FnOnce() -> String) {
        (now, what).hash(&mut self.hasher);
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>9}.{:03} ms  {}", now / 1000, now % 1000, line()));
        }
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub fn into_lines(self) -> Vec<String> {
        self.lines.unwrap_or_default()
    }
}
