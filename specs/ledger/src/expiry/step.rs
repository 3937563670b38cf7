//! What can happen next.

use super::state::{
    At, BASES, Child, Left, Maintainer, NEW, PARTIAL, Reference, ReferenceAt, State, WriterAt,
    base, taken_over,
};
use super::{About, Bounds, Mutant, Order, Step, Target};

type Found = Vec<(Step, State)>;

/// Gives every state that can follow `state`.
pub(crate) fn steps(bounds: &Bounds, state: &State, out: &mut Found) {
    let mut all = Steps { bounds, state, out };
    all.time();
    for number in 0..bounds.standing + bounds.creators {
        all.reference(number);
    }
    all.writer();
    all.child();
    all.reader();
    for number in 0..2 {
        all.maintainer(number);
    }
}

struct Steps<'a> {
    bounds: &'a Bounds,
    state: &'a State,
    out: &'a mut Found,
}

const MAINTAINERS: [&str; 2] = ["maintainer 1", "maintainer 2"];

impl Steps<'_> {
    fn is(&self, mutant: Mutant) -> bool {
        self.bounds.mutant == Some(mutant)
    }

    fn emit(
        &mut self,
        who: &'static str,
        what: &'static str,
        about: About,
        change: impl FnOnce(&mut State),
    ) {
        let mut next = *self.state;
        change(&mut next);
        self.out.push(((who, what, about), next));
    }

    fn time(&mut self) {
        let state = self.state;
        let committed = state.committed() & base(NEW) != 0;
        if state.window < self.bounds.backups {
            let left = About::Items(base(state.window));
            self.emit("time", "takes from the window", left, |s| s.window += 1);
        } else if committed && state.window <= NEW {
            let left = About::Items(base(NEW));
            self.emit("time", "takes from the window", left, |s| {
                s.window = NEW + 1;
            });
        }
        if self.bounds.window_grows && !state.window_grew && state.window > 0 {
            self.emit("user", "makes the window longer", About::Nothing, |s| {
                s.window -= 1;
                s.window_grew = true;
            });
        }
        if self.bounds.late && !state.retired {
            // Whoever retires a lineage has fenced its writer first.
            self.emit("user", "retires the lineage", About::Nothing, |s| {
                s.retired = true;
                s.writer = WriterAt::Ended;
            });
        }
        for mark in 0..state.marks {
            let bit = 1 << mark;
            let begun = match self.bounds.order {
                Order::GraceThenCheck => true,
                Order::CheckThenGrace => state.checked & bit != 0,
            };
            let reading = state.reader.using <= NEW && state.reader.before & bit != 0;
            let writing =
                matches!(state.writer, WriterAt::Underway { before, .. } if before & bit != 0);
            let waits = reading || writing && !self.bounds.late;
            if begun && state.aged & bit == 0 && (!waits || self.is(Mutant::NoGrace)) {
                self.emit("time", "ends a grace period", About::Nothing, |s| {
                    s.aged |= bit;
                });
            }
        }
    }

    fn reference(&mut self, number: usize) {
        use ReferenceAt::{Acknowledged, Appended, Ended, GivesUp, Idle, Looked, Orphan};
        let state = self.state;
        let reference = state.references[number];
        if reference.at == Idle {
            self.look(number);
            return;
        }
        let target = self.bounds.targets[reference.target as usize];
        let mutant = self.bounds.mutant;
        let mut to = |what, at| {
            self.emit("creator", what, About::Reference(target), |s| {
                s.references[number].at = at;
            });
        };
        match reference.at {
            Idle | Ended => {}
            Looked => {
                to("appends", Appended);
                to("is killed before it appended", Ended);
            }
            Appended => {
                let hidden = state.unchecked() | state.all_dropped();
                let refuses = match mutant {
                    Some(Mutant::NoSecondLook) => false,
                    Some(Mutant::AsksWhetherHidden) => reference.needs & hidden != 0,
                    _ => reference.needs & !state.visible != 0,
                };
                if refuses {
                    to("looks again and gives up", GivesUp);
                } else {
                    to("looks again and acknowledges", Acknowledged);
                }
                to("is killed after it appended", Orphan);
            }
            GivesUp => {
                to("deletes what it gave up", Ended);
                to("is killed before it deleted", Orphan);
            }
            Acknowledged | Orphan => {
                let birth = matches!(target, Target::Birth(_));
                if !birth || state.child != Child::FirstUnderway {
                    self.emit("user", "deletes", About::Reference(target), |s| {
                        s.references[number].at = Ended;
                    });
                }
            }
        }
    }

    fn look(&mut self, number: usize) {
        for (index, target) in (0..).zip(self.bounds.targets) {
            let birth = |target: &Target| matches!(target, Target::Birth(_));
            let under_way = |r: &Reference| {
                !matches!(r.at, ReferenceAt::Idle | ReferenceAt::Ended)
                    && birth(&self.bounds.targets[r.target as usize])
            };
            let second_child = birth(target)
                && (self.state.child != Child::None || self.state.references.iter().any(under_way));
            let needs = State::needs(self.bounds, *target, self.state.visible);
            if let Some(needs) = needs.filter(|_| !second_child) {
                self.emit(
                    "creator",
                    "sees what it needs for",
                    About::Reference(*target),
                    |s| {
                        let reference = &mut s.references[number];
                        reference.at = ReferenceAt::Looked;
                        reference.target = index;
                        reference.needs = needs;
                    },
                );
            }
        }
    }

    fn writer(&mut self) {
        let state = self.state;
        match state.writer {
            WriterAt::Ended => {}
            WriterAt::Idle => {
                let mut may = state.visible;
                if self.is(Mutant::InheritsFromMarked) {
                    may |= state.unchecked();
                }
                let older = may & BASES & !base(NEW);
                let (parent, from) = if may & PARTIAL != 0 {
                    (state.partial_parent, PARTIAL)
                } else if older != 0 {
                    let newest = older.ilog2() as u8;
                    (newest, base(newest))
                } else {
                    return; // a base backup that takes over nothing needs nothing
                };
                let before = 0b111 << state.marks & 0b111;
                self.emit(
                    "writer",
                    "begins, taking over from",
                    About::Items(from),
                    |s| {
                        s.writer = WriterAt::Underway { parent, before };
                    },
                );
            }
            WriterAt::Underway { parent, .. } => {
                self.emit("writer", "commits", About::Items(base(NEW)), |s| {
                    s.visible |= base(NEW);
                    s.new_parent = parent;
                    s.writer = WriterAt::Ended;
                });
                self.emit("writer", "gives up", About::Nothing, |s| {
                    s.writer = WriterAt::Ended;
                });
                if self.bounds.partial && state.committed() & PARTIAL == 0 {
                    self.emit("writer", "commits", About::Items(PARTIAL), |s| {
                        s.visible |= PARTIAL;
                        s.partial_parent = parent;
                    });
                }
                if self.bounds.partial && !state.writer_killed {
                    self.emit(
                        "writer",
                        "is killed and will begin again",
                        About::Nothing,
                        |s| {
                            s.writer = WriterAt::Idle;
                            s.writer_killed = true;
                        },
                    );
                }
            }
        }
    }

    fn child(&mut self) {
        let state = self.state;
        let deletes = self.is(Mutant::ChildDeletesTaken);
        let mut to = |what, child| {
            self.emit("child", what, About::Nothing, |s| {
                s.child = child;
                if deletes && child == Child::Ended {
                    s.packs_gone |= taken_over(s.child_parent);
                }
            });
        };
        match state.child {
            Child::FirstUnderway => {
                to("commits its first base backup", Child::First);
                to("is killed before its first base backup", Child::None);
            }
            Child::First => {
                to("begins its second base backup", Child::SecondUnderway);
                to("drops all that it has", Child::Ended);
            }
            Child::SecondUnderway => to("commits its second base backup", Child::Both),
            Child::Both => to("drops its first base backup", Child::Second),
            Child::Second => to("drops all that it has", Child::Ended),
            Child::Ended => {}
            Child::None => {
                for reference in state.references {
                    if reference.at != ReferenceAt::Acknowledged {
                        continue;
                    }
                    if let Target::Birth(parent) = self.bounds.targets[reference.target as usize] {
                        self.emit(
                            "child",
                            "begins its first base backup",
                            About::Nothing,
                            |s| {
                                s.child = Child::FirstUnderway;
                                s.child_parent = parent;
                            },
                        );
                    }
                }
            }
        }
    }

    fn reader(&mut self) {
        let state = self.state;
        let reader = state.reader;
        if reader.using <= NEW {
            self.emit("reader", "has read all it needs", About::Nothing, |s| {
                s.reader.using = 7;
                s.reader.log = false;
                s.reader.before = 0;
            });
        } else if reader.readings > 0 {
            let told = state.told(self.bounds);
            for number in (0..=NEW).filter(|number| told & base(*number) != 0) {
                self.emit("reader", "is told of", About::Items(base(number)), |s| {
                    s.reader.readings -= 1;
                    s.reader.using = number;
                    s.reader.log = State::log_of(number, told);
                    s.reader.before = match self.bounds.order {
                        Order::GraceThenCheck => 0b111 << state.marks & 0b111,
                        Order::CheckThenGrace => 0b111 & !state.checked,
                    };
                });
            }
        }
    }

    fn maintainer(&mut self, who: usize) {
        let state = self.state;
        let me = state.maintainers[who];
        let name = MAINTAINERS[who];
        let highest = state.highest_epoch();
        // Which one of two that never ran comes first does not matter.
        if highest < self.bounds.opens && (who == 0 || highest > 0) {
            let opened = Maintainer {
                epoch: highest + 1,
                at: At::Idle,
                old: 0,
            };
            self.emit(name, "takes over", About::Nothing, |s| {
                s.maintainers[who] = opened;
            });
        }
        if me.epoch == 0 {
            return;
        }
        let appends = me.epoch == highest || self.is(Mutant::NoFence);
        match me.at {
            At::Idle => {
                if appends {
                    self.plan(who);
                    self.check_again(who);
                    self.say_deleted(who);
                }
                let left = Left {
                    step: 0,
                    targets: 0,
                    own: 0,
                    child: 0,
                };
                if state.deletable() != 0 {
                    self.collect(who, left);
                }
            }
            At::Planned { promised, known } if appends => self.mark(who, promised, known),
            At::Checking { mark, kept, marked } if appends => self.checked(who, mark, kept, marked),
            At::Keeping { kept } if appends => {
                self.emit(name, "appends what is kept", About::Items(kept), |s| {
                    s.maintainers[who].at = At::Idle;
                    s.visible |= kept;
                    s.dropped.iter_mut().for_each(|dropped| *dropped &= !kept);
                });
            }
            At::Planned { .. } | At::Checking { .. } | At::Keeping { .. } => {}
            At::Collecting(left) => self.collect(who, left),
            At::Deleting {
                targets,
                doomed,
                free,
            } => self.delete(who, targets, doomed, free),
        }
    }

    fn plan(&mut self, who: usize) {
        let state = self.state;
        let usable = if self.is(Mutant::OtherMarksAreGone) || self.is(Mutant::PlanForgetsMarks) {
            state.visible
        } else {
            state.alive()
        };
        let known = state.committed();
        let references = state.standing();
        let promised = state.promised(self.bounds, usable, references, known);
        if state.marks < self.bounds.marks && state.visible & !promised != 0 {
            let old = if self.is(Mutant::OldReferences) {
                references
            } else {
                0
            };
            self.emit(MAINTAINERS[who], "reads and plans", About::Nothing, |s| {
                s.maintainers[who].at = At::Planned { promised, known };
                s.maintainers[who].old = old;
            });
        }
    }

    fn mark(&mut self, who: usize, promised: u8, known: u8) {
        let state = self.state;
        let expired = state.visible & known & !promised;
        if expired != 0 && state.marks < self.bounds.marks {
            self.emit(MAINTAINERS[who], "marks", About::Items(expired), |s| {
                s.marked[s.marks as usize] = expired;
                s.visible &= !expired;
                s.marks += 1;
                s.maintainers[who].at = At::Idle;
            });
        }
    }

    fn check_again(&mut self, who: usize) {
        let state = self.state;
        for mark in 0..state.marks {
            let aged = state.aged >> mark & 1 == 1 || self.bounds.order == Order::CheckThenGrace;
            let marked = state.marked[mark as usize];
            if !aged || marked == 0 {
                continue;
            }
            let usable = if self.is(Mutant::OtherMarksAreGone) || self.is(Mutant::CheckForgetsMarks)
            {
                state.visible | marked
            } else {
                state.alive()
            };
            let references = if self.is(Mutant::OldReferences) {
                state.maintainers[who].old
            } else {
                state.standing()
            };
            let known = state.committed();
            let promised = state.promised(self.bounds, usable, references, known);
            let kept = if self.is(Mutant::NoSecondCheck) {
                0
            } else {
                marked & promised
            };
            self.emit(
                MAINTAINERS[who],
                "reads anew what is marked",
                About::Items(marked),
                |s| {
                    s.maintainers[who].at = At::Checking { mark, kept, marked };
                },
            );
        }
    }

    fn checked(&mut self, who: usize, mark: u8, kept: u8, marked: u8) {
        let later = self.is(Mutant::KeptLater) && kept != 0;
        let rest = if later { marked } else { marked & !kept };
        let what = if kept == 0 {
            "checks and keeps none of"
        } else {
            "checks and keeps some of"
        };
        self.emit(MAINTAINERS[who], what, About::Items(marked), |s| {
            s.marked[mark as usize] = 0;
            s.checked |= 1 << mark;
            s.dropped[mark as usize] |= rest & !s.deleted;
            s.visible = s.visible & !rest | marked & !rest & !s.all_dropped() & !s.deleted;
            s.maintainers[who].at = if later {
                At::Keeping { kept }
            } else {
                At::Idle
            };
        });
    }

    fn say_deleted(&mut self, who: usize) {
        let done = self.state.all_dropped() & self.state.gone;
        if done != 0 {
            self.emit(
                MAINTAINERS[who],
                "says that it deleted",
                About::Items(done),
                |s| {
                    s.deleted |= done;
                    s.dropped.iter_mut().for_each(|dropped| *dropped &= !done);
                },
            );
        }
    }

    /// What is left is read in this order: maintenance and then ledger of the lineage, the same of its child; then
    /// the manifests.
    fn collect(&mut self, who: usize, left: Left) {
        let (state, mut next) = (self.state, left);
        let own_half = u8::from(self.is(Mutant::ChildrenFirst));
        next.step += 1;
        let dead = state.deletable() | state.deleted;
        if left.step == 4 {
            self.read_manifests(who, left);
            return;
        }
        let own = left.step / 2 == own_half;
        let first = left.step.is_multiple_of(2);
        let maintenance = first != self.is(Mutant::LedgerFirst);
        let what = match (own, maintenance) {
            (true, true) => "reads the maintenance",
            (true, false) => "reads the ledger",
            (false, true) => "reads the child's maintenance",
            (false, false) => "reads the child's ledger",
        };
        if own && maintenance {
            next.targets = state.deletable();
        }
        let (half, is, was) = if own {
            (&mut next.own, state.committed(), dead)
        } else {
            (
                &mut next.child,
                state.child.committed(),
                state.child.dropped(),
            )
        };
        *half = match (first, maintenance) {
            (true, true) => was,
            (true, false) => is,
            (false, true) => *half & !was,
            (false, false) => is & !*half,
        };
        self.emit(MAINTAINERS[who], what, About::Nothing, |s| {
            s.maintainers[who].at = At::Collecting(next);
        });
    }

    fn read_manifests(&mut self, who: usize, left: Left) {
        let state = self.state;
        let mut own = left.own;
        if self.is(Mutant::IgnoresPartial) {
            own &= !PARTIAL;
        }
        let missing = own & state.gone != 0 || left.child & state.child.dropped() != 0;
        if missing && !self.is(Mutant::MissingManifestIsEmpty) {
            self.emit(
                MAINTAINERS[who],
                "misses a manifest and begins again",
                About::Nothing,
                |s| {
                    s.maintainers[who].at = At::Idle;
                },
            );
            return;
        }
        let needed = state.packs(own & !state.gone);
        let child = if left.child & !state.child.dropped() == 0 {
            0
        } else {
            taken_over(state.child_parent)
        };
        let targets = left.targets & !state.gone;
        let mut doomed = state.packs(targets) & !state.packs_gone;
        if !self.is(Mutant::IgnoresManifests) {
            doomed &= !needed & !child;
        }
        let only_child = child & !needed;
        let free = (0..8).map(|number| 1 << number).filter(|item| {
            let held = state.packs(*item) & only_child != 0;
            targets & item != 0 && (!held || self.is(Mutant::ManifestDespiteChild))
        });
        let free = free.sum();
        self.emit(
            MAINTAINERS[who],
            "reads the manifests that are left",
            About::Nothing,
            |s| {
                s.maintainers[who].at = At::Deleting {
                    targets,
                    doomed,
                    free,
                };
            },
        );
    }

    fn delete(&mut self, who: usize, targets: u8, doomed: u8, free: u8) {
        let (state, name) = (self.state, MAINTAINERS[who]);
        let mut nothing = true;
        for pack in (0..8).filter(|pack| doomed & !state.packs_gone & (1 << pack) != 0) {
            nothing = false;
            self.emit(name, "deletes pack", About::Pack(pack), |s| {
                s.packs_gone |= 1 << pack;
            });
        }
        for item in (0..8).map(|number| 1 << number) {
            let is_manifest = item & (BASES | PARTIAL) != 0;
            let packs_first = !self.is(Mutant::ManifestFirst);
            let waits = packs_first && state.packs(item) & doomed & !state.packs_gone != 0;
            let may = if is_manifest { free & item != 0 } else { true };
            if targets & item & !state.gone != 0 && may && !waits {
                nothing = false;
                self.emit(name, "deletes", About::Items(item), |s| s.gone |= item);
            }
        }
        if nothing {
            self.emit(name, "has deleted what it could", About::Nothing, |s| {
                s.maintainers[who].at = At::Idle;
            });
        }
    }
}
