//! PostgreSQL's moments.

use borealis_base::Timestamp;

/// Microseconds from 1970-01-01 to 2000-01-01, PostgreSQL's epoch (`datatype/timestamp.h`).
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A `TimestampTz`, microseconds since 2000-01-01 UTC, as a moment.
pub const fn from_timestamptz(micros: i64) -> Timestamp {
    Timestamp(micros.saturating_add(EPOCH_MICROS))
}

/// A `pg_time_t`, whole seconds since 1970-01-01 UTC, as a moment.
pub const fn from_pg_time(seconds: i64) -> Timestamp {
    Timestamp(seconds.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_the_year_2000() {
        assert_eq!(
            from_timestamptz(0).to_string(),
            "2000-01-01T00:00:00.000000Z"
        );
        assert_eq!(from_timestamptz(i64::MAX), Timestamp::MAX);
        assert_eq!(from_pg_time(i64::MIN), Timestamp::MIN);
    }
}
