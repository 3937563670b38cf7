//! The commands: each turns its arguments into one call of a library and the answer into text or JSON.

mod check;
mod drill;
mod find;
mod hold;
mod init;
mod inspect;
mod key;
mod maintain;
mod objective;
mod protect;
mod repository;
mod restore;
mod retention;
mod scrub;
mod snapshot;
mod status;
mod unprotect;
mod usage;
mod verify;
mod wal;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use borealis_base::{Clock, Entropy, ErrorKind, SystemClock, SystemEntropy, Timestamp};
use borealis_keys::KeyUrl;
use borealis_operations::Site;
use borealis_pg_server::ConnInfo;
use borealis_repository::catalog::check_cluster_name;
use borealis_repository::store::Outfit;
use jiff::tz::TimeZone;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, ClusterArg, Command, Global, SourceArgs};
use crate::config::{self, Config};
use crate::failure::{Failure, exit_code};
use crate::target::{self, To};

/// What a command works with.
pub struct Context {
    /// Options of every command.
    pub global: Global,
    /// The configuration file.
    pub config: Config,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Cancelled by the first SIGINT or SIGTERM.
    pub stop: CancellationToken,
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let config = config::load(cli.global.config.as_deref(), home.as_deref())?;
    if let Command::Drill(args) = &cli.command {
        // Threads that are there already would not give way.
        borealis_operations::host::be_nice(args.nice)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(ErrorKind::Refused, format!("start threads: {error}")))?;
    let outcome = runtime.block_on(async {
        let context = Context {
            global: cli.global,
            config,
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            stop: match cli.command {
                // A server that stops ends its restore_command by SIGTERM and wants to see that it died
                // of it (`RestoreArchivedFile` in `xlogarchive.c`).
                Command::Wal(_) => CancellationToken::new(),
                _ => stop_on_signals()?,
            },
        };
        dispatch(&context, cli.command).await
    });
    // Reads that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(context: &Context, command: Command) -> Result<ExitCode, Failure> {
    match command {
        // It ends in good order by itself.
        Command::Protect(args) => protect::run(context, args).await,
        Command::Init(args) => context.interruptible(init::run(context, &args)).await,
        Command::Key(args) => context.interruptible(key::run(context, &args)).await,
        Command::Check(args) => context.interruptible(check::run(context, &args)).await,
        Command::Unprotect(args) => context.interruptible(unprotect::run(context, &args)).await,
        Command::Status(args) => context.interruptible(status::run(context, &args)).await,
        Command::Find(args) => context.interruptible(find::run(context, &args)).await,
        Command::Restore(args) => context.interruptible(restore::run(context, args)).await,
        // It removes what it made when it is stopped.
        Command::Drill(args) => drill::run(context, args).await,
        // It records how far it has come when it is stopped.
        Command::Scrub(args) => scrub::run(context, &args).await,
        Command::Snapshot(args) => context.interruptible(snapshot::run(context, &args)).await,
        Command::Retention(args) => context.interruptible(retention::run(context, &args)).await,
        Command::Hold(args) => context.interruptible(hold::run(context, &args)).await,
        Command::Objective(args) => context.interruptible(objective::run(context, &args)).await,
        Command::Usage(args) => context.interruptible(usage::run(context, &args)).await,
        Command::Verify(args) => context.interruptible(verify::run(context, &args)).await,
        Command::Maintain(args) => context.interruptible(maintain::run(context, &args)).await,
        Command::Repository(args) => context.interruptible(repository::run(context, &args)).await,
        Command::Inspect(args) => context.interruptible(inspect::run(context, &args)).await,
        Command::Wal(args) => wal::run(context, args).await,
    }
}

/// The first signal asks for an orderly end; the second one ends the process at once, which is safe at
/// any instant and only takes longer to resume.
fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(ErrorKind::Refused, format!("listen to signals: {error}"))
        })
    };
    let (mut interrupt, mut terminate) = (
        listen(SignalKind::interrupt())?,
        listen(SignalKind::terminate())?,
    );
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if cancelled.is_cancelled() {
                std::process::exit(i32::from(exit_code(ErrorKind::Interrupted)));
            }
            tracing::info!("stopping; a second signal stops at once");
            cancelled.cancel();
        }
    });
    Ok(stop)
}

