//! What there is at one moment, what promises hold of it, and what must not be.

use super::{Bounds, Mutant, Order, Target, Violation};

/// Items by bit: base backups 0 to 2, that of the writer, log after base backups 0 to 2, the partial base backup.
pub(crate) const ITEM_NAMES: [&str; 8] = [
    "base-0", "base-1", "base-2", "base-3", "log-0", "log-1", "log-2", "partial",
];
pub(crate) const NEW: u8 = 3;
pub(crate) const BASES: u8 = 0b1111;
pub(crate) const PARTIAL: u8 = 1 << 7;
/// The pack of the writer's base backup that nothing shares. Pack `n` is shared by base backups `n - 1` and `n`.
const NEW_PACK: u8 = 1 << 4;

pub(crate) const fn base(number: u8) -> u8 {
    1 << number
}

const fn log(number: u8) -> u8 {
    1 << (4 + number)
}

/// The pack that whatever takes over pages from a base backup refers to.
pub(crate) const fn taken_over(parent: u8) -> u8 {
    1 << (parent + 1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ReferenceAt {
    Idle,
    /// Its creator saw what it needs.
    Looked,
    /// It stands; its creator has not looked again.
    Appended,
    /// It stands, and its creator is about to delete it.
    GivesUp,
    Acknowledged,
    /// It stands, and its creator has gone without a word.
    Orphan,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    pub(crate) at: ReferenceAt,
    /// Index in the targets of the bounds.
    pub(crate) target: u8,
    /// What its creator saw that it needs.
    pub(crate) needs: u8,
}

impl Reference {
    pub(crate) fn stands(self) -> bool {
        use ReferenceAt::{Acknowledged, Appended, GivesUp, Orphan};
        matches!(self.at, Appended | GivesUp | Acknowledged | Orphan)
    }
}

/// Where a maintainer stands. It may sleep anywhere for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum At {
    Idle,
    /// It has read, and knows what promises hold.
    Planned {
        promised: u8,
        known: u8,
    },
    /// It has read again what hides `marked`.
    Checking {
        mark: u8,
        kept: u8,
        marked: u8,
    },
    /// Only with [`Mutant::KeptLater`].
    Keeping {
        kept: u8,
    },
    /// It reads what is left, in several steps.
    Collecting(Left),
    /// It deletes the packs in `doomed`, the log in `targets`, then the manifests in `free`.
    Deleting {
        targets: u8,
        doomed: u8,
        free: u8,
    },
}

/// What a maintainer has read of what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Left {
    pub(crate) step: u8,
    /// What it is going to delete.
    pub(crate) targets: u8,
    /// First half of reading a lineage, then what is left of it.
    pub(crate) own: u8,
    pub(crate) child: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Maintainer {
    /// Zero: none. The higher one has fenced the lower one.
    pub(crate) epoch: u8,
    pub(crate) at: At,
    /// The references that it read before its mark. Only with [`Mutant::OldReferences`].
    pub(crate) old: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum WriterAt {
    Idle,
    /// `before`: marks that were not there when it began.
    Underway {
        parent: u8,
        before: u8,
    },
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    pub(crate) readings: u8,
    /// The base backup that it restores; none is 7.
    pub(crate) using: u8,
    pub(crate) log: bool,
    /// Marks that hid nothing from it when it read.
    pub(crate) before: u8,
}

/// A child lineage's first base backup takes over from the parent's, its second one from its first. Its own expiry is one
/// step: the first one is not dropped while the second one is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Child {
    None,
    FirstUnderway,
    First,
    SecondUnderway,
    Both,
    Second,
    Ended,
}

impl Child {
    /// Base backups that its ledger says, by bit.
    pub(crate) fn committed(self) -> u8 {
        match self {
            Self::None | Self::FirstUnderway => 0,
            Self::First | Self::SecondUnderway => 1,
            Self::Both | Self::Second | Self::Ended => 3,
        }
    }

    /// Base backups that its maintenance has dropped, by bit. Their manifests are gone at once.
    pub(crate) fn dropped(self) -> u8 {
        match self {
            Self::Second => 1,
            Self::Ended => 3,
            _ => 0,
        }
    }
}

/// Everything at one moment. Sets of items, marks and packs are bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) visible: u8,
    /// What each mark hides that was not looked at again.
    pub(crate) marked: [u8; 3],
    /// What each mark hides for ever.
    pub(crate) dropped: [u8; 3],
    pub(crate) marks: u8,
    /// Marks that a grace period has passed since.
    pub(crate) aged: u8,
    pub(crate) checked: u8,
    /// What the maintenance says was deleted.
    pub(crate) deleted: u8,
    /// Manifests and log objects that are gone.
    pub(crate) gone: u8,
    pub(crate) packs_gone: u8,
    /// Base backups below this have left the window.
    pub(crate) window: u8,
    pub(crate) window_grew: bool,
    /// Nothing is committed in the ledger any more.
    pub(crate) retired: bool,
    pub(crate) maintainers: [Maintainer; 2],
    pub(crate) references: [Reference; 3],
    pub(crate) writer: WriterAt,
    pub(crate) writer_killed: bool,
    /// What the partial and the new base backup took over from.
    pub(crate) partial_parent: u8,
    pub(crate) new_parent: u8,
    pub(crate) child: Child,
    pub(crate) child_parent: u8,
    pub(crate) reader: Reader,
}

