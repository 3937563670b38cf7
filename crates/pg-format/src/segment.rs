//! Names of the files that hold the log (`access/xlog_internal.h`).

use crate::{Lsn, Timeline};

/// The size of a log segment: a power of two from 1 MiB to 1 GiB, fixed when the cluster is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// 16 MiB, what `initdb` chooses.
    pub const DEFAULT: Self = Self(16 << 20);

    /// A size in bytes; `None` where no server can have it.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The number of the segment that holds the byte at `lsn`.
    pub const fn number_of(self, lsn: Lsn) -> u64 {
        lsn.0 / self.bytes()
    }

    /// Where a segment begins.
    pub const fn start_of(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.bytes()))
    }

    /// The first segment boundary at or after `lsn`.
    pub const fn round_up(self, lsn: Lsn) -> Lsn {
        let rest = lsn.0 % self.bytes();
        if rest == 0 {
            lsn
        } else {
            lsn.plus(self.bytes() - rest)
        }
    }

    const fn per_log_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// A file of `pg_wal` or of an archive, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogFile {
    /// A whole segment.
    Segment {
        /// The timeline it was written on.
        timeline: Timeline,
        /// Its position divided by the segment size.
        number: u64,
    },
    /// A segment that was not complete when its timeline ended, or is being received.
    Partial {
        /// The timeline it was written on.
        timeline: Timeline,
        /// Its position divided by the segment size.
        number: u64,
    },
    /// The ancestry of a timeline.
    History(Timeline),
    /// What is left of a backup's label after the backup.
    BackupHistory {
        /// The timeline the backup started on.
        timeline: Timeline,
        /// The segment it started in.
        number: u64,
        /// Its start, counted from the start of that segment.
        offset: u32,
    },
}

fn hex8(text: &str) -> Option<u32> {
    let valid = text.len() == 8
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    valid.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

fn segment_name(name: &str, size: SegmentSize) -> Option<(Timeline, u64)> {
    if name.len() != 24 {
        return None;
    }
    let timeline = hex8(name.get(..8)?)?;
    let log_id = u64::from(hex8(name.get(8..16)?)?);
    let segment = u64::from(hex8(name.get(16..)?)?);
    // A file of another segment size: its number would name a position that it does not hold.
    if segment >= size.per_log_id() {
        return None;
    }
    Some((Timeline(timeline), log_id * size.per_log_id() + segment))
}

impl LogFile {
    /// Reads a file's name, without directory. `None` for every other file, and for a segment that
    /// cannot exist with this segment size.
    pub fn parse(name: &str, size: SegmentSize) -> Option<Self> {
        if let Some((timeline, number)) = segment_name(name, size) {
            return Some(Self::Segment { timeline, number });
        }
        if let Some(timeline) = name.strip_suffix(".history") {
            return hex8(timeline).map(|timeline| Self::History(Timeline(timeline)));
        }
        if let Some(segment) = name.strip_suffix(".partial") {
            let (timeline, number) = segment_name(segment, size)?;
            return Some(Self::Partial { timeline, number });
        }
        let (segment, offset) = name.strip_suffix(".backup")?.split_once('.')?;
        let (timeline, number) = segment_name(segment, size)?;
        Some(Self::BackupHistory {
            timeline,
            number,
            offset: hex8(offset)?,
        })
    }

    /// The file's name, as PostgreSQL writes it.
    pub fn name(&self, size: SegmentSize) -> String {
        let segment = |timeline: Timeline, number: u64| {
            let (log_id, segment) = (number / size.per_log_id(), number % size.per_log_id());
            format!("{:08X}{log_id:08X}{segment:08X}", timeline.0)
        };
        match *self {
            Self::Segment { timeline, number } => segment(timeline, number),
            Self::Partial { timeline, number } => segment(timeline, number) + ".partial",
            Self::History(timeline) => format!("{:08X}.history", timeline.0),
            Self::BackupHistory {
                timeline,
                number,
                offset,
            } => format!("{}.{offset:08X}.backup", segment(timeline, number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_the_server() {
        let size = SegmentSize::DEFAULT;
        let segment = LogFile::Segment {
            timeline: Timeline(1),
            number: 0x1FF,
        };
        assert_eq!(segment.name(size), "0000000100000001000000FF");
        assert_eq!(size.start_of(0x1FF), Lsn(0x1_FF00_0000));
        assert_eq!(
            LogFile::parse("00000002.history", size),
            Some(LogFile::History(Timeline(2)))
        );
        assert_eq!(
            LogFile::parse("000000010000000000000004.00000028.backup", size),
            Some(LogFile::BackupHistory {
                timeline: Timeline(1),
                number: 4,
                offset: 0x28
            })
        );
        let big = SegmentSize::new(1 << 30).expect("a valid size");
        assert_eq!(
            LogFile::parse("000000010000000200000003", big),
            Some(LogFile::Segment {
                timeline: Timeline(1),
                number: 11
            })
        );
    }

    #[test]
    fn other_names_are_not_log_files() {
        let size = SegmentSize::DEFAULT;
        for name in [
            "",
            "archive_status",
            "00000001000000000000000",
            "00000001000000000000000g",
            "00000001000000000000000a",
            "0000000100000000000001FF.partial",
            "000000010000000000000100",
            "000000010000000000000001.ready",
            "00000001.History",
            "é0000001000000000000001",
            "00000001000000000000é001",
        ] {
            assert_eq!(LogFile::parse(name, size), None, "{name}");
        }
    }

    #[test]
    fn only_possible_segment_sizes_are_accepted() {
        for bytes in [0, 1, 1 << 19, 3 << 20, (1 << 30) + 1, u32::MAX] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
        assert_eq!(SegmentSize::DEFAULT.round_up(Lsn(1)), Lsn(16 << 20));
        assert_eq!(SegmentSize::DEFAULT.round_up(Lsn(16 << 20)), Lsn(16 << 20));
    }

    proptest! {
        #[test]
        fn written_names_are_read_back(timeline: u32, number in 0_u64..1 << 40, shift in 20_u32..=30, offset: u32) {
            let size = SegmentSize::new(1 << shift).expect("a valid size");
            let number = number % (u64::MAX / size.bytes());
            let timeline = Timeline(timeline);
            for file in [
                LogFile::Segment { timeline, number },
                LogFile::Partial { timeline, number },
                LogFile::History(timeline),
                LogFile::BackupHistory { timeline, number, offset },
            ] {
                prop_assert_eq!(LogFile::parse(&file.name(size), size), Some(file));
            }
        }

        #[test]
        fn no_name_panics(name: String) {
            LogFile::parse(&name, SegmentSize::DEFAULT);
        }
    }
}
