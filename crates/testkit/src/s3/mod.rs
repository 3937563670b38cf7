//! S3 servers for tests, and a proxy before them that fails as networks and stores do.
//!
//! [`StrictServer`] checks signatures, checksums and XML by the book and keeps objects as files;
//! [`MotoServer`] is the one that AWS's users test with. Both listen on 127.0.0.1 only. Neither checks
//! and writes in one step, so [`FaultProxy`] lets writes through one at a time.

mod machine;
mod moto;
mod proxy;
mod strict;

pub use machine::MachineMetadata;
pub use moto::MotoServer;
pub use proxy::{FaultProxy, HttpFaults, Injected, Seen};
pub use strict::StrictServer;

pub(crate) use proxy::exchange;
pub(crate) use strict::acceptor;

/// The bucket that every server has.
pub const BUCKET: &str = "backups";
/// The access key of every server.
pub const ACCESS_KEY: &str = "AKIDTEST";
/// The secret key of every server; tests look that it shows nowhere.
pub const SECRET_KEY: &str = "very-secret-key-of-the-tests";

/// The URL of a repository under `prefix` at `endpoint`.
pub fn url(endpoint: &str, prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}?endpoint={endpoint}&region=us-east-1")
}

/// The environment in which a program finds the credentials, and looks for none elsewhere.
pub fn environment() -> Vec<(&'static str, &'static str)> {
    vec![
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/nonexistent"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
    ]
}