impl State {
    pub(crate) fn start(bounds: &Bounds) -> Self {
        let mut visible = (0..bounds.backups).map(base).sum();
        if bounds.logs {
            visible |= (0..bounds.backups).map(log).sum::<u8>();
        }
        let nobody = Maintainer {
            epoch: 0,
            at: At::Idle,
            old: 0,
        };
        let nothing = Reference {
            at: ReferenceAt::Ended,
            target: 0,
            needs: 0,
        };
        let mut references = [nothing; 3];
        for (number, reference) in (0..bounds.standing + bounds.creators).zip(&mut references) {
            if number < bounds.standing {
                reference.at = ReferenceAt::Acknowledged;
                reference.target = number as u8;
            } else {
                reference.at = ReferenceAt::Idle;
            }
        }
        Self {
            visible,
            marked: [0; 3],
            dropped: [0; 3],
            marks: 0,
            aged: 0,
            checked: 0,
            deleted: 0,
            gone: 0,
            packs_gone: 0,
            window: 0,
            window_grew: false,
            retired: false,
            maintainers: [nobody; 2],
            references,
            writer: if bounds.writer {
                WriterAt::Idle
            } else {
                WriterAt::Ended
            },
            writer_killed: false,
            partial_parent: 0,
            new_parent: 0,
            child: Child::None,
            child_parent: 0,
            reader: Reader {
                readings: bounds.readings,
                using: 7,
                log: false,
                before: 0,
            },
        }
    }

    pub(crate) fn unchecked(&self) -> u8 {
        self.marked.iter().fold(0, |all, marked| all | marked)
    }

    pub(crate) fn all_dropped(&self) -> u8 {
        self.dropped.iter().fold(0, |all, dropped| all | dropped)
    }

    /// What was not dropped.
    pub(crate) fn alive(&self) -> u8 {
        self.visible | self.unchecked()
    }

    /// Items that the ledger says.
    pub(crate) fn committed(&self) -> u8 {
        self.alive() | self.all_dropped() | self.deleted
    }

    /// What may be deleted by now.
    pub(crate) fn deletable(&self) -> u8 {
        (0..3_u8)
            .filter(|mark| self.aged >> mark & 1 == 1)
            .fold(0, |all, mark| all | self.dropped[mark as usize])
    }

    /// What readers are told of.
    pub(crate) fn told(&self, bounds: &Bounds) -> u8 {
        match bounds.order {
            Order::GraceThenCheck => self.visible,
            Order::CheckThenGrace => self.alive(),
        }
    }

    /// The packs that the manifests of `items` name.
    pub(crate) fn packs(&self, items: u8) -> u8 {
        let mut packs = 0;
        for number in (0..NEW).filter(|number| items & base(*number) != 0) {
            packs |= 1 << number | taken_over(number);
        }
        if items & base(NEW) != 0 {
            packs |= NEW_PACK | taken_over(self.new_parent);
        }
        if items & PARTIAL != 0 {
            packs |= taken_over(self.partial_parent);
        }
        packs
    }

    /// What a reference to `target` needs where only `usable` can be used.
    pub(crate) fn needs(bounds: &Bounds, target: Target, usable: u8) -> Option<u8> {
        let (to, late) = match target {
            Target::Birth(number) => return Some(base(number)).filter(|item| item & usable != 0),
            Target::Early(number) => (number, false),
            Target::Late(number) => (number, true),
        };
        let from_base = |from: u8| {
            let logs = (from..to + u8::from(late)).filter(|_| bounds.logs);
            base(from) | logs.map(log).sum::<u8>()
        };
        ((0..=to).rev())
            .map(from_base)
            .find(|needs| needs & !usable == 0)
    }

