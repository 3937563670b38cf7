//! Log pieces written to and read from a store in memory.

use std::sync::Arc;

use borealis_base::{
    Branch, Entropy, ErrorKind, LineageId, ObjectId, Position, RecordSpan, SeededEntropy, TimeStep,
    Timestamp,
};
use borealis_keys::{DataKey, DataKeys};
use futures::TryStreamExt;

use super::piece::LOG_FRAME_BYTES;
use super::*;
use crate::object::{Compression, ObjectBuilder, ObjectKind};
use crate::plan::{LineageState, PieceSummary};
use crate::store::{FaultStore, Faults, MemoryStore, Store};
use crate::{Error, Result, layout};

const LINEAGE: LineageId = LineageId([3; 16]);

struct World {
    store: Arc<MemoryStore>,
    keys: Arc<DataKeys>,
    entropy: SeededEntropy,
    state: LineageState,
    log: Vec<u8>,
}

fn steps(end: u64) -> Vec<TimeStep> {
    let last_record = RecordSpan {
        start: Position(end - 8),
        end: Position(end),
    };
    vec![TimeStep {
        settled_through: Timestamp(end.cast_signed()),
        last_record,
    }]
}

impl World {
    /// Branch 1 holds positions 0 to `len` in pieces that end at `ends`.
    fn new(ends: &[usize]) -> Self {
        let entropy = SeededEntropy::new(5);
        let mut log = vec![0; ends.last().copied().unwrap_or(0)];
        entropy.fill(&mut log);
        let mut world = Self {
            store: Arc::default(),
            keys: Arc::new(DataKeys::new(DataKey::random(&entropy))),
            entropy,
            state: LineageState::empty(LINEAGE),
            log,
        };
        let mut start = 0;
        for end in ends {
            let bytes = world.log[start..*end].to_vec();
            world.put(Branch(1), start as u64, &bytes);
            start = *end;
        }
        world
    }

    fn put(&mut self, branch: Branch, start: u64, bytes: &[u8]) {
        let entry = self.state.head + 1;
        let end = start + bytes.len() as u64;
        let identity = PieceIdentity {
            lineage: LINEAGE,
            branch,
            start: Position(start),
        };
        let frames = prepare_piece(
            &identity,
            bytes,
            &steps(end),
            b"index",
            Compression::Zstd(1),
        )
        .unwrap();
        let id = ObjectId::random(&self.entropy);
        let mut builder =
            ObjectBuilder::new(ObjectKind::LedgerEntry, id, Some(self.keys.current()));
        builder.push_frame(1, Compression::None, b"body");
        for frame in frames {
            builder.push(frame);
        }
        let sealed = builder.seal();
        self.store
            .tamper(&layout::entry(LINEAGE, entry), sealed.bytes.clone());
        self.state.head = entry;
        self.state.pieces.push(PieceSummary {
            entry,
            recorded_at: Timestamp(0),
            branch,
            start: Position(start),
            end: Position(end),
            settled_before: None,
            settled_after: Some(Timestamp(end.cast_signed())),
            last_record: Some(RecordSpan {
                start: Position(end - 8),
                end: Position(end),
            }),
            resume_at: Position(end),
            stored_bytes: sealed.bytes.len() as u64,
            head_digest: sealed.head_digest,
            engine: None,
            merged: None,
        });
    }

    fn reader(&self) -> LogReader {
        LogReader::new(
            Arc::clone(&self.store) as Arc<dyn Store>,
            Arc::clone(&self.keys),
            LINEAGE,
        )
    }

    async fn read(&self, from: usize, to: usize) -> Result<Vec<u8>> {
        let stream = self.reader().read(
            &self.state,
            Branch(1),
            Position(from as u64),
            Position(to as u64),
            4,
        )?;
        let mut next = from as u64;
        let mut out = Vec::new();
        let parts: Vec<LogBytes> = stream.try_collect().await?;
        for part in parts {
            assert_eq!(part.position, Position(next));
            next += part.bytes.len() as u64;
            out.extend_from_slice(&part.bytes);
        }
        Ok(out)
    }
}

#[tokio::test]
async fn any_range_is_read_without_a_break() {
    let m = LOG_FRAME_BYTES;
    let world = World::new(&[100, 100 + 3 * m, 200 + 4 * m, 200 + 4 * m + 17]);
    let len = world.log.len();
    let edges = [
        0,
        1,
        99,
        100,
        101,
        99 + m,
        100 + m,
        101 + m,
        100 + 3 * m,
        150 + 3 * m,
        len - 1,
        len,
    ];
    for from in edges {
        for to in edges {
            if from <= to {
                assert!(
                    world.read(from, to).await.unwrap() == world.log[from..to],
                    "{from} to {to}"
                );
            }
        }
    }
}

