//! A shortage: there is no room for the state.

mod world;

use world::World;

// Rule R5: only messages that a connected session has received are dropped.
#[test]
fn what_connected_sessions_were_told_is_forgotten_and_what_others_missed_is_kept() {
    let mut world = World::new(512);
    let [has_all, missed, away] = [world.told(8), world.told(8), world.told(8)];
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
