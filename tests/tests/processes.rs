//! Real processes that die, stop and fork: the bounded share of what the program `faults` does
//! in full.

use syncd_tests::faults::{fenced_file, named};

fn holds(name: &str) {
    let fault = named(name).expect("a known fault");
    if let Some(missing) = fault.needs.missing() {
        println!("{name} is not tried: {missing}");
        return;
    }
    let held = (fault.run)(fault.few).unwrap_or_else(|why| panic!("{name}: {why}"));
    assert!(held >= fault.few);
}

/// Rules R7, R28, R30, R31, R32, R36, R37, R38, R45, R48, R67.
#[test]
fn recorded_histories_are_those_of_a_broker_that_keeps_its_promises() {
    holds("F3");
}

/// Rules R32, R33, R67.
#[test]
fn nobody_notices_that_the_daemon_is_killed_under_load() {
    holds("F9");
}

/// Rule R68.
#[test]
fn a_torn_journal_is_read_as_far_as_it_was_written_and_no_further() {
    holds("F10t");
}

/// Rule R67.
#[test]
fn a_daemon_may_die_at_each_step_of_persisting() {
    holds("F10");
}

/// Rules R38, R67.
#[test]
fn what_a_client_held_that_died_with_the_daemon_is_abandoned() {
    holds("F11a");
}

/// Rule R67.
#[test]
fn a_process_with_a_dead_ones_number_inherits_nothing() {
    holds("F11b");
}

/// Rules R6, R67.
#[test]
fn nobody_reclaims_what_is_not_his() {
    ["F12a", "F12b", "F12c", "F12d", "F12e"].into_iter().for_each(holds);
}

/// Rules R7, R37, R38.
#[test]
fn a_killed_holders_lock_goes_to_one_who_is_told_once() {
    holds("F5");
}

/// Rules R7, R10.
#[test]
fn a_forked_child_neither_keeps_nor_takes_what_its_killed_parent_held() {
    holds("F6a");
}

/// Rule R7.
#[test]
fn a_holder_that_is_killed_while_stopped_is_dead() {
    holds("F6b");
}

/// Rule R7.
#[test]
fn a_paused_holder_keeps_its_lock() {
    holds("F7");
}

/// Rules R28, R31, R34.
#[test]
fn killed_waiters_leave_order_and_permits_as_they_were() {
    holds("F8");
}

/// Rules R62, R63, R66.
#[test]
fn bystanders_are_served_whatever_hostile_peers_do() {
    holds("F17");
}

/// Rule R7.
#[test]
fn a_paused_daemon_drops_no_live_session() {
    holds("F13");
}

/// Rules R46, R47, R48.
#[test]
fn every_notified_survivor_wakes_once_with_the_lock() {
    holds("F14");
}

/// Rules R57, R58, R59.
#[test]
fn circles_of_processes_are_found_and_chains_are_not() {
    holds("F15");
}

/// Rule R35.
#[test]
fn a_session_outlives_ten_thousand_cancels() {
    holds("F16");
}

/// Rules R28, R32.
#[test]
fn twenty_processes_take_turns_and_tokens_never_fall() {
    assert_eq!(fenced_file(20, 50, 0).unwrap_or_else(|why| panic!("{why}")), 1_000);
}

/// Rules R32, R37.
#[test]
fn tokens_never_fall_while_processes_die() {
    fenced_file(12, 100, 8).unwrap_or_else(|why| panic!("{why}"));
}
