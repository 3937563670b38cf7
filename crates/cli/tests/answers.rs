//! What commands answer with: with `--json` one object on standard output from every command that
//! answers, and progress as JSON lines on standard error where that is no terminal.

use borealis_testkit::program::{CLUSTER, moment, position, text};
use borealis_testkit::{ServerOptions, Site, TestServer};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// The progress among the lines of standard error, which holds the log too.
fn progress(stderr: &str) -> Vec<Value> {
    stderr
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[tokio::test]
async fn every_command_answers_in_json_and_shows_progress_as_json_lines() {
    let server = TestServer::start(ServerOptions::default()).await;
    let site = Site::bare(PROGRAM, &server);

    let made = site.json(&["init"]).await;
    assert_eq!(made["key_files"][0]["made"], true);
    assert_eq!(text(&made, "id").len(), 32);
    let checked = site.json(&["check"]).await;
    assert_eq!(checked["problems"], 0);

    let line = ["protect", "--once", "--cluster", CLUSTER, "--json"];
    let answer = site.run(&line).await.expect(0);
    assert_eq!(answer.json()["cluster"], CLUSTER);
    let shown = progress(&answer.stderr);
    let last = shown.iter().rfind(|line| line["unit"] == "bytes");
    let last = last.expect("pages are counted in bytes");
    for field in [
        "phase",
        "unit",
        "done",
        "total",
        "per_second",
        "seconds_left",
    ] {
        assert!(last.get(field).is_some(), "{field} is not in {last}");
    }
    assert!(last["done"].as_u64().is_some_and(|done| done > 0), "{last}");

    let status = site.status().await.expect("there is a cluster");
    assert_eq!(text(&status, "name"), CLUSTER);
    let latest = moment(&status, "latest_restorable_time").expect("it can be restored");
    let snapshot = ["snapshot", "create", "kept", "--at", "latest"];
    let created = site.json(&snapshot).await;
    assert_eq!(text(&created, "name"), "kept");
    let listed = site.json(&["snapshot", "list"]).await;
    assert_eq!(listed["snapshots"][0]["restorable"], true);
    let plan = site.plan("snapshot:kept").await;
    assert_eq!(position(&plan, "position"), position(&created, "position"));
    // A time that is shown is accepted back unchanged.
    let plan = site.plan(&latest.to_string()).await;
    assert_eq!(text(&plan, "target"), latest.to_string());
    let target = site.target("restored");
    let line = [
        "restore",
        "--to",
        "latest",
        "--target-dir",
        &target,
        "--json",
    ];
    let answer = site.run(&line).await.expect(0);
    assert!(answer.json()["start_command"].is_string(), "{answer}");
    assert!(!progress(&answer.stderr).is_empty(), "{answer}");
    let deleted = site.json(&["snapshot", "delete", "kept"]).await;
    assert_eq!(text(&deleted, "deleted"), "kept");
    let answer = site.run(&["verify", "--deep", "--json"]).await.expect(0);
    assert_eq!(answer.json()["sound"], true);
    assert!(!progress(&answer.stderr).is_empty(), "{answer}");
    let inspected = site.json(&["inspect", "repository"]).await;
    assert_eq!(text(&inspected, "kind"), "descriptor");
    let done = site.json(&["unprotect"]).await;
    assert_eq!(done["done"].as_array().map(Vec::len), Some(2), "{done}");
}
