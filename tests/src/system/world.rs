//! The world of a run: clients, links, the daemon, and a scheduler that draws which of them has
//! the next turn. Everything in it happens as one of the [`Event`]s; time goes on as one, too.
//!
//! What may be late has a bound: a client learns of a broken connection, and looks at its clock,
//! within a sixteenth of the grace. A client that is later than that, its connection broken,
//! can't know that it has lost what it held.

use std::{collections::BTreeMap, time::Instant};

use fastrand::Rng;

use super::{
    Checked,
    daemon::{Daemon, Surroundings},
    link::Link,
    plan::{MILLI, Plan},
    process::Process,
    sabotage::{Bug, Sabotage},
    trace::Trace,
    witness::Witness,
};

/// The process that sees to it that the objects stay, and that nobody waits for ever.
pub(super) const USHER: usize = 0;

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(super) enum Event {
    /// An owner of a process calls, waits or collects.
    Owner(usize, usize),
    Dial(usize),
    Read(usize),
    /// A client's clock.
    Tick(usize),
    /// The connection takes what it didn't.
    Flush(usize),
    /// The daemon's stream of a link.
    Turn(usize),
    /// The daemon's clock.
    Timeout,
    /// The daemon sees that a process has exited.
    Reap(u32),
    Advance,
    Cut(usize),
    Die(usize),
    Start(usize),
    Close(usize),
    Kick(usize),
    Force(usize),
    /// The daemon is killed, and is back.
    Kill,
    Back,
}

/// See the [module](self).
pub(super) struct World<'a> {
    pub plan: &'a Plan,
    pub rng: Rng,
    /// In microseconds.
    pub now: u64,
    pub origin: Instant,
    pub daemon: Daemon,
    pub links: BTreeMap<usize, Link>,
    pub next_link: usize,
    pub processes: Vec<Process>,
    pub next_pid: u32,
    /// Processes whose death the daemon hasn't seen.
    pub dead: Vec<u32>,
    /// The keys of the objects, as they were handed round.
    pub keys: Vec<Option<String>>,
    pub witness: Witness,
    pub trace: Trace,
    pub sabotage: Sabotage,
    /// When the daemon comes back that was killed.
    pub back_at: u64,
    /// Nothing goes wrong any more, and nobody begins anything.
    pub healing: bool,
    choices: Vec<(Event, u32)>,
}

impl<'a> World<'a> {
    pub fn new(plan: &'a Plan, bug: Option<Bug>, origin: Instant, reading: bool) -> Self {
        let mut rng = Rng::with_seed(plan.seed ^ 0x5EED);
        let mut processes = vec![Process::new(1, 1, 8)];
        for (at, owners) in plan.processes.iter().enumerate() {
            let mut process = Process::new(at as u32 + 2, *owners, rng.u32(1..8));
            process.is_running = false;
            processes.push(process);
        }
        Self {
            plan,
            rng,
            now: 0,
            origin,
            daemon: Daemon::new(plan),
            links: BTreeMap::new(),
            next_link: 0,
            next_pid: processes.len() as u32 + 1,
            processes,
            dead: Vec::new(),
            keys: vec![None; plan.objects.len()],
            witness: Witness::new(plan),
            trace: Trace::new(reading),
            sabotage: Sabotage::new(bug, plan.grace),
            back_at: 0,
            healing: false,
            choices: Vec::new(),
        }
    }

    /// Lets the drawn number of events happen.
    pub fn live(&mut self) -> Checked {
        for _ in 0..self.plan.events {
            self.list(true);
            let Some(event) = self.draw() else { return Ok(()) };
            self.happen(event)?;
        }
        Ok(())
    }

    fn draw(&mut self) -> Option<Event> {
        let all: u32 = self.choices.iter().map(|(_, weight)| weight).sum();
        if all == 0 {
            return None;
        }
        let mut drawn = self.rng.u32(..all);
        let chosen = self.choices.iter().find(|(_, weight)| {
            let it = drawn < *weight;
            drawn = drawn.wrapping_sub(*weight);
            it
        });
        chosen.map(|(event, _)| *event)
    }

    /// One more event of those that only carry on what was begun; false if there is none.
    pub fn carry_on(&mut self) -> Result<bool, String> {
        self.list(false);
        match self.draw() {
            Some(event) => self.happen(event).map(|()| true),
            None => Ok(false),
        }
    }

