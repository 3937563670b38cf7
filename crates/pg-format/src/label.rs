//! `backup_label` and `tablespace_map`: what tells a server that it starts from a backup
//! (`access/transam/xlog.c`, `xlogrecovery.c`).

use std::fmt::Write as _;

use crate::segment::{LogFile, SegmentSize};
use crate::{Error, Lsn, Timeline};

/// What `backup_label` says. With this file present, recovery starts at `start`, not at what the
/// control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: the redo position of `checkpoint`.
    pub start: Lsn,
    /// The segment file in which `start` lies, by the server's own words.
    pub start_segment: String,
    /// The start of the checkpoint record.
    pub checkpoint: Lsn,
    /// How the backup was made; recovery knows `streamed` only.
    pub method: String,
    /// `primary` or `standby`; on a standby recovery must also reach the minimum recovery point.
    pub from: String,
    /// When the backup started, in the server's words; not read by recovery.
    pub start_time: String,
    /// The name the backup was given.
    pub label: String,
    /// The timeline on which the backup started.
    pub timeline: Timeline,
    /// Lines that this version of the format does not know; kept in order.
    pub other: Vec<String>,
}

impl BackupLabel {
    /// The label of a backup that starts at a checkpoint.
    pub fn new(
        start: Lsn,
        checkpoint: Lsn,
        timeline: Timeline,
        size: SegmentSize,
        start_time: &str,
        label: &str,
    ) -> Self {
        let segment = LogFile::Segment {
            timeline,
            number: size.number_of(start),
        };
        Self {
            start,
            start_segment: segment.name(size),
            checkpoint,
            method: "streamed".to_owned(),
            from: "primary".to_owned(),
            start_time: start_time.to_owned(),
            label: label.to_owned(),
            timeline,
            other: Vec::new(),
        }
    }

    /// Reads a label, as `pg_backup_stop` returns it or as it lies in a backup.
    pub fn parse(contents: &str) -> Result<Self, Error> {
        let mut fields = Fields::default();
        for line in contents.lines() {
            fields.line(line)?;
        }
        fields.finish()
    }

    /// The file's contents, as `read_backup_label` wants them: each line ended, the first two
    /// first.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let Self {
            start,
            start_segment,
            checkpoint,
            method,
            from,
            start_time,
            label,
            timeline,
            other,
        } = self;
        write!(
            text,
            "START WAL LOCATION: {start} (file {start_segment})\n\
             CHECKPOINT LOCATION: {checkpoint}\n\
             BACKUP METHOD: {method}\n\
             BACKUP FROM: {from}\n\
             START TIME: {start_time}\n\
             LABEL: {label}\n\
             START TIMELINE: {timeline}\n"
        )
        .expect("a string takes what is written");
        for line in other {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

#[derive(Default)]
struct Fields {
    start: Option<(Lsn, String)>,
    checkpoint: Option<Lsn>,
    method: String,
    from: String,
    start_time: String,
    label: String,
    timeline: Option<Timeline>,
    other: Vec<String>,
}

impl Fields {
    fn line(&mut self, line: &str) -> Result<(), Error> {
        let bad = || Error::BackupLabel(format!("`{line}` cannot be read"));
        let (name, value) = line.split_once(": ").unwrap_or((line, ""));
        match name {
            "START WAL LOCATION" => {
                let (lsn, file) = value.split_once(" (file ").ok_or_else(bad)?;
                let file = file.strip_suffix(')').ok_or_else(bad)?;
                self.start = Some((lsn.parse().map_err(|_| bad())?, file.to_owned()));
            }
            "CHECKPOINT LOCATION" => self.checkpoint = Some(value.parse().map_err(|_| bad())?),
            "BACKUP METHOD" => value.clone_into(&mut self.method),
            "BACKUP FROM" => value.clone_into(&mut self.from),
            "START TIME" => value.clone_into(&mut self.start_time),
            "LABEL" => value.clone_into(&mut self.label),
            "START TIMELINE" => {
                self.timeline = Some(Timeline(value.parse().map_err(|_| bad())?));
            }
            _ => self.other.push(line.to_owned()),
        }
        Ok(())
    }

    fn finish(self) -> Result<BackupLabel, Error> {
        let missing = |name| Error::BackupLabel(format!("`{name}` is missing"));
        let (start, start_segment) = self.start.ok_or_else(|| missing("START WAL LOCATION"))?;
        let in_file = start_segment
            .get(..8)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let timeline = self
            .timeline
            .or(in_file.map(Timeline))
            .ok_or_else(|| missing("START TIMELINE"))?;
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint: self
                .checkpoint
                .ok_or_else(|| missing("CHECKPOINT LOCATION"))?,
            method: self.method,
            from: self.from,
            start_time: self.start_time,
            label: self.label,
            timeline,
            other: self.other,
        })
    }
}

