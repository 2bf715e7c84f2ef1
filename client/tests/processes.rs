//! Tests that need a process of their own: forking with an open session, and starting a daemon. Run
//! with `--socket`, the program is that daemon.

#[cfg(unix)]
#[path = "processes/edges.rs"]
mod edges;
#[cfg(unix)]
#[path = "processes/unix.rs"]
mod unix;

fn main() {
    #[cfg(unix)]
    unix::main();
}
