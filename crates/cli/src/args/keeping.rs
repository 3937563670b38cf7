//! What is kept for how long, and what it takes: the options of `borealis retention`, `hold`, `objective` and `usage`.

// The doc comments here are shown as they stand by `--help`.
#![allow(clippy::doc_markdown)]

use borealis_operations::retention::Prices;
use borealis_repository::catalog::Objectives;
use borealis_repository::retention::{DAYS_MAX, Days};
use clap::{Args, Subcommand};

use super::ClusterArg;

/// `borealis retention`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis retention set --cluster sales --days 7\n  \
    borealis retention plan --cluster sales --days 3")]
pub struct Retention {
    /// What to do.
    #[command(subcommand)]
    pub action: RetentionAction,
}

/// `borealis retention …`.
#[derive(Debug, Subcommand)]
pub enum RetentionAction {
    /// Promise any second of the last days of a cluster
    #[command(
        after_help = "Example:\n  borealis retention set --cluster sales --days 7\n\n\
        Fewer days take effect by the next plan; more bring nothing back. See what it does first: \
        borealis retention plan --days 7"
    )]
    Set(RetentionSet),
    /// Show what is promised
    #[command(after_help = "Example:\n  borealis retention show --cluster sales")]
    Show(ClusterArg),
    /// Show what is kept by which promise, what none holds, and what goes in the next 30 days; changes nothing
    #[command(after_help = "Example:\n  borealis retention plan --cluster sales --days 3")]
    Plan(RetentionPlan),
}

/// `borealis retention set`.
#[derive(Debug, Args)]
pub struct RetentionSet {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// How many days, 1 to 35
    #[arg(long, value_name = "N", value_parser = parse_days)]
    pub days: Days,
}

/// `borealis retention plan`.
#[derive(Debug, Args)]
pub struct RetentionPlan {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// Plan as if so many days were promised, 1 to 35
    #[arg(long, value_name = "N", value_parser = parse_days)]
    pub days: Option<Days>,
}

/// `borealis hold`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    borealis hold create case-17 --cluster sales --reason 'lawsuit 17/2026'\n  \
    borealis hold list --cluster sales")]
pub struct Hold {
    /// What to do.
    #[command(subcommand)]
    pub action: HoldAction,
}

/// `borealis hold …`.
#[derive(Debug, Subcommand)]
pub enum HoldAction {
    /// Keep all that can be restored now, or the moments from one time to another
    #[command(after_help = "Examples:\n  \
        borealis hold create case-17 --cluster sales --reason 'lawsuit 17/2026'\n  \
        borealis hold create audit --reason 'audit of March' --from 2026-03-01T00:00:00Z --to 2026-04-01T00:00:00Z")]
    Create(HoldCreate),
    /// List the holds
    #[command(after_help = "Example:\n  borealis hold list --cluster sales")]
    List(ClusterArg),
    /// Let go what the hold keeps
    #[command(after_help = "Example:\n  borealis hold delete case-17 --cluster sales")]
    Delete(HoldName),
}

/// `borealis hold create`.
#[derive(Debug, Args)]
pub struct HoldCreate {
    /// Which.
    #[command(flatten)]
    pub hold: HoldName,
    /// Why, for whoever wants to delete it one day
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Keep the moments from this one on (RFC 3339, a local time, or '2 hours ago') [default: everything]
    #[arg(long, value_name = "TIME", requires = "to")]
    pub from: Option<String>,
    /// Keep the moments up to this one
    #[arg(long, value_name = "TIME", requires = "from")]
    pub to: Option<String>,
    /// Let the hold end by itself after this time [default: it stands until it is deleted]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// A hold of a cluster.
#[derive(Debug, Args)]
pub struct HoldName {
    /// The hold's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
}

/// `borealis objective`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis objective set --cluster sales --rpo-seconds 60 --rto-seconds 900"
)]
pub struct Objective {
    /// What to do.
    #[command(subcommand)]
    pub action: ObjectiveAction,
}

/// `borealis objective …`.
#[derive(Debug, Subcommand)]
pub enum ObjectiveAction {
    /// Say what recovery is to achieve; status complains when it is missed
    #[command(
        after_help = "Example:\n  borealis objective set --cluster sales --rpo-seconds 60 --rto-seconds 900"
    )]
    Set(ObjectiveSet),
}

/// `borealis objective set`.
#[derive(Debug, Args)]
pub struct ObjectiveSet {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// The objectives.
    #[command(flatten)]
    pub objectives: ObjectiveArgs,
}

/// `borealis usage`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  borealis usage --cluster sales --price-gb-month 0.023\n\n\
    The prices are an example and not a quote: name your own."
)]
pub struct Usage {
    /// The cluster.
    #[command(flatten)]
    pub cluster: ClusterArg,
    /// What a GB (2^30 bytes) costs a month
    #[arg(long, value_name = "PRICE", default_value_t = Prices::default().gb_month, value_parser = parse_price)]
    pub price_gb_month: f64,
    /// What writing a thousand objects costs
    #[arg(long, value_name = "PRICE", default_value_t = Prices::default().thousand_puts, value_parser = parse_price)]
    pub price_thousand_puts: f64,
}

/// What recovery is to achieve.
#[derive(Debug, Clone, Copy, Args)]
pub struct ObjectiveArgs {
    /// Have status complain when more than N seconds of commits could be lost
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rpo_seconds: Option<u64>,
    /// Record that a recovery is to take no more than N seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rto_seconds: Option<u64>,
}

impl From<ObjectiveArgs> for Objectives {
    fn from(args: ObjectiveArgs) -> Self {
        Self {
            recovery_point_seconds: args.rpo_seconds,
            recovery_time_seconds: args.rto_seconds,
        }
    }
}

pub(super) fn parse_days(text: &str) -> Result<Days, String> {
    let days = text.parse().ok().and_then(|days| Days::new(days).ok());
    days.ok_or_else(|| format!("`{text}` is no number of days: name 1 to {DAYS_MAX}"))
}

fn parse_price(text: &str) -> Result<f64, String> {
    let price = text.parse::<f64>().ok();
    let price = price.filter(|price| price.is_finite() && *price >= 0.0);
    price.ok_or_else(|| format!("`{text}` is not a price, such as 0.023"))
}
