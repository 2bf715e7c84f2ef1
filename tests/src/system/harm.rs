//! What goes wrong: connections that break, sessions that are kicked, a daemon that is killed.

use syncd_core::Cause;

use super::{Checked, plan::MILLI, world::World};

impl World<'_> {
    /// The daemon is killed, and comes back at once, soon, or after longer than any grace.
    pub fn kill(&mut self) -> Checked {
        let grace = self.plan.grace;
        let away = match self.rng.u32(..8) {
            0..=3 => 0,
            4..=5 => self.rng.u64(1..5 * MILLI),
            6 => self.rng.u64(1..grace),
            _ => self.rng.u64(grace..grace * 2),
        };
        self.back_at = self.now + away;
        self.witness.count.restarted += 1;
        for link in self.links.values().filter(|link| link.made && !link.client_gone) {
            self.witness.broken(link.sid);
        }
        self.with_daemon(|daemon, links, around| {
            daemon.die(links, around);
            Ok(())
        })
    }

    pub fn cut(&mut self, at: usize) {
        let Some(session) = &self.processes[at].session else { return };
        let Some(link) = session.link.and_then(|number| self.links.get_mut(&number)) else {
            return;
        };
        self.witness.broken(session.sid);
        link.break_off(self.now, &mut self.rng);
        if self.rng.u32(..10) < self.plan.chaos.partition {
            self.processes[at].partitioned = self.now + self.rng.u64(1..self.plan.grace * 3 / 2);
        }
    }

    pub fn kick(&mut self, at: usize) -> Checked {
        let Some(session) = &self.processes[at].session else { return Ok(()) };
        let sid = session.sid;
        let Some(id) = self.witness.sessions[sid.0].id else { return Ok(()) };
        self.witness.kicked(sid);
        self.with_daemon(|daemon, _, around| daemon.lose(id, Cause::Kicked, around))
    }
}
