//! Plays `tests/conformance/*.script` on every face of syncd. The cases are the scripts'.

use std::path::Path;

use syncd_tests::{
    conformance::{play_all, suite},
    core_driver::CoreDriver,
    daemon::program,
    process_driver::{Face, ProcessDriver},
    script::{Case, Needs},
};

fn cases() -> Vec<Case> {
    suite(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance"))
}

#[test]
fn the_core_conforms() {
    let cases = cases();
    assert_eq!(play_all(&cases, CoreDriver::default), cases.len());
}

fn conforms(name: &str, ability: Needs) {
    let (program, arguments) = (program("actor"), vec![name.into()]);
    let face = Face { ability, program, arguments };
    let played = play_all(&cases(), || ProcessDriver::new(face.clone()));
    assert!(played > 70, "only {played} cases were played");
}

#[test]
fn a_plain_grpc_client_conforms() {
    conforms("wire", Needs::Wire);
}

#[test]
fn the_async_client_conforms() {
    conforms("async", Needs::Api);
}

#[test]
fn the_blocking_client_conforms() {
    conforms("blocking", Needs::Api);
}
