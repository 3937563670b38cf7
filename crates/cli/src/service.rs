//! Tells systemd how a `protect` that it started is doing (`sd_notify(3)`). Without `NOTIFY_SOCKET` in the
//! environment nothing is told.

use std::sync::Arc;
use std::time::Duration;

use borealis_base::show_duration;
use borealis_operations::protect::pulse::{NoWatcher, SIGN_PAUSE_MAX, Watcher};
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The service manager.
struct ServiceManager {
    /// Whether it wants signs of life.
    watchdog: bool,
}

impl Watcher for ServiceManager {
    fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    fn status(&self, line: &str) {
        // The message is made of lines.
        tell(&[NotifyState::Status(&line.replace('\n', " "))]);
    }

    fn alive(&self) {
        if self.watchdog {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Whoever started this process, if it wants to know; told that it ends once `stop` is cancelled.
pub fn watcher(stop: &CancellationToken) -> Arc<dyn Watcher> {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Arc::new(NoWatcher);
    }
    let limit = sd_notify::watchdog_enabled();
    if let Some(limit) = limit.filter(|limit| *limit < SIGN_PAUSE_MAX) {
        tracing::warn!("{}", short(limit));
    }
    let stopped = stop.clone();
    tokio::spawn(async move {
        stopped.cancelled().await;
        tell(&[
            NotifyState::Stopping,
            NotifyState::Status("stopping: shipping what was received"),
        ]);
    });
    Arc::new(ServiceManager {
        watchdog: limit.is_some(),
    })
}

fn short(limit: Duration) -> String {
    format!(
        "WatchdogSec={} is shorter than {}, which one upload to a slow store may take: this process may be ended although it is well",
        show_duration(limit),
        show_duration(SIGN_PAUSE_MAX)
    )
}
