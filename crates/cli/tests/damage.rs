//! Damage of every kind to an object of every kind in the repository: `verify --deep` names the object,
//! and a restore that needs it is refused with an error that names it and leaves nothing that a server
//! would start on. A restore that does not need it gives back exactly what it gave before.

#![allow(clippy::unwrap_used)] // a test: a failure is a panic

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use borealis_base::{SystemClock, SystemEntropy};
use borealis_repository::layout;
use borealis_testkit::program::{CLUSTER, CONTROL_FILE, files_below};
use borealis_testkit::server::ServerOptions;
use borealis_testkit::{Answer, Protect, Site, TestServer};

const PROGRAM: &str = env!("CARGO_BIN_EXE_borealis");

/// Files of a restore that say where it was made.
const OF_THE_PLACE: [&str; 3] = [
    "borealis_restore.json",
    "postgresql.auto.conf",
    "postgresql.conf",
];

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip,
    Truncate,
    Delete,
    Swap,
}

const DAMAGES: [Damage; 4] = [Damage::Flip, Damage::Truncate, Damage::Delete, Damage::Swap];

/// What an object is to the restore that is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// It cannot do without.
    Always,
    /// What it says does not matter to it, or is said elsewhere too.
    Perhaps,
}

struct Object {
    kind: &'static str,
    name: String,
    /// Another valid object, of the same kind where there are two.
    other: String,
    need: Need,
}

struct Repository {
    site: Site,
    objects: Vec<Object>,
    /// The files of an undamaged restore.
    expected: BTreeMap<PathBuf, Vec<u8>>,
}

/// The content of every file of a restore.
fn content(target: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(target)
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(target).unwrap().to_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .filter(|(name, _)| !OF_THE_PLACE.iter().any(|file| name == Path::new(file)))
        .collect()
}

/// Two base backups and log after them, written by several runs, so that there are two objects of most
/// kinds.
async fn written() -> Site {
    let server = TestServer::start(ServerOptions::default()).await;
    server
        .sql("CREATE TABLE t AS SELECT g AS id, md5(g::text) AS v FROM generate_series(1, 2000) g")
        .await;
    let site = Site::init(PROGRAM, &server).await;
    site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
    server
        .sql("UPDATE t SET v = 'changed' WHERE id % 2 = 0")
        .await;
    site.ok(&["protect", "--cluster", CLUSTER, "--once"]).await;
    let protect = Protect::begin(&site, &[]).await;
    for step in 1..=3 {
        server
            .sql(&format!("DELETE FROM t WHERE id % 11 = {step}"))
            .await;
        site.wait_restorable(server.insert_position().await).await;
    }
    // The last snapshot's object can go without a trace; the one before it cannot.
    site.ok(&["snapshot", "create", "one"]).await;
    site.ok(&["snapshot", "create", "two"]).await;
    server.sql("DELETE FROM t WHERE id < 1000").await;
    site.wait_restorable(server.insert_position().await).await;
    protect.stop().await;
    // The last entry of a row can go without a trace; the one before it cannot.
    let scratch = site.target("scratch");
    for _ in 0..2 {
        site.ok(&["drill", "--scratch", &scratch, "--to", "snapshot:one"])
            .await;
        site.ok(&["scrub"]).await;
    }
    site
}

/// One object of each kind, by what the repository says of itself while it is whole.
async fn objects(site: &Site) -> Vec<Object> {
    let opened = borealis_operations::Site::open(
        &site.repository().display().to_string(),
        site.key_file(),
        Arc::new(SystemClock),
        Arc::new(SystemEntropy),
    )
    .await
    .unwrap();
    let cluster = opened.cluster(None).await.unwrap();
    let lineage = opened.lineage(&cluster).await.unwrap();
    let state = lineage.load_state().await.unwrap();
    let [first, second] = &state.base_backups[..] else {
        panic!("two base backups were taken");
    };
    let plan = site.plan("snapshot:one").await;
    let stop = borealis_testkit::program::position(&plan, "position");
    let mut pieces = state
        .pieces
        .iter()
        .filter(|piece| piece.start < stop && piece.end > second.end);
    let entry = |number| layout::entry(lineage.id(), number);
    let (one, two) = (pieces.next().unwrap(), pieces.next().unwrap());
    let manifest = |base: &borealis_repository::plan::BaseBackupSummary| {
        layout::manifest(lineage.id(), base.manifest.object)
    };
    let names = site.objects();
    let mut packs: Vec<_> = names.iter().filter(|n| n.contains("/packs/")).collect();
    // The largest one holds most pages of both base backups.
    packs.sort_by_key(|name| {
        std::fs::metadata(site.repository().join(name))
            .unwrap()
            .len()
    });
    let (pack, other_pack) = (packs.pop().unwrap().clone(), packs[0].clone());
    let id = lineage.id();
    let object = |kind, name: String, other: String, need| Object {
        kind,
        name,
        other,
        need,
    };
    let (always, perhaps) = (Need::Always, Need::Perhaps);
    let keys = [layout::catalog_keys(1), layout::lineage_keys(id, 1)];
    let [catalog_keys, lineage_keys] = &keys;
    let descriptor = layout::DESCRIPTOR.to_owned();
    vec![
        object("descriptor", descriptor.clone(), layout::catalog(1), always),
        object("catalog", layout::catalog(1), descriptor, always),
        object(
            "catalog keys",
            catalog_keys.clone(),
            lineage_keys.clone(),
            always,
        ),
        object(
            "lineage keys",
            lineage_keys.clone(),
            catalog_keys.clone(),
            always,
        ),
        object("log piece", entry(two.entry), entry(one.entry), always),
        object(
            "base backup entry",
            entry(second.entry),
            entry(first.entry),
            perhaps,
        ),
        object("manifest", manifest(second), manifest(first), always),
        object("pack", pack, other_pack, always),
        object("epoch", layout::epoch(id, 1), layout::epoch(id, 2), perhaps),
        object("snapshot", layout::pin(id, 1), layout::epoch(id, 1), always),
        object("drill", layout::drill(id, 1), layout::drill(id, 2), perhaps),
        object("scrub", layout::scrub(id, 1), layout::scrub(id, 2), perhaps),
    ]
}

