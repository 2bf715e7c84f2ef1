//! How a task gets the current session: one task connects, the others wait for it.

use std::{sync::Arc, time::Instant};

use tokio::time::{sleep, timeout_at};

use super::Session;
use crate::{
    Builder, ConnectError,
    client::{Shared, Slot},
    connect::{Attempts, Next},
    session::{self, CallError, Opening},
    start,
};

/// This process's session, or a new one if it has none or has lost it.
pub(crate) async fn session(
    client: &Shared,
    start: bool,
    deadline: Option<Instant>,
) -> Result<Arc<session::Session>, CallError> {
    let slot = client.slot();
    if let Some(session) = slot.session()? {
        return Ok(session);
    }
    let connect_by = Instant::now() + client.config.connect_timeout;
    let end = deadline.map_or(connect_by, |deadline| deadline.min(connect_by));
    match timeout_at(end.into(), through_the_gate(client, slot, start)).await {
        Ok(opened) => opened,
        Err(_) if end < connect_by => Err(CallError::overdue()),
        Err(_) => Err(client.late().into()),
    }
}

/// Opens a session. One task connects at a time; the others wait for its result.
async fn through_the_gate(
    client: &Shared,
    slot: &Slot,
    start: bool,
) -> Result<Arc<session::Session>, CallError> {
    let _gate = slot.gate.lock().await;
    if let Some(session) = slot.session()? {
        return Ok(session);
    }
    let session = Arc::new(session::Session::Tasks(open(client, start).await?));
    slot.put(session.clone());
    Ok(session)
}

async fn open(client: &Shared, start: bool) -> Result<Session, ConnectError> {
    let mut attempts = Attempts::new(&client.endpoint, start && client.may_start());
    loop {
        let error = match Session::open(Opening::of(client)).await {
            Ok(session) => return Ok(session),
            Err(error) => {
                error.leaving().map_err(|error| ConnectError::of(&client.endpoint, error))?
            }
        };
        match attempts.handle_failure(Instant::now(), error) {
            Next::Fail(error) => return Err(error),
            Next::Again(after) => sleep(after).await,
            Next::Start => {
                let Builder { daemon, connect_timeout, .. } = &client.config;
                start::ensure(&client.endpoint, daemon.as_ref(), *connect_timeout).await?;
            }
        }
    }
}
