//! What a daemon is told by signals, and what it tells the service manager that started it.

use syncd_proto::Endpoint;

use crate::handover::Reload;

/// SIGTERM or SIGINT.
#[cfg(unix)]
pub(crate) fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(windows)]
pub(crate) fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        interrupt.recv().await;
    })
}

/// Tells systemd, if it watches this process.
pub(crate) fn notify_manager(state: &str) {
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Custom(state)]) {
        tracing::warn!(%error, "the service manager could not be told {state}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = state;
}

/// Has another daemon take the place of this one at each SIGHUP, unless that means something else
/// here.
#[cfg(unix)]
pub(crate) fn reload_when_told(reload: Reload, endpoint: &Endpoint) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    if reload.is_wanted() {
        let (mut told, endpoint) = (signal(SignalKind::hangup())?, endpoint.clone());
        tokio::spawn(async move {
            while told.recv().await.is_some() {
                reload.start(&endpoint);
            }
        });
    }
    Ok(())
}

#[cfg(windows)]
pub(crate) fn reload_when_told(_: Reload, _: &Endpoint) -> std::io::Result<()> {
    Ok(())
}
