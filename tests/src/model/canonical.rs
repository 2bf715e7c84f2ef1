//! The model's state without what can't matter to the future: numbers become ranks, and time
//! is left out.

use std::hash::{Hash, Hasher};

use super::{Left, Model, Said, Sid, Undo, Wait, Why};

impl Model {
    /// For a world in which every session has one owner, all time-outs are equal, and requests
    /// other than a cancel acknowledge all that came before. `order` is what each session is
    /// called.
    pub fn canonical(&self, order: [Sid; 3], into: &mut impl Hasher) {
        let stamps = self.stamps();
        let rank = |stamp: Option<u64>| stamp.map(|stamp| stamps.partition_point(|&s| s < stamp));
        let held = |ticket| self.holds.iter().any(|hold| Some(hold.ticket) == ticket);
        for name in 0..order.len() {
            let s = order.iter().position(|&n| n == name).expect("a permutation");
            let session = &self.sessions[s];
            let undo = |undo: &Undo| {
                let woken = undo.woken.map(|(condition, notify)| (condition, rank(notify)));
                (undo.object, held(undo.ticket), woken)
            };
            // Only the latest request can be taken back.
            let is_latest =
                |said: &Said| matches!(said, Said::Reply(id, _) if *id == session.last_request);
            let latest = session.sent.iter().rev().find(|sent| is_latest(&sent.said));
            let latest = latest.and_then(|sent| sent.undo.as_ref()).map(undo);
            let waits = |w: &Wait| (w.who.session, w.request) == (s, session.last_request);
            (session.over, latest, self.waits.iter().any(waits)).hash(into);
        }
        for hold in &self.holds {
            (order[hold.who.session], hold.ticket.object, hold.depth).hash(into);
        }
        for wait in &self.waits {
            let (depth, notified) = match wait.why {
                Why::Back { depth, notified, .. } => (Some(depth), Some(rank(notified))),
                Why::Notify { depth } => (Some(depth), None),
                _ => (None, None),
            };
            let (who, stamp) = (order[wait.who.session], rank(Some(wait.stamp)));
            (who, wait.object, depth, notified, stamp, wait.deadline.is_some()).hash(into);
        }
        for object in &self.objects {
            let left = |left: &Left| (order[left.who.session], left.cause);
            let untold: Vec<_> = object.untold.iter().map(left).collect();
            let (doubt, poison) = (object.inconsistent.as_ref(), object.poisoned.as_ref());
            (untold, doubt.map(left), poison.map(left)).hash(into);
        }
    }

    /// Every number that can be compared with another, sorted.
    fn stamps(&self) -> Vec<u64> {
        let mut stamps: Vec<u64> = self.waits.iter().map(|wait| wait.stamp).collect();
        stamps.extend(self.waits.iter().filter_map(|wait| match wait.why {
            Why::Back { notified, .. } => notified,
            _ => None,
        }));
        let sent = self.sessions.iter().flat_map(|session| &session.sent);
        stamps.extend(sent.filter_map(|sent| sent.undo.as_ref()?.woken?.1));
        stamps.sort_unstable();
        stamps.dedup();
        stamps
    }
}
