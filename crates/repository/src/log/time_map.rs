//! The time map of a log piece: which moment means which record.
//!
//! A step says: every moment after the step before it, up to and including `settled_through`, stands
//! just behind `last_record`. A moment is settled once, by the first step that reaches it, and means
//! the same for ever after; what later log says of earlier times changes nothing.

use borealis_base::{Position, RecordSpan, TimeStep, Timestamp};

use crate::wire::{Malformed, Reader, put_varint, put_zigzag};

/// Steps in one time map at most.
pub const TIME_STEPS_MAX: usize = 1 << 20;

/// Checks that moments strictly increase and positions do not decrease.
pub fn check_steps(steps: &[TimeStep]) -> Result<(), Malformed> {
    if steps.len() > TIME_STEPS_MAX {
        return Err(Malformed(format!(
            "a time map of {} steps is out of bounds",
            steps.len()
        )));
    }
    if steps
        .iter()
        .any(|step| step.last_record.start > step.last_record.end)
    {
        return Err(Malformed::new(
            "a record of the time map ends before it starts",
        ));
    }
    let disordered = steps.windows(2).any(|pair| match pair {
        [a, b] => a.settled_through >= b.settled_through || a.last_record.end > b.last_record.end,
        _ => false,
    });
    if disordered {
        return Err(Malformed::new("the steps of the time map are not in order"));
    }
    Ok(())
}

/// The first step that settles `time`; `None` if this map does not reach it.
pub fn step_for(steps: &[TimeStep], time: Timestamp) -> Option<(usize, &TimeStep)> {
    let index = steps.partition_point(|step| step.settled_through < time);
    steps.get(index).map(|step| (index, step))
}

/// Lays out a time map as columns.
///
/// ```text
/// count, varint
/// moments: the first in microseconds since 1970, zigzag; then distances, varint, at least 1
/// record ends: the first, varint; then distances, varint
/// record lengths (end - start), varint
/// ```
pub fn encode_steps(steps: &[TimeStep]) -> Result<Vec<u8>, Malformed> {
    check_steps(steps)?;
    let mut out = Vec::with_capacity(8 + steps.len() * 8);
    put_varint(&mut out, steps.len() as u64);
    let mut before: Option<i64> = None;
    for step in steps {
        let time = step.settled_through.0;
        match before {
            None => put_zigzag(&mut out, time),
            Some(last) => put_varint(&mut out, time.wrapping_sub(last).cast_unsigned()),
        }
        before = Some(time);
    }
    let mut end = 0;
    for step in steps {
        put_varint(&mut out, step.last_record.end.0 - end);
        end = step.last_record.end.0;
    }
    for step in steps {
        put_varint(&mut out, step.last_record.end.since(step.last_record.start));
    }
    Ok(out)
}

/// Reads a time map. Total: any other bytes are refused.
pub fn decode_steps(bytes: &[u8]) -> Result<Vec<TimeStep>, Malformed> {
    let mut reader = Reader::new(bytes, "a time map");
    let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    // Each step takes three bytes at least, which bounds what is allocated for a false count.
    if count > TIME_STEPS_MAX || count > bytes.len() {
        return Err(Malformed(format!(
            "a time map of {count} steps is out of bounds"
        )));
    }
    let out_of_bounds = || Malformed::new("a step of the time map is out of bounds");
    let mut steps: Vec<TimeStep> = Vec::with_capacity(count);
    for index in 0..count {
        let time = match index.checked_sub(1).and_then(|last| steps.get(last)) {
            None => reader.zigzag()?,
            Some(last) => last
                .settled_through
                .0
                .checked_add_unsigned(reader.varint()?)
                .ok_or_else(out_of_bounds)?,
        };
        let last_record = RecordSpan {
            start: Position::ZERO,
            end: Position::ZERO,
        };
        steps.push(TimeStep {
            settled_through: Timestamp(time),
            last_record,
        });
    }
    let mut end = 0_u64;
    for step in &mut steps {
        end = end
            .checked_add(reader.varint()?)
            .ok_or_else(out_of_bounds)?;
        step.last_record.end = Position(end);
    }
    for step in &mut steps {
        let start = step
            .last_record
            .end
            .0
            .checked_sub(reader.varint()?)
            .ok_or_else(out_of_bounds)?;
        step.last_record.start = Position(start);
    }
    reader.end()?;
    check_steps(&steps)?;
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(time: i64, start: u64, end: u64) -> TimeStep {
        TimeStep {
            settled_through: Timestamp(time),
            last_record: RecordSpan {
                start: Position(start),
                end: Position(end),
            },
        }
    }

    #[test]
    fn a_moment_stands_behind_the_first_step_that_reaches_it() {
        let steps = [step(10, 100, 120), step(20, 120, 150), step(30, 120, 150)];
        assert_eq!(step_for(&steps, Timestamp(5)), Some((0, &steps[0])));
        assert_eq!(step_for(&steps, Timestamp(10)), Some((0, &steps[0])));
        assert_eq!(step_for(&steps, Timestamp(11)), Some((1, &steps[1])));
        assert_eq!(step_for(&steps, Timestamp(30)), Some((2, &steps[2])));
        assert_eq!(step_for(&steps, Timestamp(31)), None);
    }

    /// Written out by hand from the layout in `docs/formats/log.md`.
    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = encode_steps(&[step(-1, 100, 120), step(9, 130, 150)]).unwrap();
        assert_eq!(bytes, [2, 1, 10, 120, 30, 20, 20]);
    }

    #[test]
    fn disordered_steps_are_refused() {
        assert!(encode_steps(&[step(5, 1, 2), step(5, 2, 3)]).is_err());
        assert!(encode_steps(&[step(5, 1, 20), step(6, 2, 3)]).is_err());
        assert!(encode_steps(&[step(5, 3, 2)]).is_err());
        assert!(
            decode_steps(&[2, 1, 0, 120, 30, 20, 20]).is_err(),
            "a moment twice"
        );
        assert!(
            decode_steps(&[1, 1, 5, 6]).is_err(),
            "a record that starts before the log"
        );
    }

    proptest! {
        #[test]
        fn time_maps_are_read_back(
            first: i32,
            seeds in proptest::collection::vec((1_i64..1 << 40, 0_u64..1 << 30, 0_u64..100), 0..50),
        ) {
            let (mut time, mut end) = (i64::from(first), 100);
            let mut steps = Vec::new();
            for (tick, grow, len) in seeds {
                time += tick;
                end += grow;
                steps.push(step(time, end - len, end));
            }
            prop_assert_eq!(decode_steps(&encode_steps(&steps).unwrap()).unwrap(), steps);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            let _ = decode_steps(&bytes);
        }
    }
}
