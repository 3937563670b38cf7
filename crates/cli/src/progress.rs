//! Shows progress: a bar on a terminal, JSON lines elsewhere, both on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use borealis_base::{Clock, Position, Progress, SystemClock, Timestamp, Unit};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

/// How often a JSON line is written at most.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// The progress of commands run here: drawn if standard error is a terminal.
pub fn for_this_terminal() -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bar(Mutex::new(ProgressBar::hidden())))
    } else {
        Box::new(Lines(Mutex::default()))
    }
}

struct Bar(Mutex<ProgressBar>);

impl Progress for Bar {
    fn phase(&self, name: &str, unit: Unit, total: Option<u64>) {
        let template = match (unit, total.is_some()) {
            (Unit::Bytes, true) => {
                "{prefix:.bold} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left {msg}"
            }
            (Unit::Bytes, false) => "{prefix:.bold} {spinner} {bytes} {bytes_per_sec} {msg}",
            (Unit::Items, true) => "{prefix:.bold} [{bar:30}] {pos}/{len}, {eta} left {msg}",
            (Unit::Items, false) => "{prefix:.bold} {spinner} {pos} {msg}",
        };
        let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        bar.set_style(
            ProgressStyle::with_template(template).expect("the templates above are valid"),
        );
        bar.set_prefix(name.to_owned());
        let mut current = self.0.lock().expect("no holder panics");
        current.finish_and_clear();
        *current = bar;
    }

    fn advance(&self, amount: u64) {
        self.0.lock().expect("no holder panics").inc(amount);
    }

    fn note(&self, text: &str) {
        self.0
            .lock()
            .expect("no holder panics")
            .set_message(text.to_owned());
    }

    fn replayed(&self, position: Position, time: Option<Timestamp>) {
        let time = time.map_or_else(String::new, |time| format!(", log of {time}"));
        self.note(&format!("at {position}{time}"));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0
            .get_mut()
            .expect("no holder panics")
            .finish_and_clear();
    }
}

#[derive(Default)]
struct Phase {
    name: String,
    bytes: bool,
    done: u64,
    total: Option<u64>,
    began: Duration,
    written: Duration,
    note: Option<String>,
    replayed: Option<(Position, Option<Timestamp>)>,
}

impl Phase {
    fn line(&self, now: Duration) -> serde_json::Value {
        let seconds = now.saturating_sub(self.began).as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // a rate for people
        let rate = if seconds > 0.0 {
            self.done as f64 / seconds
        } else {
            0.0
        };
        #[allow(clippy::cast_precision_loss)]
        let left = self
            .total
            .filter(|_| rate > 0.0)
            .map(|total| (total.saturating_sub(self.done) as f64 / rate).round());
        let mut line = json!({
            "phase": self.name, "unit": if self.bytes { "bytes" } else { "items" },
            "done": self.done, "total": self.total, "per_second": rate.round(),
            "seconds_left": left, "note": self.note,
        });
        if let (Some((position, time)), Some(fields)) = (self.replayed, line.as_object_mut()) {
            fields.insert("position".to_owned(), json!(position));
            fields.insert("log_time".to_owned(), json!(time));
        }
        line
    }

    fn write(&mut self, now: Duration) {
        self.written = now;
        // Progress that nobody reads must not fail the work.
        let _ = writeln!(std::io::stderr(), "{}", self.line(now));
    }
}

struct Lines(Mutex<Phase>);

impl Progress for Lines {
    fn phase(&self, name: &str, unit: Unit, total: Option<u64>) {
        let now = SystemClock.elapsed();
        let mut phase = self.0.lock().expect("no holder panics");
        if !phase.name.is_empty() {
            phase.write(now);
        }
        *phase = Phase {
            name: name.to_owned(),
            bytes: unit == Unit::Bytes,
            total,
            began: now,
            ..Phase::default()
        };
        phase.write(now);
    }

    fn advance(&self, amount: u64) {
        let now = SystemClock.elapsed();
        let mut phase = self.0.lock().expect("no holder panics");
        phase.done += amount;
        if now.saturating_sub(phase.written) >= LINE_INTERVAL {
            phase.write(now);
        }
    }

    fn note(&self, text: &str) {
        self.0.lock().expect("no holder panics").note = Some(text.to_owned());
    }

    fn replayed(&self, position: Position, time: Option<Timestamp>) {
        self.0.lock().expect("no holder panics").replayed = Some((position, time));
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let phase = self.0.get_mut().expect("no holder panics");
        if !phase.name.is_empty() {
            phase.write(SystemClock.elapsed());
        }
    }
}
