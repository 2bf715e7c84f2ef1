//! Five tasks that share two permits, with the tasks of all processes that run this.
//!
//! `cargo run -p syncd-client --example workers`

use std::{error::Error, time::Duration};

use syncd_client::Client;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let desks = Client::connect().await?.semaphore("desks", 2).await?;
    let workers = (1..=5).map(|worker| {
        let desks = desks.clone();
        tokio::spawn(async move {
            let permit = desks.acquire().await?;
            println!("worker {worker} sits down (permit {})", permit.fencing_token());
            tokio::time::sleep(Duration::from_millis(200)).await;
            println!("worker {worker} leaves");
            permit.release().await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(())
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await?.map_err(|error| error.to_string())?;
    }
    Ok(())
}
