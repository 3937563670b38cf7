//! How far a replay is, from what the server logs and from the files of the log that it asks for. Never
//! from SQL: a server that replays to a target lets nobody in (facts, 19).

use borealis_base::{Position, Progress, Timestamp, Unit};
use borealis_pg_server::instance::LogFact;
use borealis_repository::plan::PieceRange;

/// One replay.
#[derive(Debug)]
pub struct Replay<'a> {
    pieces: &'a [PieceRange],
    reached: Position,
    end: Position,
}

impl<'a> Replay<'a> {
    /// A replay of `pieces` from `start` through `end`; the phase begins.
    pub fn begin(
        pieces: &'a [PieceRange],
        (start, end): (Position, Position),
        progress: &dyn Progress,
    ) -> Self {
        progress.phase("recovery", Unit::Bytes, Some(end.since(start)));
        Self {
            pieces,
            reached: start,
            end,
        }
    }

    /// Takes note of a line of the server's log.
    pub fn log_fact(&mut self, fact: LogFact, progress: &dyn Progress) {
        match fact {
            LogFact::RedoStarts(at) | LogFact::RedoAt(at) | LogFact::Consistent(at) => {
                self.reach(at, progress);
            }
            // The start of the last record; the target includes it.
            LogFact::RedoDone(_) | LogFact::Ready => self.reach(self.end, progress),
            LogFact::Failure(text)
                if !text.contains("not yet accepting") && !text.contains("starting up") =>
            {
                progress.note(&text);
            }
            LogFact::Failure(_) | LogFact::Stopping(_) => {}
        }
    }

    /// Takes note that everything before `at` is replayed. What is behind what is known already, or
    /// past the end, as a request for a file that does not exist is, says nothing.
    pub fn reach(&mut self, at: Position, progress: &dyn Progress) {
        if at <= self.reached || at > self.end {
            return;
        }
        progress.replayed(at, time_at(self.pieces, at));
        progress.advance(at.since(self.reached));
        self.reached = at;
    }
}

/// The last moment settled in the piece that holds `at`, or within merged log the one before it.
fn time_at(pieces: &[PieceRange], at: Position) -> Option<Timestamp> {
    let holds = |part: &&PieceRange| part.from <= at && at <= part.to;
    pieces
        .iter()
        .find(holds)
        .and_then(|part| match part.piece.merged {
            // What was settled on the way through merged log its time map knows, and the plan does not.
            Some(_) if at < part.piece.end => part.piece.settled_before,
            _ => part.piece.settled_after,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::Branch;
    use borealis_repository::plan::PieceSummary;
    use std::sync::Mutex;

    type Step = (Position, Option<Timestamp>);

    #[derive(Default)]
    struct Seen {
        done: Mutex<u64>,
        steps: Mutex<Vec<Step>>,
    }

    impl Progress for Seen {
        fn phase(&self, _: &str, _: Unit, total: Option<u64>) {
            assert_eq!(total, Some(200));
        }
        fn advance(&self, amount: u64) {
            *self.done.lock().unwrap() += amount;
        }
        fn note(&self, _: &str) {}
        fn replayed(&self, position: Position, time: Option<Timestamp>) {
            self.steps.lock().unwrap().push((position, time));
        }
    }

    fn piece(from: u64, to: u64, time: i64) -> PieceRange {
        let (from, to) = (Position(from), Position(to));
        PieceRange {
            piece: PieceSummary {
                entry: 1,
                recorded_at: Timestamp(0),
                branch: Branch(1),
                start: from,
                end: to,
                settled_before: None,
                settled_after: Some(Timestamp(time)),
                last_record: None,
                resume_at: to,
                stored_bytes: 1,
                head_digest: [0; 32],
                engine: None,
                merged: None,
            },
            from,
            to,
        }
    }

    #[test]
    fn progress_of_a_replay_tells_position_and_log_time_and_never_goes_back() {
        let pieces = [piece(0, 150, 7), piece(150, 400, 9)];
        let seen = Seen::default();
        let mut replay = Replay::begin(&pieces, (Position(100), Position(300)), &seen);
        replay.log_fact(LogFact::RedoStarts(Position(100)), &seen);
        replay.reach(Position(140), &seen);
        replay.log_fact(LogFact::RedoAt(Position(120)), &seen);
        replay.log_fact(LogFact::RedoAt(Position(200)), &seen);
        // A request for what comes behind the cut.
        replay.reach(Position(320), &seen);
        replay.log_fact(LogFact::RedoDone(Position(280)), &seen);
        replay.log_fact(LogFact::Ready, &seen);
        let done = *seen.done.lock().unwrap();
        assert_eq!(done, 200, "the bar does not end full");
        let at = |position, time| (Position(position), Some(Timestamp(time)));
        assert_eq!(
            *seen.steps.lock().unwrap(),
            [at(140, 7), at(200, 9), at(300, 9)]
        );
    }
}
