//! The number by which storage tells a holder from one of the past.

use std::fmt;

/// Rises strictly with every grant of a namespace: storage that remembers the highest one that it
/// has seen can refuse a holder from the past.
///
/// ```
/// # use syncd_client::FencingToken;
/// # fn example(mine: FencingToken, highest_seen: u64) {
/// assert!(mine.get() > highest_seen);
/// println!("{mine}");
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    pub(crate) fn new(token: u64) -> Self {
        Self(token)
    }

    /// As a number, to be kept by whatever is fenced.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> Self {
        token.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
