//! Real servers, workloads and oracles for tests.
//!
//! [`TestServer`] is a PostgreSQL in a directory of its own; [`workload`] changes it in every way
//! that matters to a backup and remembers what was acknowledged; [`oracle`] says whether a copy is
//! sound and the same. Nothing here is compiled into a product.

mod http;
pub mod installed;
pub mod kms;
pub mod oracle;
pub mod program;
pub mod s3;
pub mod server;
pub mod small_disk;
pub mod vault;
pub mod waldump;
pub mod workload;

use std::time::Duration;

use borealis_base::{Clock, SystemClock};

pub use kms::KmsServer;
pub use program::{Answer, Protect, Site};
pub use server::{ServerOptions, TestServer};
pub use small_disk::SmallDisk;
pub use vault::VaultServer;
pub use workload::{Acknowledged, Outcome, Workload, WorkloadOptions};

/// How often a waited-for condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `condition` yields a value; fails the test with `what` after `deadline`.
pub async fn wait_until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let begin = SystemClock.elapsed();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            SystemClock.elapsed().saturating_sub(begin) < deadline,
            "{what}: not within {deadline:?}"
        );
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
