//! Watches of a namespace's records: one ring of the latest records, bounded in bytes, which all
//! watches read at their own pace. A watch that isn't read costs nothing at a publish, and ends once
//! the ring has overtaken it.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use slab::Slab;
use syncd_core::Record;

use crate::panic;

/// The most events that are copied from the ring at once.
const BATCH: usize = 64;
/// The most events that are examined before other tasks run.
const EXAMINED: u64 = 1024;

/// The watches of one namespace.
pub(crate) struct Watches {
    state: Mutex<State>,
    /// The number of watches; changed under the namespace's lock, which a publisher holds.
    count: AtomicUsize,
    /// The most bytes of events in the ring.
    limit: usize,
}

#[derive(Default)]
struct State {
    /// The latest events; empty without a watch.
    ring: VecDeque<(Arc<Record>, usize)>,
    bytes: usize,
    /// How many events were dropped from the ring.
    dropped: u64,
    watchers: Slab<Watcher>,
    /// The watchers that have seen the whole ring, and wait.
    parked: Vec<usize>,
    closed: bool,
}

struct Watcher {
    prefix: Arc<str>,
    /// The number of the next event to read, counted as `dropped` is.
    position: u64,
    /// `Some` while it is parked.
    waker: Option<Waker>,
}

impl Watcher {
    fn wants(&self, event: &Record) -> bool {
        let name = || event.object.as_ref().and_then(|label| label.name.as_deref());
        self.prefix.is_empty() || name().is_some_and(|name| name.starts_with(&*self.prefix))
    }
}

/// Why a watch has no more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchEnd {
    /// The daemon exits, or the namespace has ended.
    Closed,
    /// It was read too slowly: events that it hasn't seen were dropped.
    Overtaken,
}

