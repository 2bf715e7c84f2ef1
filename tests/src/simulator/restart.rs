//! What a daemon keeps, and what the next one makes of it: the calls made again on the state
//! before them must come to the same, to the byte, and so must all that follows.

use postcard::{
    Deserializer, Serializer,
    ser_flavors::{AllocVec, Flavor as _},
};
use syncd_core::{Config, Input, Space, Step, Time};

use super::{
    compare::{Checked, agree},
    play::Player,
};

/// A state, and the calls that were made since, each with the digest of its outcome.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    image: Vec<u8>,
    calls: Vec<(Time, Input, u32)>,
}

impl Kept {
    pub fn of(space: &Space) -> Self {
        Kept { image: save(space), calls: vec![] }
    }

    pub fn add(&mut self, step: &Step) {
        self.calls.push((step.at, step.input.clone(), step.digest()));
    }

    pub fn restore(&self, config: Config) -> Result<Space, String> {
        let mut from = Deserializer::from_bytes(&self.image);
        let mut space = Space::restore(config, &mut from).map_err(|error| error.to_string())?;
        for (at, input, digest) in &self.calls {
            space.replay(*at, input.clone());
            let again = space.take_step().map(|step| step.digest());
            agree("the outcome of a call made again", again, Some(*digest))?;
        }
        Ok(space)
    }
}

fn save(space: &Space) -> Vec<u8> {
    let mut to = Serializer { output: AllocVec::new() };
    space.save(&mut to).expect("memory takes it");
    to.output.finalize().expect("memory takes it")
}

impl Player<'_> {
    /// The daemon is killed, and another goes on from what was kept: all sessions wait for their
    /// processes, or come back at once.
    pub(super) fn restart(&mut self, resume: bool) -> Checked {
        let space = self.kept.restore(self.world.config.clone())?;
        space.check();
        agree("the state after the calls made again", save(&space), save(&self.space))?;
        self.space = space;
        self.kept = Kept::of(&self.space);
        for session in 0..self.sessions.len() {
            if !self.model.sessions[session].over {
                self.model.restored(session);
                self.space.handle_restored(self.now, self.sessions[session]);
                self.drain()?;
            }
        }
        let places: Vec<usize> = self.places.keys().copied().filter(|_| resume).collect();
        for place in places {
            if self.living(place).is_some() {
                self.resume(place, 0)?;
            }
        }
        Ok(())
    }
}
