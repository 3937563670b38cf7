//! `borealis inspect`.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use borealis_operations::inspect::{read, show};
use borealis_repository::store::{self, Absent, Store};
use serde_json::Value;

use super::Context;
use crate::args::Inspect;
use crate::failure::Failure;
use crate::output;

/// What is told first, in this order; the rest follows by name.
const FIRST: [&str; 12] = [
    "name",
    "path",
    "number",
    "kind",
    "format_version",
    "object_id",
    "length",
    "head_digest",
    "data_key",
    "authenticated",
    "frames",
    "content",
];

/// Runs the command. Without a repository or without a key, what is public of a local file is shown.
pub async fn run(context: &Context, args: &Inspect) -> Result<ExitCode, Failure> {
    let named = context.repository_url().ok();
    let store: Option<Arc<dyn Store>> = match &named {
        Some(url) => Some(store::open(url, Absent::Refuse, &context.outfit()).await?),
        None => None,
    };
    let bytes = read(store.as_deref(), &args.object).await?;
    let site = match (&named, context.key()) {
        (Some(_), Ok(_)) => Some(context.site().await?),
        _ => None,
    };
    let repository = site.as_ref().map(|site| &site.repository);
    let shown = show(repository, &args.object, bytes).await?;
    output::answer(context.global.json, &shown, text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(shown: &Value) -> String {
    let mut out = String::new();
    write_fields(&mut out, shown, 0);
    out
}

/// One line a field; objects below it are indented, lists of plain fields are one line each.
fn write_fields(out: &mut String, value: &Value, depth: usize) {
    let Value::Object(fields) = value else {
        let _ = writeln!(out, "{:depth$}{}", "", plain(value));
        return;
    };
    let mut names: Vec<&String> = fields.keys().collect();
    names.sort_by_key(|name| {
        let place = FIRST.iter().position(|first| first == name);
        (place.unwrap_or(FIRST.len()), name.as_str())
    });
    for name in names {
        let Some(value) = fields.get(name) else {
            continue;
        };
        let label = name.replace('_', " ");
        match value {
            Value::Null => {}
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(out, "{:depth$}{label}", "");
                write_fields(out, value, depth + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                let _ = writeln!(out, "{:depth$}{label}", "");
                let indent = depth + 2;
                for item in items {
                    let _ = writeln!(out, "{:indent$}{}", "", plain(item));
                }
            }
            _ => {
                let _ = writeln!(out, "{:depth$}{label}: {}", "", plain(value));
            }
        }
    }
}

/// A value in one line.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(fields) => {
            let mut names: Vec<&String> = fields.keys().collect();
            names.sort_by_key(|name| {
                let place = FIRST.iter().position(|first| first == name);
                (place.unwrap_or(FIRST.len()), name.as_str())
            });
            let fields: Vec<String> = (names.into_iter())
                .filter_map(|name| {
                    let value = fields.get(name).filter(|value| !value.is_null())?;
                    Some(match value {
                        Value::Object(_) => {
                            format!("{} ({})", name.replace('_', " "), plain(value))
                        }
                        _ => format!("{} {}", name.replace('_', " "), plain(value)),
                    })
                })
                .collect();
            fields.join(", ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_head_comes_first_and_lists_have_a_line_each() {
        let shown = text(&json!({
            "content": {"epoch": 3, "body": {"opened": {"pid": 7}}},
            "kind": "ledger entry",
            "data_key": null,
            "name": "x",
            "frames": [{"number": 0, "kind": 1}, {"number": 1, "kind": 2}],
        }));
        assert_eq!(
            shown,
            "name: x\nkind: ledger entry\nframes\n  number 0, kind 1\n  number 1, kind 2\n\
             content\n  body\n    opened\n      pid: 7\n  epoch: 3\n"
        );
    }
}
