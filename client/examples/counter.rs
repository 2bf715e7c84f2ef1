//! Increments a counter in a file a hundred times, while other processes do the same.
//!
//! Run several at once: `cargo run -p syncd-client --example counter -- /tmp/counter`

use std::{env, error::Error, fs};

use syncd_client::blocking::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: counter FILE")?;
    let lock = Client::connect()?.lock("counter")?;
    for _ in 0..100 {
        let guard = lock.acquire()?;
        if let Some(left) = guard.abandoned() {
            eprintln!("{left}");
        }
        let count: u64 = fs::read_to_string(&path).map_or(Ok(0), |text| text.trim().parse())?;
        fs::write(&path, format!("{}\n", count + 1))?;
    }
    print!("{}", fs::read_to_string(&path)?);
    Ok(())
}
