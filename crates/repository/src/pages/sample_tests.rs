//! Objects that an earlier release wrote; `examples/write_samples.rs` wrote them.

use super::manifest::Manifest;
use super::tests::{Files, World};

/// Where the objects of one release lie; read for ever by later ones.
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples/pages-1");

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).expect("four bits");
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

fn digest_of(files: &Files) -> String {
    let all: Vec<u8> = files.values().flatten().flatten().copied().collect();
    hex(&super::pack::sha256(&all.into()))
}

#[tokio::test]
async fn base_backups_of_format_1_are_still_read() {
    let world = World::new();
    for entry in std::fs::read_dir(SAMPLES).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace('+', "/");
        world
            .store
            .tamper(&name, std::fs::read(&path).unwrap().into());
    }
    let expected = String::from_utf8(world.bytes("expected.txt")).unwrap();
    let lines: Vec<&str> = expected.lines().collect();
    let mut head_digest = [0; 32];
    for (at, byte) in head_digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&lines[2][at * 2..][..2], 16).unwrap();
    }
    let object = crate::plan::ObjectRef {
        lineage: world.target.lineage,
        object: lines[0].parse().unwrap(),
        len: lines[1].parse().unwrap(),
        head_digest,
    };
    let manifest = Manifest::load(&world.fetcher(), &object).await.unwrap();
    assert_eq!(
        digest_of(&world.restore(&manifest).await.unwrap()),
        lines[3]
    );
}