/// What a command says that was stopped before its end.
pub fn interrupted() -> Failure {
    Failure::new(ErrorKind::Interrupted, "stopped on request before the end")
        .hint("Run the command again to go on.")
}

impl Context {
    /// Gives `work` up when the process is asked to stop.
    async fn interruptible<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome,
            () = self.stop.cancelled() => Err(interrupted()),
        }
    }

    /// The repository that is named.
    pub fn repository_url(&self) -> Result<String, Failure> {
        let named = self.global.repository.as_ref();
        chosen(
            named.or(self.config.repository.as_ref()).cloned(),
            REPOSITORY,
        )
    }

    /// The root key that is named.
    pub fn key(&self) -> Result<KeyUrl, Failure> {
        let Global { key, key_file, .. } = &self.global;
        let (key, key_file) = if key.is_none() && key_file.is_none() {
            (&self.config.key, &self.config.key_file)
        } else {
            (key, key_file)
        };
        match (key, key_file) {
            (Some(_), Some(_)) => Err(Failure::usage("a key and a key file are both named").hint(
                "Name one of them; options and the variables BOREALIS_KEY and BOREALIS_KEY_FILE count alike.",
            )),
            (Some(url), None) if !url.trim().is_empty() => Ok(KeyUrl::parse(url)?),
            (None, Some(path)) if !path.as_os_str().is_empty() => Ok(path.clone().into()),
            _ => Err(missing(KEY_FILE)),
        }
    }

    /// What a key provider works with.
    pub fn key_outfit(&self) -> borealis_keys::Outfit {
        borealis_keys::Outfit {
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
        }
    }

    /// The server that is named.
    pub fn source(&self, args: &SourceArgs) -> Result<ConnInfo, Failure> {
        let named = args.source.as_ref().or(self.config.source.as_ref());
        Ok(ConnInfo::from_process(&chosen(named.cloned(), SOURCE)?)?)
    }

    /// What a store works with.
    pub fn outfit(&self) -> Outfit {
        Outfit {
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            counters: Arc::default(),
        }
    }

    /// Opens the repository.
    pub async fn site(&self) -> Result<Site, Failure> {
        let (url, key) = (self.repository_url()?, self.key()?);
        Ok(Site::open(&url, key, self.clock.clone(), self.entropy.clone()).await?)
    }
}

/// The three ways to name something: option, variable, key of the configuration file.
type Ways = (&'static str, &'static str, &'static str);
const REPOSITORY: Ways = ("--repository", "BOREALIS_REPOSITORY", "repository");
const KEY_FILE: Ways = ("--key-file", "BOREALIS_KEY_FILE", "key_file");
const SOURCE: Ways = ("--source", "BOREALIS_SOURCE", "source");

fn missing((option, variable, key): Ways) -> Failure {
    let what = key.replace('_', " ");
    let other = if key == KEY_FILE.2 {
        " A key in a key service is named with --key, in BOREALIS_KEY, or as key."
    } else {
        ""
    };
    Failure::usage(format!("no {what} is named")).hint(format!(
        "Name it with {option}, in {variable}, or as {key} in the configuration file.{other}"
    ))
}

fn chosen(value: Option<String>, ways: Ways) -> Result<String, Failure> {
    value
        .filter(|text| !text.trim().is_empty())
        .ok_or_else(|| missing(ways))
}

/// The cluster that is named, if one is.
pub fn cluster_name(arg: &ClusterArg) -> Result<Option<&str>, Failure> {
    let name = arg.cluster.as_deref();
    name.map_or(Ok(()), check_cluster_name)?;
    Ok(name)
}

/// The moment that an option names.
pub fn parse_moment(option: &str, text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    match target::parse(text, now, &TimeZone::system()) {
        Ok(To::Time(time)) => Ok(time),
        Ok(_) => Err(Failure::usage(format!("{option} `{text}` is not a time")).hint(
            "Write an RFC 3339 time (2026-11-21T08:15:00Z), a local time (2026-11-21 08:15:00) or `2 hours ago`.",
        )),
        Err(error) => Err(Failure::usage(error.to_string().replacen("--to", option, 1))),
    }
}

/// An absolute form of a path, for answers.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
