//! What crosses the crates of syncd.
