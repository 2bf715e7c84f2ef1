//! The wire of syncd.