impl Watches {
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), count: AtomicUsize::new(0), limit }
    }

    pub fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }

    /// Adds an event, and takes the wakers of watches that wait for one like it. Takes time in
    /// proportion to the waiting watches.
    pub fn publish(&self, event: Record, wakers: &mut Vec<Waker>) {
        if self.is_empty() {
            return;
        }
        let mut state = panic::lock(&self.state);
        let State { ring, bytes, dropped, watchers, parked, .. } = &mut *state;
        let number = *dropped + ring.len() as u64;
        parked.retain(|&key| {
            let watcher = &mut watchers[key];
            if !watcher.wants(&event) {
                return true;
            }
            watcher.position = number;
            wakers.extend(watcher.waker.take());
            false
        });
        let size = size_of_event(&event);
        ring.push_back((Arc::new(event), size));
        *bytes += size;
        while *bytes > self.limit {
            let Some((_, size)) = ring.pop_front() else { break };
            *bytes -= size;
            *dropped += 1;
        }
    }

    /// Adds a watch of new events. If `prefix` isn't empty, only events of objects whose name begins
    /// with it. Returns the watch's key.
    pub fn watch(&self, prefix: &str) -> usize {
        let mut state = panic::lock(&self.state);
        let position = state.dropped + state.ring.len() as u64;
        self.count.fetch_add(1, Relaxed);
        state.watchers.insert(Watcher { prefix: prefix.into(), position, waker: None })
    }

    pub fn unwatch(&self, key: usize) {
        let mut state = panic::lock(&self.state);
        state.watchers.remove(key);
        self.count.fetch_sub(1, Relaxed);
        state.parked.retain(|&parked| parked != key);
        if state.watchers.is_empty() {
            let State { ring, bytes, dropped, .. } = &mut *state;
            *dropped += ring.len() as u64;
            *bytes = 0;
            *ring = VecDeque::new();
        }
    }

    /// Ends all watches, after they have read the ring.
    pub fn close(&self) {
        let wakers: Vec<Waker> = {
            let mut state = panic::lock(&self.state);
            let State { ring, dropped, watchers, parked, closed, .. } = &mut *state;
            *closed = true;
            let end = *dropped + ring.len() as u64;
            let parked = parked.drain(..).filter_map(|key| {
                watchers[key].position = end;
                watchers[key].waker.take()
            });
            parked.collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Puts the next events of the watch `key` into `events`, which must be empty.
    pub fn poll(
        &self,
        key: usize,
        events: &mut VecDeque<Arc<Record>>,
        cx: &Context<'_>,
    ) -> Poll<Result<(), WatchEnd>> {
        let mut state = panic::lock(&self.state);
        let State { ring, dropped, watchers, parked, closed, .. } = &mut *state;
        let watcher = &mut watchers[key];
        // While it is parked no event concerned it, even if events were dropped.
        if watcher.waker.is_some() {
            watcher.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let Some(from) = watcher.position.checked_sub(*dropped) else {
            return Poll::Ready(Err(WatchEnd::Overtaken));
        };
        let mut passed = 0;
        for (event, _) in ring.range(from as usize..) {
            if events.len() == BATCH || passed == EXAMINED {
                break;
            }
            passed += 1;
            if watcher.wants(event) {
                events.push_back(event.clone());
            }
        }
        watcher.position += passed;
        if !events.is_empty() {
            Poll::Ready(Ok(()))
        } else if passed == EXAMINED {
            cx.waker().wake_by_ref();
            Poll::Pending
        } else if *closed {
            Poll::Ready(Err(WatchEnd::Closed))
        } else {
            watcher.waker = Some(cx.waker().clone());
            parked.push(key);
            Poll::Pending
        }
    }
}

/// The memory that an event takes, in bytes; 48 for its share of strings that others keep, too.
fn size_of_event(event: &Record) -> usize {
    let cycle = match &event.kind {
        syncd_core::RecordKind::Deadlock { cycle } => size_of_val(&*cycle.edges),
        _ => 0,
    };
    let name = event.object.as_ref().and_then(|label| label.name.as_ref()).map_or(0, |n| n.len());
    size_of::<Record>() + 48 + name + cycle
}

#[cfg(test)]
mod tests {
    use syncd_core::{Label, ObjectId, RecordKind, Time};

    use super::*;

    fn event(number: u64, name: Option<&str>) -> Record {
        let object = name.map(|name| Label { name: Some(name.into()), id: ObjectId(number) });
        Record { number, at: Time(number), kind: RecordKind::Set, object, party: None }
    }

    fn seen(watches: &Watches, key: usize) -> Result<Vec<u64>, WatchEnd> {
        let cx = Context::from_waker(Waker::noop());
        let mut events = VecDeque::new();
        match watches.poll(key, &mut events, &cx) {
            Poll::Ready(Err(end)) => Err(end),
            _ => Ok(events.iter().map(|event| event.number).collect()),
        }
    }

    #[test]
    fn a_watch_that_is_overtaken_ends_and_the_others_go_on() {
        let watches = Watches::new(3 * size_of_event(&event(0, None)));
        let (slow, quick) = (watches.watch(""), watches.watch(""));
        let mut wakers = Vec::new();
        for number in 1..=3 {
            watches.publish(event(number, None), &mut wakers);
        }
        assert_eq!(seen(&watches, quick), Ok(vec![1, 2, 3]));
        watches.publish(event(4, None), &mut wakers);
        assert_eq!(seen(&watches, quick), Ok(vec![4]));
        assert_eq!(seen(&watches, slow), Err(WatchEnd::Overtaken));
        watches.unwatch(slow);
        watches.unwatch(quick);
        assert!(watches.is_empty() && panic::lock(&watches.state).ring.is_empty());
    }

    #[test]
    fn a_watch_of_other_names_is_neither_woken_nor_overtaken() {
        let watches = Watches::new(2 * size_of_event(&event(0, Some("a"))));
        let key = watches.watch("b");
        assert_eq!(seen(&watches, key), Ok(vec![]));
        let mut wakers = Vec::new();
        for number in 1..=9 {
            watches.publish(event(number, Some("a")), &mut wakers);
        }
        assert!(wakers.is_empty());
        watches.publish(event(10, Some("b")), &mut wakers);
        assert_eq!(wakers.len(), 1);
        assert_eq!(seen(&watches, key), Ok(vec![10]));
    }

    #[test]
    fn a_closed_watch_ends_after_the_remaining_events() {
        let watches = Watches::new(1 << 20);
        let key = watches.watch("");
        watches.publish(event(1, None), &mut Vec::new());
        watches.close();
        assert_eq!(seen(&watches, key), Ok(vec![1]));
        assert_eq!(seen(&watches, key), Err(WatchEnd::Closed));
    }
}
