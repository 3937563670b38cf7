//! The decisions of the protocol, apart from all IO. `specs/ledger` says why each is needed.

use borealis_base::WriteId;

use crate::numbered::EntryHead;
use crate::object::HeadDigest;

/// What a writer meant to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) epoch: u64,
    pub(super) write_id: WriteId,
    pub(super) previous: HeadDigest,
    /// Whether this is the fence, the writer's first entry.
    pub(super) fence: bool,
}

/// What to do where the name of an entry is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnExists {
    /// It is this very create, whose reply was lost.
    Own,
    /// A last entry of an older writer: take it in, and fence after it.
    Adopt,
    /// It does not follow what was read: the floor has moved meanwhile.
    ReadAgain,
    /// Another writer has taken over.
    Fenced {
        /// Its epoch.
        by: u64,
    },
    /// An older writer's entry after this writer's fence, which cannot be: either this writer is
    /// superseded too and its place was removed, or the ledger is damaged.
    Impossible,
}

/// Decides on an entry found where `intent` was to be created.
pub(super) fn on_exists(intent: &Intent, found: &EntryHead) -> OnExists {
    if found.write_id == intent.write_id {
        OnExists::Own
    } else if found.epoch >= intent.epoch {
        OnExists::Fenced { by: found.epoch }
    } else if !intent.fence {
        OnExists::Impossible
    } else if found.previous == intent.previous {
        OnExists::Adopt
    } else {
        OnExists::ReadAgain
    }
}

/// Whether entries read from `first` on can be trusted, `lowest` being the lowest entry kept as of
/// after they were read. Below it, entries are removed, and a stale create may have put others there.
pub(super) fn reading_holds(first: u64, lowest: u64) -> bool {
    lowest <= first
}

/// Whether a fence at `number` counts, `lowest` being the lowest entry kept as of after it was created.
pub(super) fn fence_holds(number: u64, lowest: u64) -> bool {
    lowest <= number
}

#[cfg(test)]
mod tests {
    use super::*;
    use borealis_base::Timestamp;

    #[test]
    fn what_is_found_decides() {
        let intent = |fence| Intent {
            epoch: 5,
            write_id: WriteId([1; 16]),
            previous: [7; 32],
            fence,
        };
        let found = |epoch, id, previous| EntryHead {
            owner: [0; 16],
            number: 9,
            epoch,
            write_id: WriteId([id; 16]),
            previous: [previous; 32],
            recorded_at: Timestamp(0),
            read_back: 0,
        };
        for fence in [false, true] {
            let on = |found: EntryHead| on_exists(&intent(fence), &found);
            assert_eq!(on(found(5, 1, 7)), OnExists::Own);
            assert_eq!(on(found(6, 2, 7)), OnExists::Fenced { by: 6 });
            assert_eq!(on(found(5, 2, 7)), OnExists::Fenced { by: 5 });
        }
        assert_eq!(on_exists(&intent(true), &found(4, 2, 7)), OnExists::Adopt);
        assert_eq!(
            on_exists(&intent(true), &found(4, 2, 8)),
            OnExists::ReadAgain
        );
        assert_eq!(
            on_exists(&intent(false), &found(4, 2, 7)),
            OnExists::Impossible
        );
    }
}
