//! `borealis usage`.

use std::process::ExitCode;

use borealis_operations::retention::{Prices, UsageReport, usage};

use super::{Context, cluster_name};
use crate::args::Usage;
use crate::failure::Failure;
use crate::output;

/// Runs the command.
pub async fn run(context: &Context, args: &Usage) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?;
    let prices = Prices {
        gb_month: args.price_gb_month,
        thousand_puts: args.price_thousand_puts,
    };
    let report = usage(&context.site().await?, cluster, prices).await?;
    output::answer(context.global.json, &report, UsageReport::to_text)?;
    Ok(ExitCode::SUCCESS)
}
