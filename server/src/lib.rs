//! The daemon of syncd.
