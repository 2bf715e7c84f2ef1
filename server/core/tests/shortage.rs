//! A shortage: there is no room for the state.

mod world;

use syncd_core::{Request, SessionId, Spec};
use world::World;

/// A session that was sent `messages` messages and has acknowledged none.
fn told(world: &mut World, messages: u64) -> SessionId {
    let session = world.open();
    let event = world.object(session, "event", Spec::Event);
    for _ in 1..messages {
        world.answer(session, Request::EventSet { handle: event }).unwrap();
    }
    session
}

// Rule R5: only messages that a connected session has received are dropped.
#[test]
fn what_connected_sessions_were_told_is_forgotten_and_what_others_missed_is_kept() {
    let mut world = World::new(512);
    let [has_all, missed, away] = [told(&mut world, 8), told(&mut world, 8), told(&mut world, 8)];
    world.space.handle_disconnect(world.now, away);
    world.hear();
    let before = world.space.totals().unacknowledged;
    world.space.handle_shortage(world.now, 0);
    world.hear();
    assert_eq!(world.space.totals().unacknowledged, before / 3);
    world.space.handle_shortage(world.now, 0);
    world.hear();
    assert_eq!(world.space.totals().unacknowledged, before / 3);
    for (session, received, goes_on) in [(has_all, 8, true), (missed, 7, false), (away, 0, true)] {
        let resumed = world.space.handle_resume(world.now, session, received);
        world.hear();
        assert_eq!(resumed.is_ok(), goes_on, "{resumed:?}");
    }
    world.finish();
    let mut again = World::new(512).space;
    for step in &world.steps {
        again.replay(step.at, step.input.clone());
        assert_eq!(again.take_step().as_ref(), Some(step));
    }
    assert_eq!(again.totals(), world.space.totals());
}
