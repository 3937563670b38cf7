//! Builds the manifest of a synthetic base backup of one tebibyte, then one with scattered changes,
//! and looks pages up; prints sizes, times and the peak memory of the process.
//!
//! Packs are not stored: the map is what grows with the database. Run in release mode:
//! `cargo run --release -p borealis-repository --example large_manifest`

use std::collections::BTreeMap;
use std::time::Duration;

use borealis_base::{Clock, SeededEntropy, SystemClock};
use borealis_repository::pages::map::{Changes, Location, Run, decode_runs, encode_runs, locate};
use borealis_repository::pages::parts::{Part, Rebuild, Rebuilt, check_part, pages_of, part_of};

/// Pages of 8 KiB in a page file of 1 GiB.
const FILE_PAGES: u32 = 131_072;
const FILES: u32 = 1_024;
/// Pages in a frame of 1 MiB.
const FRAME_PAGES: u32 = 128;
const FRAMES_PER_PACK: u32 = 32;
const CHANGED: u32 = 1_000_000;
const LOOK_UPS: u32 = 2_000;

type Index = Vec<Part<usize>>;

/// Rebuilds the map part by part, as a base backup does, with parts stored encoded.
fn rebuild(index: &Index, stored: &mut Vec<Vec<u8>>, changes: &Changes) -> (Index, usize) {
    let mut walk = Rebuild::new(index, changes);
    let (mut next, mut shared) = (Vec::new(), 0);
    let mut collect = |rebuilt: Vec<Rebuilt>, stored: &mut Vec<Vec<u8>>| {
        for part in rebuilt {
            match part {
                Rebuilt::Shared(at) => {
                    shared += 1;
                    next.push(index[at].clone());
                }
                Rebuilt::New(runs) => {
                    stored.push(encode_runs(&runs));
                    let (count, pages) = (runs.len() as u32, pages_of(&runs));
                    next.push(Part {
                        first: runs[0].start(),
                        runs: count,
                        pages,
                        handle: stored.len() - 1,
                    });
                }
            }
        }
    };
    for at in 0..index.len() {
        if walk.wants(at) {
            let runs = decode_runs(&stored[index[at].handle]).expect("as encoded");
            check_part(index, at, &runs).expect("as indexed");
            walk.replace(at, &runs);
        } else {
            walk.share(at);
        }
        collect(walk.take(), stored);
    }
    let (last, _) = walk.finish();
    collect(last, stored);
    (next, shared)
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.unwrap_or("VmHWM: unknown")
        .split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

fn report(what: &str, index: &Index, stored: &[Vec<u8>], took: Duration) {
    let bytes: usize = index.iter().map(|part| stored[part.handle].len()).sum();
    let runs: u64 = index.iter().map(|part| u64::from(part.runs)).sum();
    let pages: u64 = index.iter().map(|part| part.pages).sum();
    println!(
        "{what}: {pages} pages, {runs} runs, {} parts of {} MiB in {:.2} s; peak memory {}",
        index.len(),
        bytes >> 20,
        took.as_secs_f64(),
        peak_memory()
    );
}

fn main() {
    let clock = SystemClock;
    let lengths: BTreeMap<u32, u32> = (0..FILES).map(|file| (file, FILE_PAGES)).collect();
    let none = BTreeMap::new();
    let frames = FILE_PAGES / FRAME_PAGES;
    let full = (0..FILES * frames).map(|number| Run {
        file: number / frames,
        first: number % frames * FRAME_PAGES,
        count: FRAME_PAGES,
        at: Location::Frame {
            pack: number / FRAMES_PER_PACK,
            frame: number % FRAMES_PER_PACK,
        },
    });
    let mut stored = Vec::new();
    let began = clock.elapsed();
    let changes =
        Changes::new(&none, lengths.clone(), &none, full.collect()).expect("runs do not overlap");
    let (first, _) = rebuild(&Vec::new(), &mut stored, &changes);
    drop(changes);
    report(
        "first base backup",
        &first,
        &stored,
        clock.elapsed().saturating_sub(began),
    );

    let entropy = SeededEntropy::new(1);
    let mut pages: Vec<(u32, u32)> = (0..CHANGED)
        .map(|_| {
            (
                entropy.below(u64::from(FILES)) as u32,
                entropy.below(u64::from(FILE_PAGES)) as u32,
            )
        })
        .collect();
    pages.sort_unstable();
    pages.dedup();
    let first_pack = FILES * frames / FRAMES_PER_PACK;
    let scattered = (0_u32..).zip(&pages).map(|(number, (file, page))| {
        let frame = number / FRAME_PAGES;
        let at = Location::Frame {
            pack: first_pack + frame / FRAMES_PER_PACK,
            frame: frame % FRAMES_PER_PACK,
        };
        Run {
            file: *file,
            first: *page,
            count: 1,
            at,
        }
    });
    let began = clock.elapsed();
    let changes = Changes::new(&lengths, lengths.clone(), &none, scattered.collect())
        .expect("runs do not overlap");
    let (second, _) = rebuild(&first, &mut stored, &changes);
    report(
        "a million scattered changes",
        &second,
        &stored,
        clock.elapsed().saturating_sub(began),
    );

    let one = Run {
        file: 5,
        first: 77,
        count: 1,
        at: Location::Zero,
    };
    let changes = Changes::new(&lengths, lengths.clone(), &none, vec![one]).expect("one run");
    let began = clock.elapsed();
    let (third, shared) = rebuild(&second, &mut stored, &changes);
    report(
        "one change",
        &third,
        &stored,
        clock.elapsed().saturating_sub(began),
    );
    println!("of {} parts {shared} are shared", third.len());

    let began = clock.elapsed();
    for (file, page) in pages.iter().cycle().take(LOOK_UPS as usize) {
        let at = part_of(
            &second,
            Run {
                file: *file,
                first: *page,
                count: 1,
                at: Location::Zero,
            }
            .start(),
        );
        let part = &second[at.expect("the map has parts")];
        let runs = decode_runs(&stored[part.handle]).expect("as encoded");
        assert!(
            locate(&runs, *file, *page).is_some(),
            "page {page} of file {file} is lost"
        );
    }
    let took = clock.elapsed().saturating_sub(began);
    println!(
        "a look-up that decodes its part takes {:?}",
        took / LOOK_UPS
    );
}
