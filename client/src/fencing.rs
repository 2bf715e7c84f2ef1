//! The fencing token, by which storage refuses writes of a former holder.

use std::fmt;

/// A number that rises strictly with every grant in a namespace: storage that remembers the
/// highest token that it has seen can refuse a former holder.
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

    /// The token as a number, for the storage to compare.
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
