//! What can happen next.

use crate::state::{
    At, Config, EPOCHS_MAX, Entry, Late, Mutant, ReaderAt, State, Violation, Writer,
};

/// One thing that happened: who, and what.
pub type Step = (&'static str, &'static str);

const WRITERS: [&str; 3] = ["writer 1", "writer 2", "writer 3"];

/// Receives each next state; a violation that the step itself commits comes with it.
pub(crate) trait Sink {
    fn next(&mut self, step: Step, state: State, broken: Option<Violation>);
}

/// Gives every state that can follow `state`.
pub(crate) fn steps(config: &Config, state: &State, sink: &mut impl Sink) {
    for writer in 0..config.writers {
        WriterStep {
            config,
            state,
            number: writer,
        }
        .all(sink);
    }
    land_late(state, sink);
    if config.deleter {
        delete(config, state, sink);
    }
    read(config, state, sink);
}

/// A late create lands. It stays pending: a network may deliver twice.
fn land_late(state: &State, sink: &mut impl Sink) {
    for late in state.late.iter().flatten() {
        let mut next = state.clone();
        match *late {
            Late::Epoch { number, owner } if next.epochs[number as usize] == 0 => {
                next.epochs[number as usize] = owner;
            }
            Late::Entry { slot, entry } if next.slots[slot as usize].id == 0 => {
                next.slots[slot as usize] = entry;
            }
            _ => continue,
        }
        sink.next(("store", "a late create lands"), next, None);
    }
}

/// The deleter may stop between any two of its steps.
fn delete(config: &Config, state: &State, sink: &mut impl Sink) {
    let limit = if config.mutant == Some(Mutant::RemoveBeforeFloor) {
        for planned in state.planned_floor + 1..=state.head() {
            let next = State {
                planned_floor: planned,
                ..state.clone()
            };
            sink.next(("deleter", "plans a floor"), next, None);
        }
        if state.planned_floor > state.floor {
            let next = State {
                floor: state.planned_floor,
                ..state.clone()
            };
            sink.next(("deleter", "raises the floor"), next, None);
        }
        state.planned_floor
    } else {
        for floor in state.floor + 1..=state.head() {
            let next = State {
                floor,
                ..state.clone()
            };
            sink.next(("deleter", "raises the floor"), next, None);
        }
        state.floor
    };
    for slot in 1..limit {
        if state.slots[slot as usize].id != 0 {
            let mut next = state.clone();
            next.slots[slot as usize] = Entry::default();
            sink.next(("deleter", "removes an entry below the floor"), next, None);
        }
    }
}

fn read(config: &Config, state: &State, sink: &mut impl Sink) {
    let mut next = state.clone();
    let reader = &mut next.reader;
    match reader.at {
        ReaderAt::Idle if reader.readings < config.readings => {
            reader.readings += 1;
            reader.committed = state.committed;
            start_reading(&mut next);
            sink.next(("reader", "reads the floor"), next, None);
        }
        ReaderAt::Idle => {}
        ReaderAt::Next => {
            let entry = state.slots[reader.slot as usize];
            let first = reader.slot == reader.from;
            let fits = entry.epoch >= reader.previous_epoch
                && (first || entry.previous == reader.seen[reader.slot as usize - 1]);
            if entry.id != 0 && fits {
                reader.seen[reader.slot as usize] = entry.id;
                reader.previous_epoch = entry.epoch;
                reader.slot += 1;
            } else {
                reader.misfit = entry.id != 0;
                reader.at = ReaderAt::Recheck;
            }
            sink.next(("reader", "reads the next entry"), next, None);
        }
        ReaderAt::Recheck => {
            // Below the floor a stale create may have put something where an entry was removed.
            let moved = state.floor > reader.from;
            if moved && config.mutant != Some(Mutant::NoFloorRecheck) {
                start_reading(&mut next);
                sink.next(
                    ("reader", "sees a higher floor and begins again"),
                    next,
                    None,
                );
                return;
            }
            let broken = if reader.misfit {
                Some(Violation::ReaderSawDamage)
            } else {
                let kept = state.floor as usize..reader.committed.len();
                kept.clone()
                    .any(|slot| {
                        reader.committed[slot] != 0 && reader.committed[slot] != reader.seen[slot]
                    })
                    .then_some(Violation::ReaderMissedCommitted)
            };
            let readings = reader.readings;
            next.reader = State::START.reader;
            next.reader.readings = readings;
            sink.next(("reader", "reports what it read"), next, broken);
        }
    }
}

fn start_reading(state: &mut State) {
    let floor = state.floor;
    let reader = &mut state.reader;
    reader.at = ReaderAt::Next;
    reader.from = floor;
    reader.slot = floor;
    reader.misfit = false;
    reader.seen = State::START.reader.seen;
    reader.previous_epoch = 0;
}

struct WriterStep<'a> {
    config: &'a Config,
    state: &'a State,
    number: usize,
}

