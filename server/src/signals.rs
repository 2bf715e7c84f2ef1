//! Signals, and notifications to the service manager.

use syncd_proto::Endpoint;

use crate::handover::Reload;

/// Waits for SIGTERM or SIGINT.
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

/// Notifies systemd, if it started this process (sd_notify(3)).
pub(crate) fn notify_manager(state: &str) {
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Custom(state)]) {
        tracing::warn!(%error, "can't notify the service manager of {state}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = state;
}

/// Starts a daemon that replaces this one at each SIGHUP, if `reload` says so.
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