#[tokio::test]
async fn time_map_and_index_are_read_back() {
    let world = World::new(&[5_000, 9_000]);
    let piece = world.reader().piece(&world.state.pieces[1]).await.unwrap();
    assert_eq!(piece.time_steps().await.unwrap(), steps(9_000));
    assert_eq!(piece.last_index().await.unwrap().as_ref(), b"index");
}

#[tokio::test]
async fn a_break_is_named_by_its_position() {
    let mut world = World::new(&[1_000, 2_000, 3_000]);
    world.state.pieces.remove(1);
    let error = world.read(500, 2_500).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("at 0/3E8"), "{error}");
    assert!(world.read(2_500, 3_001).await.is_err(), "past the end");
    assert_eq!(world.read(0, 1_000).await.unwrap(), world.log[..1_000]);
}

#[tokio::test]
async fn a_piece_swapped_with_another_valid_one_is_refused() {
    let mut world = World::new(&[1_000, 2_000]);
    let (first, second) = (layout::entry(LINEAGE, 1), layout::entry(LINEAGE, 2));
    let bytes = world.store.read(&second).await.unwrap();
    world.store.tamper(&first, bytes);
    let error = world.read(0, 1_000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains(&first), "{error}");
    // Even where the ledger names it: its sealed frames say which log they hold.
    world.state.pieces[0].head_digest = world.state.pieces[1].head_digest;
    world.state.pieces[0].stored_bytes = world.state.pieces[1].stored_bytes;
    let piece = world.reader().piece(&world.state.pieces[0]).await.unwrap();
    assert_eq!(
        piece.time_steps().await.unwrap_err().kind(),
        ErrorKind::Damaged
    );
    assert_eq!(
        piece.last_index().await.unwrap_err().kind(),
        ErrorKind::Damaged
    );
    assert_eq!(
        world.read(0, 1_000).await.unwrap_err().kind(),
        ErrorKind::Damaged
    );
}

#[tokio::test]
async fn a_piece_shorter_than_the_ledger_says_is_refused() {
    let mut world = World::new(&[3 * LOG_FRAME_BYTES]);
    for end in [
        3 * LOG_FRAME_BYTES as u64 - 1,
        3 * LOG_FRAME_BYTES as u64 + 1,
        2 * LOG_FRAME_BYTES as u64,
    ] {
        world.state.pieces[0].end = Position(end);
        let error = world.read(0, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
}

#[tokio::test]
async fn a_flipped_truncated_or_missing_piece_is_never_read() {
    let world = World::new(&[4_000]);
    let name = layout::entry(LINEAGE, 1);
    let good = world.store.read(&name).await.unwrap().to_vec();
    for at in 0..good.len() - 8 {
        let mut bad = good.clone();
        bad[at] ^= 4;
        world.store.tamper(&name, bad.into());
        match world.read(0, 4_000).await {
            // A bit of another frame of the entry: the log itself is whole.
            Ok(read) => assert_eq!(read, world.log, "byte {at}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "byte {at}: {error}"),
        }
    }
    for len in [0, 30, good.len() / 2, good.len() - 9] {
        world.store.tamper(&name, good[..len].to_vec().into());
        assert_eq!(
            world.read(0, 4_000).await.unwrap_err().kind(),
            ErrorKind::Damaged,
            "{len} bytes"
        );
    }
    world.store.delete(&name).await.unwrap();
    let error = world.read(0, 4_000).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

async fn read_back_of(world: &World, store: Arc<dyn Store>, index: usize) -> Result<()> {
    read_back(&store, &world.keys, LINEAGE, &world.state.pieces[index]).await
}

#[tokio::test]
async fn a_piece_stored_wrong_or_lost_is_told_from_a_store_that_gives_no_answer() {
    let world = World::new(&[3_000, LOG_FRAME_BYTES + 9_000]);
    let whole = || Arc::clone(&world.store) as Arc<dyn Store>;
    for index in [0, 1] {
        read_back_of(&world, whole(), index).await.unwrap();
    }
    let (first, second) = (layout::entry(LINEAGE, 1), layout::entry(LINEAGE, 2));
    let faults = Faults {
        failures: 1_000,
        ..Faults::default()
    };
    let silent = Arc::new(FaultStore::new(whole(), faults, 1));
    let error = read_back_of(&world, silent, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");

    let bytes = world.store.read(&second).await.unwrap();
    let mut wrong: Vec<bytes::Bytes> = [30, bytes.len() / 2, bytes.len() - 1]
        .into_iter()
        .map(|at| {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            flipped.into()
        })
        .collect();
    // Whole and well formed, but another one; cut short; nothing at all.
    wrong.push(world.store.read(&first).await.unwrap());
    wrong.push(bytes.slice(..bytes.len() - 8));
    wrong.push(bytes::Bytes::new());
    for wrong in wrong {
        world.store.tamper(&second, wrong);
        let error = read_back_of(&world, whole(), 1).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.to_string().contains(&second), "{error}");
    }
    world.store.delete(&second).await.unwrap();
    let error = read_back_of(&world, whole(), 1).await.unwrap_err();
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}