impl WriterStep<'_> {
    fn writer(&self) -> Writer {
        self.state.writers[self.number]
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.config.mutant == Some(mutant)
    }

    fn emit(&self, sink: &mut impl Sink, what: &'static str, writer: Writer) {
        self.emit_with(sink, what, writer, |_| {}, None);
    }

    fn emit_with(
        &self,
        sink: &mut impl Sink,
        what: &'static str,
        writer: Writer,
        change: impl FnOnce(&mut State),
        broken: Option<Violation>,
    ) {
        let mut next = self.state.clone();
        next.writers[self.number] = writer;
        change(&mut next);
        sink.next((WRITERS[self.number], what), next, broken);
    }

    fn all(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        match writer.at {
            At::Down => self.start(sink),
            At::TakeEpoch => self.take_epoch(sink),
            At::ReadFloor => {
                let slot = self.state.floor;
                let fresh = Writer {
                    at: At::ReadNext,
                    from: slot,
                    slot,
                    previous: 0,
                    previous_epoch: 0,
                    misfit: false,
                    ..writer
                };
                self.emit(sink, "reads the floor", fresh);
            }
            At::ReadNext => self.read_next(sink),
            At::RecheckFloor => self.recheck_floor(sink),
            At::EarlyProbe if self.superseded() => {
                self.emit(sink, "sees a newer epoch and stops", Writer::DOWN);
            }
            At::EarlyProbe => {
                let next = Writer {
                    at: At::Create,
                    ..writer
                };
                self.emit(sink, "sees no newer epoch", next);
            }
            At::Create => self.create(sink),
            At::ProbeFloor => self.probe_floor(sink),
            At::Probe => self.probe(sink),
        }
        if writer.at != At::Down {
            self.emit(sink, "crashes", Writer::DOWN);
        }
    }

    fn superseded(&self) -> bool {
        self.state.epochs[self.writer().epoch as usize + 1] != 0
    }

    fn start(&self, sink: &mut impl Sink) {
        if self.state.starts == self.config.starts {
            return;
        }
        let incarnation = self.state.starts + 1;
        let writer = self.look_for_epoch(Writer {
            incarnation,
            ..Writer::DOWN
        });
        let change = |next: &mut State| next.starts = incarnation;
        self.emit_with(
            sink,
            "starts and looks for the highest epoch",
            writer,
            change,
            None,
        );
    }

    fn look_for_epoch(&self, writer: Writer) -> Writer {
        let highest = self.state.highest_epoch();
        if self.is(Mutant::ReuseEpoch) && highest > 0 {
            Writer {
                at: At::ReadFloor,
                epoch: highest,
                ..writer
            }
        } else if (highest as usize) < EPOCHS_MAX {
            Writer {
                at: At::TakeEpoch,
                epoch: highest + 1,
                ..writer
            }
        } else {
            Writer::DOWN
        }
    }

    fn take_epoch(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        let (number, owner) = (writer.epoch as usize, writer.incarnation);
        let own = Writer {
            at: At::ReadFloor,
            ..writer
        };
        match self.state.epochs[number] {
            0 => {
                let apply = |next: &mut State| next.epochs[number] = owner;
                self.emit_with(sink, "takes its epoch", own, apply, None);
                if self.config.lost_replies {
                    self.emit_with(sink, "takes its epoch, reply lost", writer, apply, None);
                }
                self.send_late(
                    sink,
                    Late::Epoch {
                        number: writer.epoch,
                        owner,
                    },
                );
            }
            holder
                if self.is(Mutant::ExistsIsOwn)
                    || holder == owner && !self.is(Mutant::ExistsIsRival) =>
            {
                let shared = (holder != owner).then_some(Violation::EpochShared);
                self.emit_with(sink, "finds its epoch taken by itself", own, |_| {}, shared);
            }
            _ => {
                let again = self.look_for_epoch(writer);
                self.emit(sink, "finds its epoch taken by another", again);
            }
        }
    }

    /// The create is on its way; the writer has no answer and will try again.
    fn send_late(&self, sink: &mut impl Sink, late: Late) {
        let used = self.state.late.iter().flatten().count();
        if used >= self.config.late || self.state.late.contains(&Some(late)) {
            return;
        }
        let change = |next: &mut State| {
            next.late[used] = Some(late);
            next.late[..=used].sort_unstable();
        };
        self.emit_with(
            sink,
            "sends a create that will land late",
            self.writer(),
            change,
            None,
        );
    }

    fn read_next(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        let entry = self.state.slots[writer.slot as usize];
        if entry.epoch > writer.epoch && !self.is(Mutant::GoesOnPastNewerEpoch) {
            self.emit(
                sink,
                "reads an entry of a newer epoch and stops",
                Writer::DOWN,
            );
            return;
        }
        let fits = entry.epoch >= writer.previous_epoch
            && (writer.slot == writer.from || entry.previous == writer.previous);
        let next = if entry.id != 0 && fits {
            Writer {
                slot: writer.slot + 1,
                previous: entry.id,
                previous_epoch: entry.epoch,
                ..writer
            }
        } else {
            Writer {
                at: At::RecheckFloor,
                misfit: entry.id != 0,
                ..writer
            }
        };
        self.emit(sink, "reads the next entry", next);
    }

    fn recheck_floor(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        if self.state.floor > writer.from && !self.is(Mutant::NoFloorRecheck) {
            let again = Writer {
                at: At::ReadFloor,
                ..writer
            };
            self.emit(sink, "sees a higher floor and begins again", again);
        } else if writer.misfit {
            let broken = Some(Violation::ReaderSawDamage);
            self.emit_with(sink, "finds the chain broken", Writer::DOWN, |_| {}, broken);
        } else if self.is(Mutant::NoFence) {
            let open = self.about_to_create(Writer {
                fenced_in: true,
                ..writer
            });
            let (epoch, slot) = (writer.epoch as usize, writer.slot);
            self.emit_with(
                sink,
                "opens",
                open,
                |next| next.opened_at[epoch] = slot,
                None,
            );
        } else {
            let next = self.about_to_create(writer);
            self.emit(sink, "is at the end of the ledger", next);
        }
    }

    /// The writer with new content for its next slot, under a new write id.
    fn about_to_create(&self, writer: Writer) -> Writer {
        let at = if writer.slot > self.config.slots {
            return Writer::DOWN;
        } else if self.is(Mutant::ProbeBeforeCreate) {
            At::EarlyProbe
        } else {
            At::Create
        };
        Writer {
            at,
            writes: writer.writes + 1,
            ..writer
        }
    }

    fn create(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        let (entry, slot) = (writer.entry(), writer.slot as usize);
        let found = self.state.slots[slot];
        let at = if writer.fenced_in || self.is(Mutant::NoFloorProbeAtFence) {
            At::Probe
        } else {
            At::ProbeFloor
        };
        let done = Writer { at, ..writer };
        if found.id == 0 {
            let apply = |next: &mut State| next.slots[slot] = entry;
            self.emit_with(sink, "creates its entry", done, apply, None);
            if self.config.lost_replies {
                self.emit_with(sink, "creates its entry, reply lost", writer, apply, None);
            }
            self.send_late(
                sink,
                Late::Entry {
                    slot: writer.slot,
                    entry,
                },
            );
        } else if self.is(Mutant::ExistsIsOwn)
            || found.id == entry.id && !self.is(Mutant::ExistsIsRival)
        {
            self.emit(sink, "finds its entry there already", done);
        } else if writer.fenced_in || found.epoch >= writer.epoch {
            self.emit(sink, "finds a rival's entry and stops", Writer::DOWN);
        } else if found.previous == writer.previous {
            let adopted = Writer {
                slot: writer.slot + 1,
                previous: found.id,
                previous_epoch: found.epoch,
                ..writer
            };
            let next = self.about_to_create(adopted);
            self.emit(sink, "adopts an entry of an older epoch", next);
        } else {
            let again = Writer {
                at: At::ReadFloor,
                ..writer
            };
            self.emit(
                sink,
                "finds an entry that does not fit and reads again",
                again,
            );
        }
    }

    fn probe_floor(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        let at = if self.state.floor > writer.slot {
            At::ReadFloor
        } else {
            At::Probe
        };
        self.emit(sink, "looks at the floor", Writer { at, ..writer });
    }

    fn probe(&self, sink: &mut impl Sink) {
        let writer = self.writer();
        let skipped = self.is(Mutant::NoProbe) || self.is(Mutant::ProbeBeforeCreate);
        if self.superseded() && !skipped {
            self.emit(sink, "sees a newer epoch and stops", Writer::DOWN);
            return;
        }
        let (slot, epoch) = (writer.slot, writer.epoch as usize);
        let id = writer.entry().id;
        let hidden = slot < self.state.floor || self.state.slots[slot as usize].id != id;
        let broken = if hidden {
            Some(Violation::CommittedHidden)
        } else if self.state.highest_open() > writer.epoch {
            Some(Violation::CommittedAfterTakeover)
        } else if self.state.committed_max >= slot {
            Some(Violation::OrderReversed)
        } else {
            None
        };
        let open = self.about_to_create(Writer {
            fenced_in: true,
            slot: slot + 1,
            previous: id,
            previous_epoch: writer.epoch,
            ..writer
        });
        let change = |next: &mut State| {
            next.committed[slot as usize] = id;
            next.committed_max = next.committed_max.max(slot);
            if next.opened_at[epoch] == 0 {
                next.opened_at[epoch] = slot;
            }
        };
        self.emit_with(sink, "reports its entry as committed", open, change, broken);
    }
}
