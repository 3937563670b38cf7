//! The time map: which moment lies where in the log.
//!
//! A moment T resolves to the position just before the first commit or abort with a later time,
//! prepared forms included (`recoveryStopsBefore` in `xlogrecovery.c`). Such a record with time c
//! therefore *settles* everything through c − 1 µs at the record before it. Where nothing commits,
//! a sample of the server's clock, taken before its insert position, settles the sampled time less
//! a margin: a commit takes its time before its record is inserted, so that only a sample that is
//! later by the margin proves that nothing earlier is still to come.
//!
//! What is settled is never revised: a commit with an earlier time than that counts as after it.

use std::collections::VecDeque;
use std::time::Duration;

use borealis_base::{RecordSpan, TimeStep, Timestamp};

use crate::Lsn;
use crate::segment::SegmentSize;
use crate::wal::WAL_PAGE_SIZE;
use crate::wal::page::{LONG_HEADER_LEN, SHORT_HEADER_LEN};

/// How much later than a moment a clock sample must be to settle it.
pub const SAMPLE_MARGIN: Duration = Duration::from_secs(1);
/// A commit this much earlier than what is settled means that the clock was set back.
pub const CLOCK_STEP: Duration = Duration::from_secs(1);
/// Samples that may wait for the log to reach them. A log that lags further has every other sample
/// dropped.
pub const PENDING_SAMPLES_MAX: usize = 1024;

/// The time map of a piece in the making, and what goes on into the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TimeMap {
    /// Everything through this moment is settled.
    pub(super) settled: Option<Timestamp>,
    /// Whether the clock was seen to have gone back, and has not caught up.
    pub(super) stepped_back: bool,
    /// Samples that the log has not reached: clock and position.
    pub(super) samples: VecDeque<(Timestamp, Lsn)>,
    pub(super) samples_left_out: u64,
    pub(super) steps: Vec<TimeStep>,
}

impl TimeMap {
    pub(super) const fn new() -> Self {
        Self {
            settled: None,
            stepped_back: false,
            samples: VecDeque::new(),
            samples_left_out: 0,
            steps: Vec::new(),
        }
    }

    /// A transaction ended at `time`; `before` is the record before. Returns what was settled if
    /// the clock has gone back.
    pub(super) fn end(&mut self, time: Timestamp, before: RecordSpan) -> Option<Timestamp> {
        self.settle(time.plus_micros(-1), before);
        let settled = self.settled?;
        let back = settled.since(time) > CLOCK_STEP;
        let first = back && !self.stepped_back;
        self.stepped_back = back;
        first.then_some(settled)
    }

    fn settle(&mut self, through: Timestamp, last: RecordSpan) {
        if self.settled.is_some_and(|settled| through <= settled) {
            return;
        }
        self.settled = Some(through);
        match self.steps.last_mut() {
            Some(step) if step.last_record.start >= last.start => step.settled_through = through,
            _ => self.steps.push(TimeStep {
                settled_through: through,
                last_record: last,
            }),
        }
    }

    /// Takes a sample: the server's clock, read before its insert position `at`.
    pub(super) fn push_sample(&mut self, clock: Timestamp, at: Lsn, size: SegmentSize) {
        // The insert position skips a page's header before there is anything on the page; the log
        // ends before it.
        let header = if at.0 % size.bytes() == LONG_HEADER_LEN as u64 {
            LONG_HEADER_LEN
        } else {
            SHORT_HEADER_LEN
        } as u64;
        let at = if at.0 % WAL_PAGE_SIZE == header {
            at.align_down(WAL_PAGE_SIZE)
        } else {
            at
        };
        // Waiting longer settles no less truly, and the queue stays in order.
        let at = self.samples.back().map_or(at, |last| last.1.max(at));
        if self.samples.len() >= PENDING_SAMPLES_MAX {
            let before = self.samples.len();
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.samples_left_out += (before - self.samples.len()) as u64;
        }
        self.samples.push_back((clock, at));
    }