    /// Lists what can happen now, and how likely it is.
    fn list(&mut self, chaos: bool) {
        let mut choices = std::mem::take(&mut self.choices);
        choices.clear();
        for at in 0..self.processes.len() {
            self.list_process(at, chaos, &mut choices);
        }
        for (&number, link) in &self.links {
            if self.daemon.has_turn(number, link) {
                choices.push((Event::Turn(number), 50));
            }
        }
        let is_away = self.daemon.is_away;
        if !is_away {
            if self.daemon.core.poll_timeout().is_some_and(|due| due <= self.now) {
                choices.push((Event::Timeout, 40));
            }
            choices.extend(self.dead.iter().map(|pid| (Event::Reap(*pid), 15)));
        } else if self.now >= self.back_at || !chaos {
            choices.push((Event::Back, 60));
        }
        if chaos && !is_away {
            choices.push((Event::Kill, self.plan.chaos.restart));
        }
        if chaos {
            if self.latest() > self.now {
                choices.push((Event::Advance, 40));
            }
            for object in 0..self.plan.objects.len() {
                let force = if is_away { 0 } else { self.plan.chaos.force };
                choices.push((Event::Force(object), force));
            }
        }
        self.choices = choices;
    }

    fn list_process(&self, at: usize, chaos: bool, choices: &mut Vec<(Event, u32)>) {
        let process = &self.processes[at];
        if !process.is_running {
            if chaos {
                choices.push((Event::Start(at), 20));
            }
            return;
        }
        for owner in 0..process.owners.len() {
            if at != USHER || !chaos {
                choices.push((Event::Owner(at, owner), self.urge(at, owner)));
            }
        }
        let Some(session) = &process.session else { return };
        if self.client_due(at).is_some_and(|due| due <= self.now) {
            choices.push((Event::Tick(at), 30));
        }
        if let Some(number) = session.link {
            let link = &self.links[&number];
            if !link.made {
                choices.push((Event::Dial(at), 30));
            } else if !link.down.is_empty() || link.is_at_end_down() {
                choices.push((Event::Read(at), 8 * process.pace));
            }
            if link.takes_up() && session.protocol.has_transmit() {
                choices.push((Event::Flush(at), 40));
            }
            if chaos && at != USHER && link.made && link.cut.is_none() {
                choices.push((Event::Cut(at), self.plan.chaos.cut));
            }
        }
        if chaos && at != USHER {
            let chaos = &self.plan.chaos;
            choices.push((Event::Die(at), chaos.die));
            if session.protocol.is_up() && !session.is_closing {
                choices.push((Event::Close(at), chaos.close));
                let kick = if self.daemon.is_away { 0 } else { chaos.kick };
                choices.push((Event::Kick(at), kick));
            }
        }
    }

    pub fn happen(&mut self, event: Event) -> Checked {
        self.witness.now = self.now;
        self.witness.count.events += 1;
        self.trace.note(self.now, event, || format!("{event:?}"));
        match event {
            Event::Owner(at, owner) => self.act(at, owner)?,
            Event::Dial(at) => self.dial(at)?,
            Event::Read(at) => self.read(at)?,
            Event::Tick(at) => self.tick(at)?,
            Event::Flush(at) => self.pump(at)?,
            Event::Turn(number) => self.turn(number)?,
            Event::Timeout => {
                self.with_daemon(|daemon, _, around| daemon.handle_timeout(around))?
            }
            Event::Reap(pid) => {
                self.dead.retain(|dead| *dead != pid);
                self.with_daemon(|daemon, links, around| daemon.reap(pid, links, around))?;
                self.witness.reaped(pid)?;
            }
            Event::Advance => self.advance(),
            Event::Cut(at) => self.cut(at),
            Event::Die(at) => self.die(at),
            Event::Start(at) => self.restart(at)?,
            Event::Close(at) => self.close(at)?,
            Event::Kick(at) => self.kick(at)?,
            Event::Kill => self.kill()?,
            Event::Back => self.with_daemon(|daemon, _, around| daemon.come_back(around))?,
            Event::Force(object) => {
                let name = self.keys[object].clone().unwrap_or_default();
                self.with_daemon(|daemon, _, around| daemon.force(&name, around))?;
            }
        }
        self.links.retain(|_, link| !(link.client_gone && link.daemon_gone));
        Ok(())
    }

