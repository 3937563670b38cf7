//! `borealis find`.

use std::ffi::OsString;
use std::process::ExitCode;

use borealis_operations::find::report::{FindReport, Found, FoundObject};
use borealis_operations::find::{Request, find};

use super::{Context, cluster_name, parse_moment};
use crate::args::{Find, Global};
use crate::failure::Failure;
use crate::output::{self, table};

/// Names shown of one event; more are counted.
const NAMES_MAX: usize = 3;

/// Runs the command.
pub async fn run(context: &Context, args: &Find) -> Result<ExitCode, Failure> {
    let cluster = cluster_name(&args.cluster)?.map(str::to_owned);
    let now = context.clock.now();
    let moment = |option, text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| parse_moment(option, text, now)).transpose()
    };
    let request = Request {
        cluster,
        since: moment("--since", &args.since)?,
        until: moment("--until", &args.until)?,
        min_rows: args.min_rows,
        all: args.all,
        restore_command: restore_command(&context.global, std::env::var_os),
    };
    let report = find(&context.site().await?, &request).await?;
    output::answer(context.global.json, &report, text)?;
    Ok(ExitCode::SUCCESS)
}

/// The words that run `restore` as this command was run: what came from the surroundings is there then,
/// too.
fn restore_command(
    global: &Global,
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Vec<String> {
    let mut words = vec!["borealis".to_owned(), "restore".to_owned()];
    let mut add = |option: &str, name, value: Option<OsString>| {
        if let Some(value) = value.filter(|value| variable(name).as_ref() != Some(value)) {
            words.extend([option.to_owned(), value.to_string_lossy().into_owned()]);
        }
    };
    let repository = global.repository.as_ref().map(OsString::from);
    add("--repository", "BOREALIS_REPOSITORY", repository);
    let key_file = global.key_file.as_ref().map(OsString::from);
    add("--key-file", "BOREALIS_KEY_FILE", key_file);
    add(
        "--key",
        "BOREALIS_KEY",
        global.key.as_ref().map(OsString::from),
    );
    let config = global.config.as_ref().map(OsString::from);
    add("--config", "BOREALIS_CONFIG", config);
    words
}

fn text(report: &FindReport) -> String {
    let range = format!("{} to {}", report.since, report.until);
    let mut lines = Vec::new();
    if report.events.is_empty() {
        lines.push(format!(
            "nothing found in cluster {} from {range}: nothing dropped or truncated, and no transaction that deleted and updated {} rows or more",
            report.cluster, report.min_rows
        ));
    } else {
        lines.push(format!("cluster {}, {range}", report.cluster));
        lines.push(String::new());
        let rows = (1..).zip(&report.events).map(row).collect();
        let header = [
            "",
            "time",
            "what",
            "name",
            "rows",
            "transaction",
            "position",
        ];
        lines.push(table(&header, rows));
        lines.push(String::new());
        lines.push("restore to just before, and then start it as that says:".to_owned());
        for (number, found) in (1..).zip(&report.events) {
            let command = found.restore.as_deref().unwrap_or(
                "can't be restored to: no base backup with unbroken log reaches it; see borealis status",
            );
            lines.push(format!("{number:>3}  {command}"));
        }
    }
    if report.rewrites_not_shown > 0 {
        lines.push(format!(
            "not shown: {} rewrites (VACUUM FULL, CLUSTER, REINDEX, ALTER TABLE and so on); --all shows them",
            report.rewrites_not_shown
        ));
    }
    match report.log_through {
        Some(through) if through < report.until => lines.push(format!(
            "log is stored through {through}; what was committed later is not seen"
        )),
        Some(_) => {}
        None => lines.push("no log is stored yet".to_owned()),
    }
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    lines.join("\n")
}

fn row((number, found): (u64, &Found)) -> Vec<String> {
    let (deleted, updated) = (found.objects.iter()).fold((0_u64, 0_u64), |sum, object| {
        (
            sum.0.saturating_add(object.deleted),
            sum.1.saturating_add(object.updated),
        )
    });
    let mut rows = Vec::new();
    for (count, what) in [(deleted, "deleted"), (updated, "updated")] {
        if count > 0 {
            rows.push(format!("{count} {what}"));
        }
    }
    vec![
        number.to_string(),
        found.time.to_string(),
        what(found),
        names(found),
        rows.join(", "),
        found.transaction.to_string(),
        found.position.to_string(),
    ]
}

/// What happened, with the kind of thing where it happened to one kind only.
fn what(found: &Found) -> String {
    let text = found.kind.text();
    let mut kinds: Vec<_> = found.objects.iter().map(|object| object.what).collect();
    kinds.dedup();
    match kinds.as_slice() {
        // The kind says it already.
        _ if text.contains("rows") || text.starts_with("database") || text.starts_with("table") => {
            text.to_owned()
        }
        [kind] => format!("{kind} {text}"),
        _ => text.to_owned(),
    }
}

fn names(found: &Found) -> String {
    let mut names: Vec<String> = found.objects.iter().take(NAMES_MAX).map(name).collect();
    let more =
        (found.objects.len().saturating_sub(NAMES_MAX) as u64).saturating_add(found.unlisted);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

fn name(object: &FoundObject) -> String {
    let mut parts = vec![match (&object.name, &object.database) {
        (Some(name), Some(database)) => format!("{database}: {name}"),
        (Some(name), None) => name.clone(),
        (None, Some(database)) => format!("{database}: file {}", object.number),
        (None, None) => object.number.clone(),
    }];
    if object.partitions > 0 {
        parts.push(format!("({} partitions)", object.partitions));
    }
    match (&object.later_name, object.name_as_of) {
        (Some(later), _) => parts.push(format!("(or already {later})")),
        (None, Some(time)) => parts.push(format!("(as it was called at {time})")),
        (None, None) => {}
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use borealis_base::Timestamp;

    #[test]
    fn what_came_as_an_option_is_repeated_and_what_came_from_a_variable_is_not() {
        let global = Global {
            repository: Some("/srv/backup".to_owned()),
            key: None,
            key_file: Some(PathBuf::from("/etc/key")),
            config: None,
            json: false,
            verbose: 0,
        };
        let of = |set: &'static str, value: &'static str| {
            restore_command(&global, move |name| {
                (name == set).then(|| OsString::from(value))
            })
            .join(" ")
        };
        assert_eq!(
            of("BOREALIS_REPOSITORY", "/srv/backup"),
            "borealis restore --key-file /etc/key"
        );
        assert_eq!(
            of("BOREALIS_KEY_FILE", "/other"),
            "borealis restore --repository /srv/backup --key-file /etc/key"
        );
    }

    #[test]
    fn a_position_or_a_snapshot_is_no_time() {
        let now = Timestamp(1_700_000_000_000_000);
        assert!(parse_moment("--since", "10 minutes ago", now).is_ok());
        for text in ["lsn:0/1", "latest", "snapshot:x", "soon"] {
            assert!(parse_moment("--since", text, now).is_err(), "{text}");
        }
    }
}