    /// Settles the samples before `to`, and those at it where `inclusive`: every record that ends
    /// there or earlier has been seen, and `last` is the last of them. Without one, the samples
    /// settle nothing.
    pub(super) fn reach(&mut self, to: Lsn, inclusive: bool, last: Option<RecordSpan>) {
        while let Some((clock, at)) = self.samples.front().copied() {
            if at > to || (at == to && !inclusive) {
                return;
            }
            self.samples.pop_front();
            if let Some(last) = last {
                self.settle(clock.minus(SAMPLE_MARGIN), last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn span(start: u64) -> RecordSpan {
        RecordSpan {
            start: Lsn(start),
            end: Lsn(start + 8),
        }
    }

    fn step(through: i64, start: u64) -> TimeStep {
        TimeStep {
            settled_through: Timestamp(through),
            last_record: span(start),
        }
    }

    #[test]
    fn a_moment_resolves_to_the_record_before_the_first_later_commit() {
        let mut map = TimeMap::new();
        map.end(Timestamp(10), span(100));
        map.end(Timestamp(30), span(200));
        // Out of order: it settles nothing, and lies after what is settled.
        map.end(Timestamp(20), span(300));
        map.end(Timestamp(40), span(400));
        assert_eq!(map.steps, [step(9, 100), step(29, 200), step(39, 400)]);
    }

    #[test]
    fn a_sample_waits_until_the_log_has_reached_it() {
        let mut map = TimeMap::new();
        map.push_sample(Timestamp(5 * SECOND), Lsn(208), SegmentSize::DEFAULT);
        map.reach(Lsn(207), true, Some(span(100)));
        assert_eq!(map.steps, []);
        map.reach(Lsn(208), true, Some(span(200)));
        assert_eq!(map.steps, [step(4 * SECOND, 200)]);
    }

    #[test]
    fn samples_of_an_idle_server_move_the_last_step_on() {
        let mut map = TimeMap::new();
        for second in 5..9 {
            map.push_sample(Timestamp(second * SECOND), Lsn(208), SegmentSize::DEFAULT);
            map.reach(Lsn(208), true, Some(span(200)));
        }
        assert_eq!(map.steps, [step(7 * SECOND, 200)]);
    }

    #[test]
    fn an_insert_position_behind_a_page_header_is_the_end_of_the_log() {
        for (at, page) in [(8192 + 24, 8192), ((16 << 20) + 40, 16 << 20)] {
            let mut map = TimeMap::new();
            map.push_sample(Timestamp(5 * SECOND), Lsn(at), SegmentSize::DEFAULT);
            map.reach(Lsn(page), true, Some(span(200)));
            assert_eq!(map.steps.len(), 1, "{at}");
        }
    }

    #[test]
    fn a_clock_set_back_is_told_once() {
        let mut map = TimeMap::new();
        assert_eq!(map.end(Timestamp(100 * SECOND), span(100)), None);
        assert_eq!(map.end(Timestamp(99 * SECOND), span(200)), None);
        let settled = Timestamp(100 * SECOND - 1);
        assert_eq!(map.end(Timestamp(50 * SECOND), span(300)), Some(settled));
        assert_eq!(map.end(Timestamp(51 * SECOND), span(400)), None);
        assert_eq!(map.end(Timestamp(101 * SECOND), span(500)), None);
        assert_eq!(
            map.end(Timestamp(5 * SECOND), span(600)),
            Some(Timestamp(101 * SECOND - 1))
        );
    }

    #[test]
    fn waiting_samples_are_bounded() {
        let mut map = TimeMap::new();
        for index in 0..10_000 {
            map.push_sample(Timestamp(index), Lsn(1000), SegmentSize::DEFAULT);
            assert!(map.samples.len() <= PENDING_SAMPLES_MAX);
        }
        assert_eq!(map.samples.len() as u64 + map.samples_left_out, 10_000);
    }
}
