//! What `--to` says: a moment in any of its spellings, a position, a snapshot, or the latest.
//! Pure: the present and the zone are passed in.

use borealis_base::{Position, Timestamp, parse_duration};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// A parsed `--to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// A moment.
    Time(Timestamp),
    /// Every record whose end is at or before the position.
    Position(Position),
    /// A snapshot's name.
    Snapshot(String),
    /// As far as the repository goes.
    Latest,
}

/// Why `--to` was not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadTarget {
    /// Not any of the forms.
    #[error(
        "--to `{0}` is not a target; write an RFC 3339 time (2026-11-21T08:15:00Z), a local time \
         (2026-11-21 08:15:00), `10 minutes ago`, lsn:X/Y, snapshot:NAME or latest"
    )]
    Form(String),
    /// A local time that the clocks showed twice.
    #[error(
        "--to `{text}` happened twice in {zone}, since clocks were set back: {first} and {second}; \
         write the one you mean"
    )]
    Twice {
        /// What was written.
        text: String,
        /// The zone.
        zone: String,
        /// The first reading.
        first: Timestamp,
        /// The second reading.
        second: Timestamp,
    },
    /// A local time that the clocks skipped.
    #[error(
        "--to `{text}` did not happen in {zone}, since clocks were set forward; by the clock before \
         the change it is {first}, by the clock after it {second}; write the one you mean"
    )]
    Never {
        /// What was written.
        text: String,
        /// The zone.
        zone: String,
        /// The reading by the offset before the change.
        first: Timestamp,
        /// The reading by the offset after the change.
        second: Timestamp,
    },
    /// A time that has not come yet.
    #[error("--to `{text}` is in the future ({time}); it is {now} now")]
    Future {
        /// What was written.
        text: String,
        /// What it means.
        time: Timestamp,
        /// The present.
        now: Timestamp,
    },
}

/// Reads `--to`.
pub fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<To, BadTarget> {
    let trimmed = text.trim();
    let form = || BadTarget::Form(text.to_owned());
    if trimmed == "latest" {
        return Ok(To::Latest);
    }
    if let Some(position) = trimmed.strip_prefix("lsn:") {
        return position.parse().map(To::Position).map_err(|_| form());
    }
    if let Some(name) = trimmed.strip_prefix("snapshot:") {
        return if name.is_empty() {
            Err(form())
        } else {
            Ok(To::Snapshot(name.to_owned()))
        };
    }
    let time = moment(trimmed, now, zone)?.ok_or_else(form)?;
    if time > now {
        return Err(BadTarget::Future {
            text: text.to_owned(),
            time,
            now,
        });
    }
    Ok(To::Time(time))
}

/// `None` where the text has none of a moment's forms.
fn moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Option<Timestamp>, BadTarget> {
    if let Some(amount) = text.strip_suffix("ago") {
        return Ok(ago(amount.trim(), now));
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(Some(time));
    }
    // A text with a zone that is not RFC 3339 must not be read as if the zone were not there.
    let civil = text.len() >= "2026-11-21T08:15".len()
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || b"-:.T ".contains(&b));
    match text.parse::<DateTime>() {
        Ok(local) if civil => settle(text, local, zone).map(Some),
        _ => Ok(None),
    }
}

fn ago(amount: &str, now: Timestamp) -> Option<Timestamp> {
    let digits = amount.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = amount.split_at(digits);
    let unit = match unit.trim() {
        "second" | "seconds" => "s",
        "minute" | "minutes" | "mins" => "min",
        "hour" | "hours" => "h",
        "day" | "days" => "d",
        short => short,
    };
    parse_duration(&format!("{number}{unit}"))
        .ok()
        .map(|back| now.minus(back))
}

fn settle(text: &str, local: DateTime, zone: &TimeZone) -> Result<Timestamp, BadTarget> {
    let with = |offset: jiff::tz::Offset| {
        offset
            .to_timestamp(local)
            .map(|moment| Timestamp(moment.as_microsecond()))
            .map_err(|_| BadTarget::Form(text.to_owned()))
    };
    let zone_name = || zone.iana_name().unwrap_or("the local zone").to_owned();
    match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => with(offset),
        AmbiguousOffset::Fold { before, after } => Err(BadTarget::Twice {
            text: text.to_owned(),
            zone: zone_name(),
            first: with(before)?,
            second: with(after)?,
        }),
        AmbiguousOffset::Gap { before, after } => Err(BadTarget::Never {
            text: text.to_owned(),
            zone: zone_name(),
            first: with(before)?,
            second: with(after)?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn berlin() -> TimeZone {
        // Rules of central Europe, spelled out so that the test needs no zone database.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    fn read(text: &str) -> Result<To, BadTarget> {
        parse(text, at("2026-11-21T08:15:00Z"), &berlin())
    }

    #[test]
    fn every_documented_form_is_read() {
        assert_eq!(read("latest"), Ok(To::Latest));
        assert_eq!(
            read("lsn:0/5000148"),
            Ok(To::Position(Position(0x500_0148)))
        );
        assert_eq!(read("snapshot:x"), Ok(To::Snapshot("x".into())));
        assert_eq!(
            read("2026-11-21T08:00:00Z"),
            Ok(To::Time(at("2026-11-21T08:00:00Z")))
        );
        assert_eq!(
            read("2026-11-21 09:00:00.5"),
            Ok(To::Time(at("2026-11-21T08:00:00.5Z")))
        );
        assert_eq!(
            read("10 minutes ago"),
            Ok(To::Time(at("2026-11-21T08:05:00Z")))
        );
        assert_eq!(read("1 hour ago"), Ok(To::Time(at("2026-11-21T07:15:00Z"))));
        assert_eq!(read("90s ago"), Ok(To::Time(at("2026-11-21T08:13:30Z"))));
    }

    #[test]
    fn shown_times_are_accepted_back_unchanged() {
        let shown = at("2026-11-21T08:00:00.123456Z");
        assert_eq!(read(&shown.to_string()), Ok(To::Time(shown)));
    }

    #[test]
    fn a_local_time_that_happened_twice_is_refused_with_both_readings() {
        let Err(BadTarget::Twice { first, second, .. }) = read("2026-10-25 02:30:00") else {
            panic!("accepted");
        };
        assert_eq!(first, at("2026-10-25T00:30:00Z"));
        assert_eq!(second, at("2026-10-25T01:30:00Z"));
    }

    #[test]
    fn a_local_time_that_never_happened_is_refused_with_both_readings() {
        let Err(BadTarget::Never { first, second, .. }) = read("2026-03-29 02:30:00") else {
            panic!("accepted");
        };
        assert_eq!(first, at("2026-03-29T01:30:00Z"));
        assert_eq!(second, at("2026-03-29T00:30:00Z"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "yesterday",
            "ago",
            "-1 minutes ago",
            "lsn:",
            "lsn:5",
            "snapshot:",
            "2026-13-01 00:00:00",
            "2026-11-21",
            "08:15",
            "2026-11-21 08:15:00 PST",
            "now",
        ] {
            assert!(
                matches!(read(text), Err(BadTarget::Form(_))),
                "{text:?}: {:?}",
                read(text)
            );
        }
    }

    #[test]
    fn the_future_is_refused() {
        assert!(matches!(
            read("2027-01-01T00:00:00Z"),
            Err(BadTarget::Future { .. })
        ));
    }
}