    /// What promises hold of `usable`, by the references (bits) and the ledger (`known`) that were read.
    pub(crate) fn promised(&self, bounds: &Bounds, usable: u8, references: u8, known: u8) -> u8 {
        let mut promised = 0;
        for number in self.window..=NEW {
            promised |= base(number);
            if number < NEW {
                promised |= log(number);
            }
        }
        let partial_counts = known & base(NEW) == 0;
        if partial_counts && self.window < bounds.backups {
            promised |= PARTIAL;
        }
        let protects_newest = bounds.late && bounds.mutant != Some(Mutant::MarksNewestOfOpen);
        if protects_newest && !self.retired {
            promised |= 1 << (known & BASES).ilog2();
            promised |= if partial_counts { PARTIAL } else { 0 };
        }
        for (number, reference) in (0..).zip(&self.references) {
            if references >> number & 1 == 1 {
                let target = bounds.targets[reference.target as usize];
                promised |= Self::needs(bounds, target, usable).unwrap_or(0);
            }
        }
        promised & usable
    }

    pub(crate) fn standing(&self) -> u8 {
        let standing =
            |(number, reference): (u8, &Reference)| u8::from(reference.stands()) << number;
        (0..).zip(&self.references).map(standing).sum()
    }

    pub(crate) fn highest_epoch(&self) -> u8 {
        self.maintainers[0].epoch.max(self.maintainers[1].epoch)
    }

    /// Items all of whose objects are there.
    fn whole(&self) -> u8 {
        let whole = |item: &u8| self.packs(*item) & self.packs_gone == 0;
        let items = (0..8).map(|number| 1 << number);
        items.filter(whole).sum::<u8>() & !self.gone & self.committed()
    }

    fn child_needs(&self) -> u8 {
        if self.child.committed() & !self.child.dropped() == 0 {
            return 0;
        }
        taken_over(self.child_parent)
    }

    /// What this state breaks.
    pub(crate) fn check(&self, bounds: &Bounds) -> Option<Violation> {
        let whole = self.whole();
        let lost = |reference: &&Reference| {
            reference.at == ReferenceAt::Acknowledged
                && Self::needs(bounds, bounds.targets[reference.target as usize], whole).is_none()
        };
        // A child lineage that has its own base backups needs no longer what it was born of.
        let born = |reference: &&Reference| {
            let birth = matches!(bounds.targets[reference.target as usize], Target::Birth(_));
            birth && self.child.committed() != 0
        };
        if self.references.iter().filter(lost).any(|r| !born(&r)) {
            return Some(Violation::ReferenceLost);
        }
        if self.alive() & !whole != 0 || self.child_needs() & self.packs_gone != 0 {
            return Some(Violation::ItemLost);
        }
        let reader = self.reader;
        if reader.using <= NEW {
            let log = if reader.log { log(reader.using) } else { 0 };
            if (base(reader.using) | log) & !whole != 0 {
                return Some(Violation::ReaderMissed);
            }
        }
        None
    }

    /// Whether everything dropped is gone and said to be, and every pack is named by something that is not.
    pub(crate) fn all_gone(&self) -> bool {
        let manifests = self.committed() & !self.gone;
        let stored = self.packs(self.committed()) & !self.packs_gone;
        self.all_dropped() == 0 && stored & !self.packs(manifests) & !self.child_needs() == 0
    }

    pub(crate) fn something_was_deleted(&self) -> bool {
        self.packs_gone != 0
    }

    /// Whether an acknowledged reference can't be restored at the moment.
    pub(crate) fn refuses_a_reference(&self, bounds: &Bounds) -> bool {
        let told = self.told(bounds);
        self.references.iter().any(|reference| {
            let target = bounds.targets[reference.target as usize];
            reference.at == ReferenceAt::Acknowledged
                && !matches!(target, Target::Birth(_))
                && Self::needs(bounds, target, told).is_none()
        })
    }

    /// Clears what no rule looks at any more, so that states that differ in it alone are one.
    pub(crate) fn normalize(&mut self, bounds: &Bounds) {
        let highest = self.highest_epoch();
        let fenced = bounds.mutant != Some(Mutant::NoFence);
        for maintainer in &mut self.maintainers {
            let appends = !matches!(maintainer.at, At::Collecting(_) | At::Deleting { .. });
            if fenced && maintainer.epoch < highest && appends {
                maintainer.at = At::Idle;
            }
        }
        for reference in &mut self.references {
            if reference.at == ReferenceAt::Ended {
                reference.target = 0;
            }
            if !matches!(reference.at, ReferenceAt::Looked | ReferenceAt::Appended) {
                reference.needs = 0;
            }
        }
    }

    /// The log that is restored with a base backup, if there is.
    pub(crate) fn log_of(number: u8, told: u8) -> bool {
        number < NEW && told & log(number) != 0
    }
}
