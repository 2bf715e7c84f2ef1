//! The model's deadlines: found anew each time.

use syncd_core::Cause;

use super::{Model, Object, Oid, Session, Sid, Wait};

impl Model {
    /// Everything that is due, in the order of its time: time-outs before graces before
    /// lingering, each in the order of their making.
    pub fn timeout(&mut self) {
        while let Some((_, due)) = self.deadline().filter(|(at, _)| *at <= self.now) {
            match due {
                Due::Timeout(s, request) => {
                    let wait =
                        self.waits.iter().position(|w| (w.who.session, w.request) == (s, request));
                    self.expire(wait.expect("of a wait"));
                }
                Due::Grace(s) => drop(self.lost(s, Cause::Disconnected)),
                Due::Linger(o) => self.remove(o),
            }
        }
    }

    /// The next thing due.
    pub(crate) fn deadline(&self) -> Option<(u64, Due)> {
        let timeout = |w: &Wait| Some((w.deadline?, Due::Timeout(w.who.session, w.request)));
        let grace = |(s, session): (Sid, &Session)| {
            // Who waits for its process waits without a limit.
            let until = session.grace_until.filter(|&until| until != u64::MAX)?;
            Some((until, Due::Grace(s)))
        };
        let linger = |(o, object): (Oid, &Object)| Some((object.lingers_until?, Due::Linger(o)));
        let waits = self.waits.iter().filter_map(timeout);
        let sessions = self.sessions.iter().enumerate().filter_map(grace);
        let objects = self.objects.iter().enumerate().filter_map(linger);
        waits.chain(sessions).chain(objects).min()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    Timeout(Sid, u64),
    Grace(Sid),
    Linger(Oid),
}
