//! A journal whose files somebody took away, or cut, while it is written to: its owner knows all that
//! was in it, and has another one made. Never here: who looks, and when.

use super::{Header, Journal, StoreError};

impl Journal {
    /// Somebody took away what it writes to, or cut some off: the next daemon wouldn't find it.
    pub fn is_lost(&self) -> bool {
        self.lost.is_some() || !self.slots.iter().all(|slot| slot.is_there() && !slot.is_cut())
    }

    /// It is lost, and refuses growth for that.
    pub fn is_refusing(&self) -> bool {
        self.lost.is_some()
    }

    /// Replaces one that is lost by another, which has `snapshot`: the state after the last record.
    ///
    /// # Errors
    /// From then on it has no room for growth.
    pub fn begin_anew(&mut self, snapshot: &[u8]) -> Result<(), StoreError> {
        let Header { address, generation, .. } = &self.current.header;
        match Self::create(&self.directory, address, Some(*generation), snapshot) {
            Ok(anew) => {
                let lost = std::mem::replace(self, anew);
                // One of the two may be left, or both of them, cut.
                lost.slots.iter().filter(|slot| slot.is_there()).for_each(|s| drop(s.remove()));
                Ok(())
            }
            Err(error) => {
                self.lost = Some(error.clone());
                self.limit_growth();
                Err(error)
            }
        }
    }
}
