//! The client library of syncd.
