//! The model's state without what can't matter to the future: numbers become ranks, and time
//! is left out.

use super::{Model, Sid, Undo, Why};

impl Model {
    /// For a world in which every session has one owner, all time-outs are equal, and requests
    /// other than a cancel acknowledge all that came before. `order` is what each session is
    /// called.
    pub fn canonical(&self, order: [Sid; 3]) -> String {
        use std::fmt::Write as _;

        let mut text = String::new();
        let stamps = self.stamps();
        let rank = |stamp: Option<u64>| stamp.map(|stamp| stamps.partition_point(|&s| s < stamp));
        let held = |ticket| self.holds.iter().position(|hold| Some(hold.ticket) == ticket);
        for name in 0..order.len() {
            let s = order.iter().position(|&n| n == name).expect("a permutation");
            let session = &self.sessions[s];
            let undo = |undo: &Undo| {
                let woken = undo.woken.map(|(condition, notify)| (condition, rank(notify)));
                (undo.object, held(undo.ticket).is_some(), woken)
            };
            // Only the latest request can be taken back.
            let last = session.sent.iter().rev().find(|(_, said, _)| {
                matches!(said, super::Said::Reply(id, _) if *id == session.last_request)
            });
            let last = last.and_then(|(.., u)| u.as_ref()).map(undo);
            let waits = |w: &&super::Wait| (w.who.session, w.request) == (s, session.last_request);
            let waits = self.waits.iter().find(waits).is_some();
            write!(text, "{} {last:?} {waits};", session.over).expect("to a String");
        }
        for hold in &self.holds {
            let who = order[hold.who.session];
            write!(text, "h {who} {} {};", hold.ticket.object, hold.depth).expect("to a String");
        }
        for wait in &self.waits {
            let (why, notified) = match wait.why {
                Why::Back { condition, depth, notified } => {
                    (Why::Back { condition, depth, notified: None }, rank(notified))
                }
                why => (why, None),
            };
            let (who, stamp) = (order[wait.who.session], rank(Some(wait.stamp)));
            let timed = wait.deadline.is_some();
            write!(text, "w {who} {} {why:?} {notified:?} {stamp:?} {timed};", wait.object)
                .expect("to a String");
        }
        for object in &self.objects {
            let left = |left: &super::Left| (order[left.who.session], left.cause);
            let untold: Vec<_> = object.untold.iter().map(left).collect();
            let (doubt, poison) = (object.inconsistent.as_ref(), object.poisoned.as_ref());
            let (doubt, poison) = (doubt.map(left), poison.map(left));
            write!(text, "o {untold:?} {doubt:?} {poison:?};").expect("to a String");
        }
        text
    }

    /// Every number that can be compared with another, sorted.
    fn stamps(&self) -> Vec<u64> {
        let mut stamps: Vec<u64> = self.waits.iter().map(|wait| wait.stamp).collect();
        stamps.extend(self.waits.iter().filter_map(|wait| match wait.why {
            Why::Back { notified, .. } => notified,
            _ => None,
        }));
        let sent = self.sessions.iter().flat_map(|session| &session.sent);
        stamps.extend(sent.filter_map(|(.., undo)| undo.as_ref()?.woken?.1));
        stamps.sort_unstable();
        stamps.dedup();
        stamps
    }
}
