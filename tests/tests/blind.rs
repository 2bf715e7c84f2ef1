//! F4 in a bounded share: what sees nothing proves nothing. In a program of its own, since a bug is
//! one for all of a process.

/// Each bug is seen by one of the tests that may see it, and none of those sees one where none is.
#[test]
fn each_bug_that_is_made_on_purpose_is_seen() {
    syncd_tests::blind::look(false).unwrap_or_else(|why| panic!("{why}"));
}
