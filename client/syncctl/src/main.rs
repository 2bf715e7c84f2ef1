//! The command line of syncd.

fn main() {}