/// What `tablespace_map` says: tablespaces outside the data directory, by object identifier. With
/// this file present, recovery replaces the links in `pg_tblspc` by these.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// Identifier and absolute directory, in the file's order. Directories are bytes: PostgreSQL
    /// does not say in which encoding they are.
    pub entries: Vec<(u32, Vec<u8>)>,
}

impl TablespaceMap {
    /// Reads a map, as `pg_backup_stop` returns it or as it lies in a backup. Line ends and
    /// backslashes within a directory's name are escaped by a backslash.
    pub fn parse(contents: &[u8]) -> Result<Self, Error> {
        let mut entries = Vec::new();
        let mut line = Vec::new();
        let mut escaped = false;
        for byte in contents {
            match byte {
                b'\\' if !escaped => escaped = true,
                b'\n' | b'\r' if !escaped => {
                    if !line.is_empty() {
                        entries.push(Self::entry(&line)?);
                        line.clear();
                    }
                }
                byte => {
                    line.push(*byte);
                    escaped = false;
                }
            }
        }
        // PostgreSQL reads no entry that its line end does not close.
        if escaped || !line.is_empty() {
            return Err(Error::TablespaceMap("the last line has no end".to_owned()));
        }
        Ok(Self { entries })
    }

    fn entry(line: &[u8]) -> Result<(u32, Vec<u8>), Error> {
        let bad = || {
            let line = String::from_utf8_lossy(line);
            Error::TablespaceMap(format!("`{line}` cannot be read"))
        };
        let space = line.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let (number, path) = line.split_at(space);
        let number = std::str::from_utf8(number).map_err(|_| bad())?;
        let path = path.get(1..).unwrap_or_default();
        if path.is_empty() {
            return Err(bad());
        }
        Ok((number.parse().map_err(|_| bad())?, path.to_vec()))
    }

    /// The file's contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, path) in &self.entries {
            bytes.extend_from_slice(format!("{number} ").as_bytes());
            for byte in path {
                if matches!(byte, b'\n' | b'\r' | b'\\') {
                    bytes.push(b'\\');
                }
                bytes.push(*byte);
            }
            bytes.push(b'\n');
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n\
        CHECKPOINT LOCATION: 0/4000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-21 08:15:00 UTC\n\
        LABEL: nightly: full\n\
        START TIMELINE: 1\n";

    #[test]
    fn a_label_of_the_server_is_read_and_written_unchanged() {
        let label = BackupLabel::parse(LABEL).expect("a valid label");
        assert_eq!(label.start, Lsn(0x400_0028));
        assert_eq!(label.checkpoint, Lsn(0x400_0060));
        assert_eq!(label.timeline, Timeline(1));
        assert_eq!(label.label, "nightly: full");
        assert_eq!(label.to_text(), LABEL);
        let made = BackupLabel::new(
            Lsn(0x400_0028),
            Lsn(0x400_0060),
            Timeline(1),
            SegmentSize::DEFAULT,
            "2026-11-21 08:15:00 UTC",
            "nightly: full",
        );
        assert_eq!(made, label);
    }

    #[test]
    fn lines_of_later_versions_survive() {
        let text = format!("{LABEL}INCREMENTAL FROM LSN: 0/3000028\n");
        let label = BackupLabel::parse(&text).expect("a valid label");
        assert_eq!(label.to_text(), text);
    }

    #[test]
    fn incomplete_labels_are_refused() {
        for text in [
            "",
            "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n",
            "CHECKPOINT LOCATION: 0/4000060\n",
            "START WAL LOCATION: 0/4000028\nCHECKPOINT LOCATION: 0/4000060\n",
            "START WAL LOCATION: x (file 000000010000000000000004)\nCHECKPOINT LOCATION: 0/4000060\n",
        ] {
            assert!(BackupLabel::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_line_end_in_a_directory_name_is_part_of_the_name() {
        let map = TablespaceMap::parse(b"16385 /srv/a b\n16386 /srv/c\\\nd\\\\e\n").expect("valid");
        assert_eq!(map.entries[0], (16385, b"/srv/a b".to_vec()));
        assert_eq!(map.entries[1], (16386, b"/srv/c\nd\\e".to_vec()));
    }

    #[test]
    fn malformed_maps_are_refused() {
        for text in ["16385\n", "16385 \n", "x /srv\n", "1 /srv", "1 /srv\\\n"] {
            assert!(TablespaceMap::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn written_maps_are_read_back(entries: Vec<(u32, Vec<u8>)>) {
            let map = TablespaceMap { entries: entries.into_iter().filter(|entry| !entry.1.is_empty()).collect() };
            prop_assert_eq!(TablespaceMap::parse(&map.to_bytes()), Ok(map));
        }

        #[test]
        fn no_contents_panic(text: String, bytes: Vec<u8>) {
            let _ = BackupLabel::parse(&text);
            let _ = TablespaceMap::parse(&bytes);
        }
    }
}