    fn turn(&mut self, number: usize) -> Checked {
        let Some(mut link) = self.links.remove(&number) else { return Ok(()) };
        // A crowd goes faster than one can draw its turns.
        let steps = self.rng.usize(1..=4).max(link.up.len() / 2);
        let turned =
            self.with_daemon(|daemon, _, around| daemon.turn(number, &mut link, steps, around));
        if link.daemon_gone {
            self.ended_by_daemon(&mut link);
        }
        self.links.insert(number, link);
        turned
    }

    /// The daemon has closed a link, as it does when another one took over.
    fn ended_by_daemon(&mut self, link: &mut Link) {
        link.closed.get_or_insert(self.now);
        let session = self.processes[link.process].session.as_ref();
        if session.is_some_and(|session| session.sid == link.sid) && !link.client_gone {
            self.witness.broken(link.sid);
        }
    }

    /// Something happens at the daemon.
    pub fn with_daemon(
        &mut self,
        act: impl FnOnce(&mut Daemon, &mut BTreeMap<usize, Link>, &mut Surroundings<'_>) -> Checked,
    ) -> Checked {
        let mut cuts = Vec::new();
        let mut around = Surroundings {
            now: self.now,
            rng: &mut self.rng,
            witness: &mut self.witness,
            trace: &mut self.trace,
            sabotage: &mut self.sabotage,
            cuts: &mut cuts,
        };
        act(&mut self.daemon, &mut self.links, &mut around)?;
        for number in cuts {
            if let Some(link) = self.links.get_mut(&number) {
                self.witness.broken(link.sid);
                link.break_off(self.now, &mut self.rng);
            }
        }
        Ok(())
    }

    /// A sixteenth of the grace.
    fn lateness(&self) -> u64 {
        self.plan.grace / 16
    }

    /// Until when time may go on before something else has to happen.
    fn latest(&self) -> u64 {
        let due = (0..self.processes.len()).filter_map(|at| self.client_due(at));
        let broken = self.links.values().filter(|link| link.made && !link.client_gone);
        let broken = broken.filter_map(|link| link.cut.or(link.closed));
        due.chain(broken).min().map_or(u64::MAX, |first| first + self.lateness())
    }

    /// The next time at which something is due.
    pub fn next_due(&self) -> Option<u64> {
        let clients = (0..self.processes.len()).filter_map(|at| self.client_due(at));
        let daemon = self.daemon.core.poll_timeout().filter(|_| !self.daemon.is_away);
        clients.chain(daemon).min()
    }

    fn advance(&mut self) {
        let grace = self.plan.grace;
        let to = match self.rng.u32(..20) {
            0..=10 => self.now + self.rng.u64(1..5 * MILLI),
            11..=15 => self.next_due().unwrap_or(self.now).max(self.now + 1),
            16..=18 => self.now + self.rng.u64(1..grace / 4),
            _ => self.now + self.rng.u64(1..grace * 2),
        };
        let usher = self.processes[USHER].session.as_ref();
        let is_served = usher.is_some_and(|session| session.protocol.is_up());
        // The usher is let in again before it gives up: there would be nobody to end the run.
        let looks = usher.is_some_and(|session| session.link.is_none());
        let is_well = is_served || (self.daemon.is_away && looks);
        let soon = if is_well { u64::MAX } else { self.now + MILLI };
        self.now = to.min(self.latest()).min(soon);
    }

    /// A process says Goodbye, with all that it still holds.
    pub fn close(&mut self, at: usize) -> Checked {
        use super::witness::{What, sessions::Standing};
        let Some(session) = &mut self.processes[at].session else { return Ok(()) };
        if session.is_over || std::mem::replace(&mut session.is_closing, true) {
            return Ok(());
        }
        let id = session.protocol.handle_close();
        let sid = session.sid;
        self.trace.note(self.now, ("close", at, id), || format!("process {at} closes: {id}"));
        self.witness.called((sid, id), 0, 0, What::Close, None, false);
        self.witness.sessions[sid.0].standing = Standing::Closed;
        for owner in &mut self.processes[at].owners {
            owner.holds.clear();
            owner.unowned.clear();
            owner.acting.clear();
            owner.items = None;
        }
        self.pump(at)
    }
}
