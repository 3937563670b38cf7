//! Timeline history files: through which timelines a timeline came to be
//! (`access/transam/timeline.c`).

use std::fmt::Write as _;

use crate::{Error, Lsn, Timeline};

/// A timeline that another one left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline.
    pub timeline: Timeline,
    /// Where it was left: bytes from here on are not part of the later history.
    pub end: Lsn,
    /// What PostgreSQL wrote as the reason, such as `no recovery target specified`.
    pub reason: String,
}

/// The ancestry of one timeline, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Whose ancestry this is.
    pub timeline: Timeline,
    /// The timelines before it; numbers ascend.
    pub ancestors: Vec<Ancestor>,
}

impl History {
    /// The history of a cluster that was never promoted. It has no file.
    pub const fn first() -> Self {
        Self {
            timeline: Timeline(1),
            ancestors: Vec::new(),
        }
    }

    /// Reads the contents of `timeline`'s history file.
    ///
    /// Refuses what `readTimeLineHistory` refuses, and also ends that run backwards, which would
    /// make one position belong to two timelines.
    pub fn parse(timeline: Timeline, contents: &[u8]) -> Result<Self, Error> {
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in contents.split(|byte| *byte == b'\n').enumerate() {
            let bad = |reason| Error::History {
                file: format!("{:08X}.history", timeline.0),
                line: index + 1,
                reason,
            };
            // The reason may hold a restore point's name in any encoding; only the numbers matter.
            let line = String::from_utf8_lossy(line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.splitn(3, '\t');
            let number = fields.next().and_then(|field| field.trim().parse().ok());
            let number: u32 = number.ok_or_else(|| bad("a timeline number is expected"))?;
            let end = fields.next().and_then(|field| field.trim().parse().ok());
            let end: Lsn = end.ok_or_else(|| bad("a log position is expected"))?;
            if number >= timeline.0 {
                return Err(bad("a timeline cannot come from itself or a later one"));
            }
            if let Some(last) = ancestors.last() {
                if last.timeline.0 >= number {
                    return Err(bad("timeline numbers must ascend"));
                }
                if last.end > end {
                    return Err(bad("log positions must not descend"));
                }
            }
            ancestors.push(Ancestor {
                timeline: Timeline(number),
                end,
                reason: fields.next().unwrap_or_default().trim().to_owned(),
            });
        }
        Ok(Self {
            timeline,
            ancestors,
        })
    }

    /// The file's contents, as PostgreSQL writes them.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for ancestor in &self.ancestors {
            writeln!(
                text,
                "{}\t{}\t{}",
                ancestor.timeline, ancestor.end, ancestor.reason
            )
            .expect("a string takes what is written");
        }
        text
    }

    /// The history of `timeline`, born where this one reaches `at`.
    #[must_use]
    pub fn fork(&self, timeline: Timeline, at: Lsn, reason: &str) -> Self {
        let mut ancestors = self.ancestors.clone();
        ancestors.push(Ancestor {
            timeline: self.timeline,
            end: at,
            reason: reason.to_owned(),
        });
        Self {
            timeline,
            ancestors,
        }
    }

    /// The timeline that holds the byte at `lsn` in this history (`tliOfPointInHistory`). A
    /// position at which a timeline ends belongs to the one after it.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.ancestors
            .iter()
            .find(|ancestor| lsn < ancestor.end)
            .map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// Where `timeline` begins: `None` if it is not part of this history.
    pub fn start_of(&self, timeline: Timeline) -> Option<Lsn> {
        let mut start = Lsn::ZERO;
        for ancestor in &self.ancestors {
            if ancestor.timeline == timeline {
                return Some(start);
            }
            start = ancestor.end;
        }
        (timeline == self.timeline).then_some(start)
    }

    /// Where `timeline` was left; `None` if it is the last one or not part of this history.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors
            .iter()
            .find(|ancestor| ancestor.timeline == timeline)
            .map(|ancestor| ancestor.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "1\t0/3000148\tno recovery target specified\n\n\
                        3\t0/5000000\tat restore point \"before \u{e9}\"\n";

    fn history() -> History {
        History::parse(Timeline(4), TEXT.as_bytes()).expect("a valid file")
    }

    #[test]
    fn a_position_belongs_to_the_timeline_that_was_current() {
        let history = history();
        assert_eq!(history.timeline_at(Lsn(0)), Timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0147)), Timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0148)), Timeline(3));
        assert_eq!(history.timeline_at(Lsn(0x500_0000)), Timeline(4));
        assert_eq!(history.start_of(Timeline(3)), Some(Lsn(0x300_0148)));
        assert_eq!(history.end_of(Timeline(3)), Some(Lsn(0x500_0000)));
        assert_eq!(history.start_of(Timeline(2)), None);
        assert_eq!(history.end_of(Timeline(4)), None);
    }

    #[test]
    fn written_histories_are_read_back() {
        let child = history().fork(Timeline(9), Lsn(0x700_0028), "before 2026-11-21");
        let read = History::parse(Timeline(9), child.to_text().as_bytes()).expect("a valid file");
        assert_eq!(read, child);
        assert_eq!(read.ancestors.len(), 3);
        assert_eq!(
            History::parse(Timeline(1), b"").expect("a valid file"),
            History::first()
        );
    }

    #[test]
    fn comments_are_skipped_and_any_encoding_is_read() {
        let read =
            History::parse(Timeline(2), b"# note\n1\t0/28\tcaf\xe9\n").expect("a valid file");
        assert_eq!(read.ancestors[0].end, Lsn(0x28));
    }

    #[test]
    fn impossible_histories_are_refused() {
        for text in [
            "x\t0/1\tr",
            "1",
            "1\tnowhere\tr",
            "4\t0/1\tr",
            "5\t0/1\tr",
            "2\t0/1\tr\n1\t0/2\tr",
            "1\t0/2\tr\n1\t0/3\tr",
            "1\t0/2\tr\n2\t0/1\tr",
        ] {
            assert!(
                History::parse(Timeline(4), text.as_bytes()).is_err(),
                "{text}"
            );
        }
    }
}