impl Repository {
    async fn make() -> Self {
        let site = written().await;
        let target = site.target("undamaged");
        let arguments = ["restore", "--to", "snapshot:one", "--target-dir", &target];
        site.ok(&arguments).await;
        let expected = content(Path::new(&target));
        assert!(expected.contains_key(Path::new(CONTROL_FILE)));
        let _ = site.run(&["verify", "--deep"]).await.expect(0);
        Self {
            objects: objects(&site).await,
            site,
            expected,
        }
    }

    fn apply(&self, object: &Object, damage: Damage) {
        let path = self.site.repository().join(&object.name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        match damage {
            Damage::Flip => bytes[middle] ^= 1,
            Damage::Truncate => bytes.truncate(middle),
            Damage::Swap => {
                bytes = std::fs::read(self.site.repository().join(&object.other)).unwrap();
            }
            Damage::Delete => return std::fs::remove_file(&path).unwrap(),
        }
        std::fs::write(&path, bytes).unwrap();
    }

    async fn check(&self, object: &Object, damage: Damage) -> Vec<String> {
        let path = self.site.repository().join(&object.name);
        let whole = std::fs::read(&path).unwrap();
        self.apply(object, damage);
        let what = format!("{} {}, {damage:?}", object.kind, object.name);
        let mut wrong = Vec::new();
        let verified = self.site.run(&["verify", "--deep"]).await;
        // Without its descriptor a folder is no repository, which is said of the folder.
        let no_repository = object.kind == "descriptor" && matches!(damage, Damage::Delete);
        if !no_repository && !refused_as_damaged(&verified, &object.name) {
            wrong.push(format!(
                "{what}: verify --deep does not name it: {verified}"
            ));
        }
        wrong.extend(self.check_restore(object, &what, no_repository).await);
        std::fs::write(&path, whole).unwrap();
        wrong
    }

    async fn check_restore(&self, object: &Object, what: &str, no_repository: bool) -> Vec<String> {
        let target = self.site.target("damaged");
        let arguments = ["restore", "--to", "snapshot:one", "--target-dir", &target];
        let restored = self.site.run(&arguments).await;
        let mut wrong = Vec::new();
        if restored.code == Some(0) {
            if object.need == Need::Always {
                wrong.push(format!("{what}: the restore did not notice"));
            }
            if content(Path::new(&target)) != self.expected {
                wrong.push(format!("{what}: A WRONG RESTORE"));
            }
        } else {
            // Without its only entry the catalog is like that of a new repository.
            let named = [object.name.as_str(), "holds no cluster"];
            if !no_repository && !named.iter().any(|words| restored.stderr.contains(words)) {
                wrong.push(format!("{what}: the restore does not name it: {restored}"));
            }
            if Path::new(&target).join(CONTROL_FILE).exists() {
                wrong.push(format!("{what}: a refused restore left a control file"));
            }
        }
        let _ = std::fs::remove_dir_all(&target);
        wrong
    }
}

fn refused_as_damaged(answer: &Answer, object: &str) -> bool {
    let said = answer.stdout.contains(object) || answer.stderr.contains(object);
    answer.code == Some(6) && said && !answer.stderr.contains("panicked")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_object_is_named_and_never_restored_from() {
    let repository = Repository::make().await;
    let mut wrong = Vec::new();
    for object in &repository.objects {
        for damage in DAMAGES {
            wrong.extend(repository.check(object, damage).await);
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Everything is whole again, so that what was found was found for the damage.
    let _ = repository.site.run(&["verify", "--deep"]).await.expect(0);
}
