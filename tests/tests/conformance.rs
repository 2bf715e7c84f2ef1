//! Plays `tests/conformance/*.script` on every face of syncd. The cases are the scripts'.

use std::path::Path;

use syncd_tests::{
    conformance::{play_all, suite},
    core_driver::CoreDriver,
    script::Case,
};

fn cases() -> Vec<Case> {
    suite(&Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance"))
}

#[test]
fn the_core_conforms() {
    let cases = cases();
    assert_eq!(play_all(&cases, &mut CoreDriver::default()), cases.len());
}
