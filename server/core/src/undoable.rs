//! The replies of a session whose grants a Cancel can still undo, by request.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::RequestId;

/// A map from requests to message numbers. Most requests are granted in the order in which they were
/// made, and are appended to a deque; the others need a tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Undoable {
    /// Ascending in request and message. A removed entry is marked [`TAKEN`] until it is first or
    /// last.
    in_order: VecDeque<(RequestId, u64)>,
    others: BTreeMap<RequestId, u64>,
}

/// Marks a removed entry; no message has this number.
const TAKEN: u64 = 0;

impl Undoable {
    pub fn insert(&mut self, request: RequestId, seq: u64) {
        match self.in_order.back() {
            Some(&(last, _)) if request <= last => drop(self.others.insert(request, seq)),
            _ => self.in_order.push_back((request, seq)),
        }
    }

    fn position(&self, request: RequestId) -> Option<usize> {
        self.in_order.binary_search_by_key(&request, |&(request, _)| request).ok()
    }

    pub fn get(&self, request: RequestId) -> Option<u64> {
        match self.position(request) {
            Some(at) => Some(self.in_order[at].1).filter(|&seq| seq != TAKEN),
            None => self.others.get(&request).copied(),
        }
    }

    pub fn remove(&mut self, request: RequestId) {
        match self.position(request) {
            Some(at) => self.in_order[at].1 = TAKEN,
            None => drop(self.others.remove(&request)),
        }
        while matches!(self.in_order.front(), Some((_, TAKEN))) {
            self.in_order.pop_front();
        }
        while matches!(self.in_order.back(), Some((_, TAKEN))) {
            self.in_order.pop_back();
        }
    }

    fn iter(&self) -> impl Iterator<Item = (RequestId, u64)> {
        let in_order = self.in_order.iter().copied().filter(|&(_, seq)| seq != TAKEN);
        in_order.chain(self.others.iter().map(|(&request, &seq)| (request, seq)))
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }
}

impl Serialize for Undoable {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().collect::<BTreeMap<_, _>>())
    }
}

impl<'de> Deserialize<'de> for Undoable {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let by_request = BTreeMap::<RequestId, u64>::deserialize(from)?;
        let mut by_message: Vec<_> = by_request.into_iter().collect();
        by_message.sort_unstable_by_key(|&(_, seq)| seq);
        let mut undoable = Self::default();
        by_message.into_iter().for_each(|(request, seq)| undoable.insert(request, seq));
        Ok(undoable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_behaves_as_a_map_whatever_the_order() {
        let mut random = 7_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % below
        };
        let (mut ours, mut map) = (Undoable::default(), BTreeMap::new());
        let mut waiting = Vec::new();
        let mut asked = 0;
        for seq in 1..5000 {
            // The next request, or one that had to wait.
            let request = loop {
                if !waiting.is_empty() && draw(3) == 0 {
                    break waiting.swap_remove(draw(waiting.len() as u64) as usize);
                }
                asked += 1;
                match draw(3) {
                    0 => waiting.push(RequestId(asked)),
                    _ => break RequestId(asked),
                }
            };
            map.insert(request, seq);
            ours.insert(request, seq);
            // The oldest is forgotten, or any is undone.
            while map.len() > 40 {
                let oldest = map.iter().min_by_key(|(_, seq)| **seq).map(|(&request, _)| request);
                let request = match draw(4) {
                    0 => *map.keys().nth(draw(40) as usize).unwrap(),
                    _ => oldest.unwrap(),
                };
                map.remove(&request);
                ours.remove(request);
                assert_eq!(ours.get(request), None);
            }
            assert_eq!(ours.len(), map.len());
            assert!(map.iter().all(|(&request, &seq)| ours.get(request) == Some(seq)));
            assert!(ours.in_order.len() < 200, "removed entries are dropped");
        }
        assert!(!ours.others.is_empty());
        let bytes = postcard::to_allocvec(&ours).unwrap();
        assert_eq!(bytes, postcard::to_allocvec(&map).unwrap());
        let again: Undoable = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(bytes, postcard::to_allocvec(&again).unwrap());
        assert!(map.iter().all(|(&request, &seq)| again.get(request) == Some(seq)));
    }
}
