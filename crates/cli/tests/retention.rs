//! What is kept, why, for how long, and what it takes: recorded, shown and planned against a real server.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use borealis_testkit::program::position;
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Protect, Site, TestServer};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;

fn promises(plan: &Value, object: &str) -> Vec<String> {
    let kept = plan["lineages"][0]["kept"].as_array().unwrap();
    let of_kind = kept.iter().filter(|kept| kept["object"] == object);
    let mut names: Vec<String> = of_kind
        .flat_map(|kept| kept["promises"].as_array().unwrap())
        .map(|promise| promise["promise"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_promised_is_recorded_shown_and_planned() {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
        .await;
    let site = Site::init(PROGRAM, &server).await;
    let protect = Protect::begin(&site, &["--retention-days", "2", "--rpo-seconds", "86400"]).await;
    site.ok(&["snapshot", "create", "before"]).await;

    let status = site.json(&["status"]).await;
    let promise = &status["clusters"][0]["promise"];
    assert_eq!(promise["retention_days"], 2, "{promise}");
    assert_eq!(promise["default"], false);
    assert_eq!(promise["met"], false, "it is a few seconds old");
    assert!(promise["full_on"].is_string(), "{promise}");
    assert_eq!(promise["objectives"]["recovery_point_seconds"], 86_400);
    let text = site.ok(&["status"]).await;
    assert!(
        text.contains("any second of the last 2 days: filling, full on"),
        "{text}"
    );
    assert!(
        text.contains("recovery point 1 d 0 h") && !text.contains("MISSED"),
        "{text}"
    );

    let plan = site.json(&["retention", "plan"]).await;
    // No restore needs the log from before the first base backup.
    let kept = plan["lineages"][0]["kept"].as_array().unwrap();
    let base = kept.iter().find(|kept| kept["object"] == "base_backup");
    let start = position(base.unwrap(), "start");
    for removed in plan["lineages"][0]["removed"].as_array().unwrap() {
        assert_eq!(removed["object"], "log", "{plan:#}");
        assert!(position(removed, "to") <= start, "{plan:#}");
    }
    assert_eq!(
        promises(&plan, "base_backup"),
        ["latest", "snapshot", "window"]
    );
    assert!(promises(&plan, "log").contains(&"window".to_owned()));
    assert_eq!(
        plan["lineages"][0]["forecast"].as_array().unwrap().len(),
        31
    );

    site.ok(&["hold", "create", "case-17", "--reason", "lawsuit"])
        .await;
    let again = ["hold", "create", "case-17", "--reason", "another"];
    let _ = site
        .run(&again)
        .await
        .expect(REFUSED)
        .says("has a hold `case-17`");
    let held = site.json(&["retention", "plan", "--days", "1"]).await;
    assert_eq!(held["retention_days"], 1);
    assert!(
        promises(&held, "base_backup").contains(&"hold".to_owned()),
        "{held:#}"
    );
    assert!(site.ok(&["status"]).await.contains("holds         case-17"));
    let list = site.ok(&["hold", "list"]).await;
    assert!(
        list.contains("case-17") && list.contains("lawsuit"),
        "{list}"
    );
    site.ok(&["hold", "delete", "case-17"]).await;
    let _ = site
        .run(&["hold", "delete", "case-17"])
        .await
        .expect(NOT_FOUND);

    let usage = site.json(&["usage"]).await;
    let usage = &usage["clusters"][0];
    let number = |field: &str| usage[field].as_u64().unwrap();
    assert!(
        number("log_bytes") > 0 && number("page_bytes") > 1_000_000,
        "{usage:#}"
    );
    assert!(number("unpromised_bytes") < number("log_bytes"));
    // All that the snapshot needs the window needs as well.
    assert_eq!(usage["snapshots"][0]["unique_bytes"], 0);
    assert!(usage["snapshots"][0]["shared_bytes"].as_u64() >= Some(1_000_000));
    assert!(usage["aurora"]["VolumeBytesUsed"].as_u64() > Some(number("page_bytes")));
    assert!(usage["aurora"]["TotalBackupStorageBilled"].is_u64());
    let free = site
        .json(&[
            "usage",
            "--price-gb-month",
            "0",
            "--price-thousand-puts",
            "0",
        ])
        .await;
    assert_eq!(free["clusters"][0]["cost_per_month"], 0.0);

    site.ok(&["retention", "set", "--days", "7"]).await;
    site.ok(&[
        "objective",
        "set",
        "--rpo-seconds",
        "1",
        "--rto-seconds",
        "900",
    ])
    .await;
    protect.stop().await;
    // What was said stays said, whoever asks, and a later protect does not change it.
    let shown = site.json(&["retention", "show"]).await;
    assert_eq!(shown["retention_days"], 7);
    assert_eq!(shown["objectives"]["recovery_time_seconds"], 900);
    Protect::begin(&site, &[]).await.stop().await;
    assert_eq!(site.json(&["retention", "show"]).await["retention_days"], 7);
    // A stopped protect falls behind its objective.
    borealis_testkit::wait_until(
        "a missed objective",
        borealis_testkit::program::DEADLINE,
        async || {
            let text = site.ok(&["status"]).await;
            text.contains("recovery-point objective of 1 s is MISSED")
                .then_some(())
        },
    )
    .await;

    site.ok(&["unprotect"]).await;
    let ended = site.json(&["retention", "plan"]).await;
    assert_eq!(ended["lineages"][0]["growing"], false);
    assert!(
        promises(&ended, "base_backup").contains(&"latest".to_owned()),
        "{ended:#}"
    );
    let _ = site.run(&["verify"]).await.expect(0);
    let _ = site
        .run(&["retention", "set", "--days", "36"])
        .await
        .expect(USAGE)
        .says("1 to 35");
}
