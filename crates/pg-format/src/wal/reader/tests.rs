use borealis_base::RecordSpan;
use proptest::prelude::*;

use super::*;
use crate::wal::builder::LogBuilder;

fn format() -> LogFormat {
    LogFormat {
        segment_size: SegmentSize::new(LogBuilder::SEGMENT as u32).expect("a valid size"),
        ..LogFormat::new(Version::V15)
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Heard {
    Record(RecordSpan),
    Unparsed(Lsn, UnparsedReason),
    Resynchronised(Lsn),
}

fn hear(event: &LogEvent<'_>) -> Heard {
    match *event {
        LogEvent::Record(Record { start, end, .. }) => Heard::Record(RecordSpan { start, end }),
        LogEvent::Unparsed { from, reason } => Heard::Unparsed(from, reason),
        LogEvent::Resynchronised { at } => Heard::Resynchronised(at),
    }
}

fn read_in(at: Lsn, start: Start, bytes: &[u8], chunk: usize) -> (Vec<Heard>, WalReader) {
    let mut heard = Vec::new();
    let mut reader = WalReader::new(format(), at, start, None);
    for (index, bytes) in bytes.chunks(chunk).enumerate() {
        let lsn = at.plus((index * chunk) as u64);
        reader.push(lsn, bytes, &mut |event| heard.push(hear(&event)));
    }
    (heard, reader)
}

/// What is heard, which must not depend on the split.
fn read(log: &LogBuilder) -> (Vec<Heard>, WalReader) {
    let whole = read_in(log.start, Start::Record, &log.bytes, log.bytes.len());
    for chunk in [1, 7, 24, 8191, 8192, 30_000] {
        let split = read_in(log.start, Start::Record, &log.bytes, chunk);
        assert_eq!(split.0, whole.0, "in chunks of {chunk}");
        assert_eq!(split.1.resume_at(), whole.1.resume_at());
        assert_eq!(split.1.unreadable_since(), whole.1.unreadable_since());
    }
    whole
}

#[test]
fn records_cross_pages_and_segments() {
    let mut log = LogBuilder::new();
    let mut spans = Vec::new();
    for len in [0, 1, 8, 8100, 8192, 60_000, 2_500_000, 3, 8191] {
        spans.push(Heard::Record(log.filler(len)));
    }
    let (heard, reader) = read(&log);
    assert_eq!(heard, spans);
    assert_eq!(reader.resume_at(), log.end());
    assert_eq!(reader.system_identifier(), Some(4711));
    assert_eq!(reader.timeline(), Some(Timeline(1)));
}

#[test]
fn a_segment_switch_ends_at_the_segments_end() {
    let mut log = LogBuilder::new();
    let first = log.filler(100);
    let switch = log.switch();
    assert_eq!(switch.end, Lsn(8 << 20));
    let second = log.filler(100);
    let (heard, _) = read(&log);
    assert_eq!(heard, [first, switch, second].map(Heard::Record));
}

#[test]
fn a_switch_whose_segment_has_not_ended_is_read_again() {
    let mut log = LogBuilder::new();
    let first = log.filler(100);
    let switch = log.switch();
    log.bytes.truncate(50_000);
    let (heard, reader) = read(&log);
    assert_eq!(heard, [Heard::Record(first)]);
    assert_eq!(reader.resume_at(), switch.start);
    assert_eq!(reader.unreadable_since(), None);
}

#[test]
fn a_record_that_a_crash_left_unfinished_is_passed_over() {
    let mut log = LogBuilder::new();
    let first = log.filler(100);
    let whole = log.bytes.len();
    let unfinished = log.record_bytes(Rmgr(21), 0, 0, &[], &vec![1; 20_000]);
    let prev = log.prev;
    log.lay(&unfinished);
    // The record reaches into a third page; the server came back after the second.
    log.bytes.truncate(2 * 8192);
    assert!(log.bytes.len() > whole);
    log.prev = prev;
    log.page(8, 0);
    let overwrite = log.add(Rmgr::XLOG, 0xD0, 0, &[], &[0; 16]);
    let last = log.filler(10);
    let (heard, _) = read(&log);
    assert_eq!(heard, [first, overwrite, last].map(Heard::Record));
}

#[test]
fn zeros_after_the_last_record_are_the_end_and_no_fault() {
    for zeros in [4, 100, 8192, 100_000] {
        let mut log = LogBuilder::new();
        let record = log.filler(100);
        log.bytes.resize(log.bytes.len() + zeros, 0);
        let (heard, reader) = read(&log);
        assert_eq!(heard, [Heard::Record(record)]);
        assert_eq!(reader.resume_at(), record.end);
        assert_eq!(reader.unreadable_since(), Some(record.end));
    }
}

#[test]
fn pages_of_a_recycled_segment_are_the_end_and_no_fault() {
    let mut old = LogBuilder::new();
    old.filler(60_000);
    let mut log = LogBuilder::new();
    log.start = Lsn(9 << 20);
    let record = log.filler(100);
    log.bytes.resize(8192, 0);
    log.bytes.extend(&old.bytes[8192..32_768]);
    let (heard, reader) = read(&log);
    assert_eq!(heard, [Heard::Record(record)]);
    assert_eq!(reader.resume_at(), record.end);
}

#[test]
fn log_after_zeros_is_a_hole() {
    let mut log = LogBuilder::new();
    let before = log.filler(100);
    log.bytes.resize(3 * 8192, 0);
    let after = log.filler(100);
    let (heard, _) = read(&log);
    assert_eq!(
        heard,
        [
            Heard::Record(before),
            Heard::Unparsed(before.end, UnparsedReason::Hole),
            Heard::Resynchronised(after.start),
            Heard::Record(after),
        ]
    );
}

/// Three records on the first page, one that begins on the second, with one byte changed.
fn damaged(offset_in_second: u64) -> (Vec<RecordSpan>, Vec<Heard>, WalReader) {
    let mut log = LogBuilder::new();
    let mut spans = vec![log.filler(100), log.filler(100), log.filler(100)];
    spans.push(log.filler(9000));
    spans.push(log.filler(50));
    let at = spans[1].start.plus(offset_in_second).since(log.start) as usize;
    log.bytes[at] ^= 0x40;
    let (heard, reader) = read(&log);
    (spans, heard, reader)
}

#[test]
fn damage_is_told_and_reading_goes_on_at_the_next_page() {
    for (offset, reason) in [
        (3, UnparsedReason::Length),
        (9, UnparsedReason::Previous),
        (20, UnparsedReason::Checksum),
        (60, UnparsedReason::Checksum),
    ] {
        let (spans, heard, reader) = damaged(offset);
        // The fourth record begins on the damaged page; the fifth is the first that can be found.
        assert_eq!(
            heard,
            [
                Heard::Record(spans[0]),
                Heard::Unparsed(spans[1].start, reason),
                Heard::Resynchronised(spans[4].start),
                Heard::Record(spans[4]),
            ],
            "byte {offset}"
        );
        assert_eq!(reader.unreadable_since(), None);
    }
}

#[test]
fn a_foreign_page_and_a_wrong_continuation_are_told() {
    for (byte, reason) in [
        (0, UnparsedReason::Page),
        (16, UnparsedReason::Continuation),
    ] {
        let mut log = LogBuilder::new();
        let first = log.filler(100);
        let second = log.filler(30_000);
        let third = log.filler(10);
        log.bytes[8192 + byte] ^= 1;
        let (heard, _) = read(&log);
        assert_eq!(heard[0], Heard::Record(first));
        assert_eq!(heard[1], Heard::Unparsed(second.start, reason));
        assert_eq!(heard.last(), Some(&Heard::Record(third)));
    }
}

#[test]
fn another_segment_size_is_told() {
    let mut log = LogBuilder::new();
    log.filler(100);
    log.bytes[32..36].copy_from_slice(&(16_u32 << 20).to_le_bytes());
    let (heard, _) = read(&log);
    assert_eq!(
        heard,
        [Heard::Unparsed(log.start, UnparsedReason::SegmentSize)]
    );
}

#[test]
fn bytes_left_out_are_told_and_bytes_repeated_are_ignored() {
    let mut log = LogBuilder::new();
    let first = log.filler(100);
    for _ in 0..200 {
        log.filler(100);
    }
    let last = log.filler(1);
    let mut heard = Vec::new();
    let mut reader = WalReader::new(format(), log.start, Start::Record, None);
    let mut deliver = |event: LogEvent<'_>| heard.push(hear(&event));
    let cut = first.end.since(log.start) as usize;
    reader.push(log.start, &log.bytes[..cut], &mut deliver);
    reader.push(log.start, &log.bytes[..cut], &mut deliver);
    reader.push(first.end.plus(50), &log.bytes[cut + 50..], &mut deliver);
    assert_eq!(heard[0], Heard::Record(first));
    assert_eq!(heard[1], Heard::Unparsed(first.end, UnparsedReason::Gap));
    assert!(matches!(heard[2], Heard::Resynchronised(_)));
    assert_eq!(heard.last(), Some(&Heard::Record(last)));
}

#[test]
fn reading_can_begin_anywhere() {
    let mut log = LogBuilder::new();
    let mut spans = Vec::new();
    for len in [100, 9000, 100, 30_000, 100] {
        spans.push(log.filler(len));
    }
    for offset in (0..log.bytes.len()).step_by(509) {
        let at = log.start.plus(offset as u64);
        let (heard, reader) = read_in(at, Start::Anywhere, &log.bytes[offset..], 5000);
        let page = Lsn(at.0.next_multiple_of(8192));
        let expected = spans.iter().filter(|span| span.start >= page).copied();
        assert_eq!(
            heard,
            expected.map(Heard::Record).collect::<Vec<_>>(),
            "{at}"
        );
        assert_eq!(reader.unreadable_since(), None);
    }
}

#[test]
fn a_claimed_length_takes_no_memory() {
    let mut log = LogBuilder::new();
    let mut record = log.record_bytes(Rmgr(21), 0, 0, &[], &[0; 9000]);
    record[..4].copy_from_slice(&RECORD_LEN_MAX.to_le_bytes());
    log.lay(&record);
    let (heard, reader) = read(&log);
    assert_eq!(
        heard[0],
        Heard::Unparsed(log.prev, UnparsedReason::Continuation)
    );
    assert!(reader.record.memory() <= 2 * 8192);
}

proptest! {
    #[test]
    fn any_place_to_resume_gives_the_rest(
        lens in prop::collection::vec(prop_oneof![0_usize..300, 8000_usize..8400, 10_000_usize..40_000], 1..20),
        cut in any::<prop::sample::Index>(),
        switch in any::<prop::sample::Index>(),
    ) {
        let mut log = LogBuilder::new();
        let switch = switch.index(lens.len());
        let mut spans = Vec::new();
        for (index, len) in lens.iter().enumerate() {
            spans.push(Heard::Record(log.filler(*len)));
            if index == switch {
                spans.push(Heard::Record(log.switch()));
            }
        }
        let cut = cut.index(log.bytes.len());
        let (mut heard, reader) = read_in(log.start, Start::Record, &log.bytes[..cut], 3000);
        let at = reader.resume_at();
        let mut resumed = WalReader::new(format(), at, reader.resume_start(), reader.last_record());
        let offset = at.since(log.start) as usize;
        resumed.push(at, &log.bytes[offset..], &mut |event| heard.push(hear(&event)));
        prop_assert_eq!(heard, spans);
    }

    #[test]
    fn hostile_bytes_never_panic_and_never_stop(
        lens in prop::collection::vec(0_usize..9000, 1..12),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        noise: Vec<u8>,
        chunk in 1_usize..20_000,
    ) {
        let mut log = LogBuilder::new();
        for len in lens {
            log.filler(len);
        }
        log.bytes.extend(noise);
        for (place, byte) in changes {
            let place = place.index(log.bytes.len());
            log.bytes[place] = byte;
        }
        // Whole pages of healthy log after the damage are read again, up to the last.
        log.bytes.resize(log.bytes.len().next_multiple_of(8192), 0xEE);
        log.prev = Lsn(1);
        let last = log.filler(64);
        let (heard, reader) = read_in(log.start, Start::Record, &log.bytes, chunk);
        prop_assert_eq!(heard.last(), Some(&Heard::Record(last)));
        prop_assert_eq!(reader.position(), log.end());
        let whole = read_in(log.start, Start::Record, &log.bytes, log.bytes.len()).0;
        prop_assert_eq!(heard, whole);
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40_000), at: u64, boundary: bool) {
        let start = if boundary { Start::Record } else { Start::Anywhere };
        read_in(Lsn(at), start, &bytes, 999);
        read_in(Lsn(at & !8191), start, &bytes, 8192);
    }
}
