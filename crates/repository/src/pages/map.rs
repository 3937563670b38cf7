//! The page map: where every page of every page file lies.
//!
//! A map is a sorted list of [`Run`]s without overlap, and a length per page file. Every page below
//! its file's length stands in exactly one run. A page of zeros has a run that says so: a page
//! without a run is a defect of the map and never read as zeros.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::wire::{Malformed, Reader, put_varint, put_zigzag};

/// Where pages lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// The pages are all zeros and stored nowhere.
    Zero,
    /// In one frame of one pack.
    Frame {
        /// The pack's number in the manifest's pack table, stable across the manifests of a lineage.
        pack: u32,
        /// The frame's number in the pack.
        frame: u32,
    },
}

/// One page of one page file; orders a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// The page file.
    pub file: u32,
    /// The page. Ends of ranges may be one past the last page that 32 bits can number.
    pub page: u64,
}

impl PageKey {
    /// Before every page.
    pub const MIN: Self = Self { file: 0, page: 0 };

    /// The key of a page.
    pub const fn new(file: u32, page: u64) -> Self {
        Self { file, page }
    }
}

/// Pages `[first, first + count)` of a page file, which lie at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run {
    /// The page file.
    pub file: u32,
    /// The first page.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
    /// Where.
    pub at: Location,
}

impl Run {
    /// The key of the first page.
    pub const fn start(&self) -> PageKey {
        PageKey::new(self.file, self.first as u64)
    }

    /// The key just past the last page.
    pub const fn end(&self) -> PageKey {
        PageKey::new(self.file, self.first as u64 + self.count as u64)
    }

    /// The part of this run within `[from, to)`.
    #[must_use]
    pub fn clip(&self, from: PageKey, to: PageKey) -> Option<Self> {
        let (start, end) = (self.start().max(from), self.end().min(to));
        if start >= end || start.file != self.file {
            return None;
        }
        // `end` may be the start of a later file only if it is not below this run's own end.
        Some(Self {
            first: start.page as u32,
            count: (end.page - start.page) as u32,
            ..*self
        })
    }

    /// Whether `next` goes on where this run ends, at the same place.
    fn continues_with(&self, next: &Self) -> bool {
        self.end() == next.start()
            && self.at == next.at
            && self.count.checked_add(next.count).is_some()
    }
}

/// Appends a run, joined with the last one where it merely continues it.
pub fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.continues_with(&run) => last.count += run.count,
        _ => runs.push(run),
    }
}

/// Makes sorted runs of `pages` (ascending), which lie in one frame.
pub fn runs_of(file: u32, pages: &[u32], at: Location) -> Vec<Run> {
    let mut runs = Vec::new();
    for page in pages {
        push_run(
            &mut runs,
            Run {
                file,
                first: *page,
                count: 1,
                at,
            },
        );
    }
    runs
}

/// Checks that `runs` are sorted, without overlap, not empty and below the top of the page numbers.
pub fn check_order(runs: &[Run]) -> Result<(), Malformed> {
    let mut past = PageKey::MIN;
    for run in runs {
        if run.count == 0 || run.end().page > u64::from(u32::MAX) + 1 {
            return Err(Malformed(format!(
                "a run of page file {} is empty or too long",
                run.file
            )));
        }
        if run.start() < past {
            return Err(Malformed(format!(
                "runs of page file {} overlap at page {}",
                run.file, run.first
            )));
        }
        past = run.end();
    }
    Ok(())
}

/// Keeps of the sorted `runs` what no range of the sorted `cuts` covers.
fn subtract(runs: &[Run], cuts: impl Iterator<Item = (PageKey, PageKey)>) -> Vec<Run> {
    let mut kept = Vec::with_capacity(runs.len());
    let mut cuts = cuts.peekable();
    for run in runs {
        let mut from = run.start();
        while let Some(&(cut_from, cut_to)) = cuts.peek() {
            if cut_from >= run.end() {
                break;
            }
            kept.extend(run.clip(from, cut_from));
            from = from.max(cut_to);
            if cut_to > run.end() {
                break;
            }
            cuts.next();
        }
        kept.extend(run.clip(from, run.end()));
    }
    kept
}

/// Merges two sorted lists that do not overlap.
fn merge(left: &[Run], right: &[Run]) -> Vec<Run> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    loop {
        let next = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) if l.start() < r.start() => left.next(),
            (_, Some(_)) => right.next(),
            (_, None) => left.next(),
        };
        let Some(run) = next else { return merged };
        push_run(&mut merged, *run);
    }
}

/// How a map differs from the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Every page file there now is, with its length in pages.
    lengths: BTreeMap<u32, u32>,
    /// Ranges of the former map that no longer stand, sorted.
    cuts: Vec<(PageKey, PageKey)>,
    /// Pages with a new place, sorted, without overlap.
    runs: Vec<Run>,
}

impl Changes {
    /// The difference between the map of files of lengths `old` and that of `new` lengths, where
    /// `runs` (in any order, without overlap) have new places, and where of the files in `limits`
    /// no page at or above the limit may be taken over.
    ///
    /// The limits matter for a file that became shorter and then longer again between two base
    /// backups: its length alone would let old pages shine through.
    pub fn new(
        old: &BTreeMap<u32, u32>,
        new: BTreeMap<u32, u32>,
        limits: &BTreeMap<u32, u32>,
        mut runs: Vec<Run>,
    ) -> Result<Self, Malformed> {
        runs.sort_unstable_by_key(Run::start);
        check_order(&runs)?;
        for run in &runs {
            let length = new.get(&run.file).copied().unwrap_or(0);
            if run.end().page > u64::from(length) {
                return Err(Malformed(format!(
                    "page {} of page file {} is stored but the file has {length} pages",
                    run.end().page - 1,
                    run.file
                )));
            }
        }
        let cuts = old
            .iter()
            .filter_map(|(file, old_length)| {
                let kept = new.get(file).copied().unwrap_or(0);
                let kept = kept.min(limits.get(file).copied().unwrap_or(u32::MAX));
                (kept < *old_length).then(|| {
                    (
                        PageKey::new(*file, u64::from(kept)),
                        PageKey::new(*file, u64::from(*old_length)),
                    )
                })
            })
            .collect();
        Ok(Self {
            lengths: new,
            cuts,
            runs,
        })
    }

    /// Takes over none of these pages either, of files of lengths `old`: they have new places, or none.
    #[must_use]
    pub fn forgetting(
        mut self,
        old: &BTreeMap<u32, u32>,
        pages: impl IntoIterator<Item = (u32, Range<u32>)>,
    ) -> Self {
        let known = pages.into_iter().filter_map(|(file, pages)| {
            let end = pages.end.min(*old.get(&file)?);
            let key = |page: u32| PageKey::new(file, u64::from(page));
            (pages.start < end).then(|| (key(pages.start), key(end)))
        });
        self.cuts.extend(known);
        self.cuts.sort_unstable();
        self.cuts.dedup_by(|next, kept| {
            let joined = next.0 <= kept.1 && next.0.file == kept.0.file;
            if joined {
                kept.1 = kept.1.max(next.1);
            }
            joined
        });
        self
    }

    /// Every page file with its length in pages.
    pub fn lengths(&self) -> &BTreeMap<u32, u32> {
        &self.lengths
    }

    /// The pages with a new place.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The new runs that reach into `[from, to)`.
    fn runs_within(&self, from: PageKey, to: PageKey) -> impl Iterator<Item = Run> + '_ {
        let begin = self.runs.partition_point(|run| run.end() <= from);
        self.runs
            .iter()
            .skip(begin)
            .map_while(move |run| run.clip(from, to))
    }

    /// Whether anything in `[from, to)` differs.
    pub fn touches(&self, from: PageKey, to: PageKey) -> bool {
        let cut = self.cuts.partition_point(|(_, end)| *end <= from);
        self.runs_within(from, to).next().is_some()
            || self.cuts.get(cut).is_some_and(|(start, _)| *start < to)
    }

    /// The runs that stand in `[from, to)` now, where `old` stood before.
    pub fn apply(&self, old: &[Run], from: PageKey, to: PageKey) -> Vec<Run> {
        let new: Vec<Run> = self.runs_within(from, to).collect();
        let kept = subtract(old, self.cuts.iter().copied());
        let kept = subtract(&kept, new.iter().map(|run| (run.start(), run.end())));
        merge(&kept, &new)
    }
}

/// After every page.
pub const KEY_MAX: PageKey = PageKey {
    file: u32::MAX,
    page: u64::MAX,
};

/// A whole map in memory: 24 bytes a run. One tebibyte of pages in full frames is about a million
/// runs; scattered changes add up to two each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PageMap {
    lengths: BTreeMap<u32, u32>,
    runs: Vec<Run>,
}

/// How much of what a pack stores is still current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PackUse {
    /// Pages of the pack that the map names.
    pub live_pages: u64,
}

impl PageMap {
    /// A map of sorted `runs`, checked to be complete.
    pub fn new(lengths: BTreeMap<u32, u32>, runs: Vec<Run>) -> Result<Self, Malformed> {
        let map = Self { lengths, runs };
        map.check_complete()?;
        Ok(map)
    }

    /// The map after `changes`.
    pub fn apply(&self, changes: &Changes) -> Result<Self, Malformed> {
        let runs = changes.apply(&self.runs, PageKey::MIN, KEY_MAX);
        Self::new(changes.lengths.clone(), runs)
    }

    /// Every page file with its length in pages.
    pub fn lengths(&self) -> &BTreeMap<u32, u32> {
        &self.lengths
    }

    /// All runs in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Checks that every page below its file's length, and no other, is in exactly one run.
    pub fn check_complete(&self) -> Result<(), Malformed> {
        check_order(&self.runs)?;
        let mut holes = Holes::new(&self.lengths);
        for run in &self.runs {
            holes.pass(run)?;
        }
        match holes.finish().first() {
            None => Ok(()),
            Some((file, pages)) => Err(missing(*file, pages.start)),
        }
    }

    /// Where a page lies; `None` at or past the end of its file.
    pub fn locate(&self, file: u32, page: u32) -> Option<Location> {
        locate(&self.runs, file, page)
    }

    /// The runs within pages `[from, to)` of a file.
    pub fn range(&self, file: u32, from: u32, to: u32) -> impl Iterator<Item = Run> + '_ {
        runs_within(
            &self.runs,
            PageKey::new(file, u64::from(from)),
            PageKey::new(file, u64::from(to)),
        )
    }

    /// Runs of zeros.
    pub fn zero_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.at == Location::Zero)
    }

    /// Every frame that holds a current page, by pack, in order and once each, with how many of its
    /// pages are current: the reading order of a restore.
    pub fn frames_by_pack(&self) -> BTreeMap<u32, Vec<(u32, u32)>> {
        let mut by_pack: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
        for run in &self.runs {
            if let Location::Frame { pack, frame } = run.at {
                by_pack.entry(pack).or_default().push((frame, run.count));
            }
        }
        for frames in by_pack.values_mut() {
            frames.sort_unstable();
            frames.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    kept.1 = kept.1.saturating_add(next.1);
                }
                same
            });
        }
        by_pack
    }

    /// Live pages by pack, from which repacking chooses.
    pub fn use_by_pack(&self) -> BTreeMap<u32, PackUse> {
        let mut by_pack: BTreeMap<u32, PackUse> = BTreeMap::new();
        for run in &self.runs {
            if let Location::Frame { pack, .. } = run.at {
                by_pack.entry(pack).or_default().live_pages += u64::from(run.count);
            }
        }
        by_pack
    }
}

/// Finds the pages below their files' lengths that no run of a map names, as the runs pass by in order.
#[derive(Debug)]
pub struct Holes<'a> {
    files: std::iter::Peekable<std::collections::btree_map::Iter<'a, u32, u32>>,
    /// Pages of the file at hand that were passed.
    passed: u32,
    found: Vec<(u32, Range<u32>)>,
}

impl<'a> Holes<'a> {
    /// Of a map of files of these lengths.
    pub fn new(lengths: &'a BTreeMap<u32, u32>) -> Self {
        Self {
            files: lengths.iter().peekable(),
            passed: 0,
            found: Vec::new(),
        }
    }

    /// Takes the next run; an error where it names a page that does not exist.
    pub fn pass(&mut self, run: &Run) -> Result<(), Malformed> {
        while self.files.peek().is_some_and(|(file, _)| **file < run.file) {
            self.end_file();
        }
        let Some(length) = self.files.peek().filter(|(file, _)| **file == run.file) else {
            return Err(Malformed(format!(
                "the map names page file {}, which does not exist",
                run.file
            )));
        };
        let length = *length.1;
        let end = run.end().page;
        if end > u64::from(length) {
            return Err(Malformed(format!(
                "the map goes to page {end} of page file {}, which has {length} pages",
                run.file
            )));
        }
        if self.passed < run.first {
            self.found.push((run.file, self.passed..run.first));
        }
        self.passed = end as u32;
        Ok(())
    }

    fn end_file(&mut self) {
        if let Some((file, length)) = self.files.next()
            && self.passed < *length
        {
            self.found.push((*file, self.passed..*length));
        }
        self.passed = 0;
    }

    /// The pages that no run named, by page file.
    pub fn finish(mut self) -> Vec<(u32, Range<u32>)> {
        while self.files.peek().is_some() {
            self.end_file();
        }
        self.found
    }
}

fn missing(file: u32, page: u32) -> Malformed {
    Malformed(format!("page {page} of page file {file} is in no frame"))
}

/// Where a page lies by sorted `runs`.
pub fn locate(runs: &[Run], file: u32, page: u32) -> Option<Location> {
    let key = PageKey::new(file, u64::from(page));
    let index = runs.partition_point(|run| run.end() <= key);
    runs.get(index)
        .filter(|run| run.start() <= key)
        .map(|run| run.at)
}

/// The parts of sorted `runs` within `[from, to)`.
pub fn runs_within(runs: &[Run], from: PageKey, to: PageKey) -> impl Iterator<Item = Run> + '_ {
    let begin = runs.partition_point(|run| run.end() <= from);
    runs.iter()
        .skip(begin)
        .map_while(move |run| run.clip(from, to))
}

/// Lays out sorted runs as a map part.
///
/// ```text
/// count of runs, varint; then per run
///   page file: distance to the run before, varint
///   first page: distance to the end of the run before in the same file (or to 0), varint
///   count of pages, varint
///   place: 0 for zeros, else 1 + zigzag(pack - last pack), zigzag(frame - last frame)
/// ```
pub fn encode_runs(runs: &[Run]) -> Vec<u8> {
    let mut out = Vec::with_capacity(runs.len() * 6 + 8);
    put_varint(&mut out, runs.len() as u64);
    let mut past = PageKey::MIN;
    let mut place = (0_u32, 0_u32);
    for run in runs {
        put_varint(&mut out, u64::from(run.file - past.file));
        let base = if run.file == past.file { past.page } else { 0 };
        put_varint(&mut out, u64::from(run.first) - base);
        put_varint(&mut out, u64::from(run.count));
        match run.at {
            Location::Zero => out.push(0),
            Location::Frame { pack, frame } => {
                let step = i64::from(pack) - i64::from(place.0);
                put_varint(&mut out, 1 + zigzag(step));
                put_zigzag(&mut out, i64::from(frame) - i64::from(place.1));
                place = (pack, frame);
            }
        }
        past = run.end();
    }
    out
}

const fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// Runs in one map part at most; a decoder refuses more.
pub const PART_RUNS_MAX: usize = 16_384;

/// Reads a map part. Total: any other bytes are refused.
pub fn decode_runs(bytes: &[u8]) -> Result<Vec<Run>, Malformed> {
    let mut reader = Reader::new(bytes, "a map part");
    let count = usize::try_from(reader.varint()?).unwrap_or(usize::MAX);
    if count > PART_RUNS_MAX {
        return Err(Malformed(format!(
            "a map part of {count} runs is out of bounds"
        )));
    }
    let out_of_bounds = || Malformed::new("a run of a map part is out of bounds");
    let mut runs = Vec::with_capacity(count);
    let mut past = PageKey::MIN;
    let mut place = (0_u32, 0_u32);
    for _ in 0..count {
        let file = past
            .file
            .checked_add(reader.varint32()?)
            .ok_or_else(out_of_bounds)?;
        let base = if file == past.file { past.page } else { 0 };
        let first = base
            .checked_add(reader.varint()?)
            .and_then(|first| u32::try_from(first).ok());
        let (first, count) = (first.ok_or_else(out_of_bounds)?, reader.varint32()?);
        let at = match reader.varint()? {
            0 => Location::Zero,
            coded => {
                let step = ((coded - 1) >> 1).cast_signed() ^ -((coded - 1) & 1).cast_signed();
                place = (add(place.0, step)?, add(place.1, reader.zigzag()?)?);
                Location::Frame {
                    pack: place.0,
                    frame: place.1,
                }
            }
        };
        let run = Run {
            file,
            first,
            count,
            at,
        };
        if count == 0 || run.end().page > u64::from(u32::MAX) + 1 {
            return Err(out_of_bounds());
        }
        past = run.end();
        runs.push(run);
    }
    reader.end()?;
    Ok(runs)
}

fn add(value: u32, step: i64) -> Result<u32, Malformed> {
    i64::from(value)
        .checked_add(step)
        .and_then(|sum| u32::try_from(sum).ok())
        .ok_or_else(|| Malformed::new("a place of a map part is out of bounds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(pack: u32, frame: u32) -> Location {
        Location::Frame { pack, frame }
    }

    fn run(file: u32, first: u32, count: u32, place: Location) -> Run {
        Run {
            file,
            first,
            count,
            at: place,
        }
    }

    #[test]
    fn absent_pages_are_not_zero_pages() {
        let lengths = BTreeMap::from([(1, 3)]);
        let zero = run(1, 0, 3, Location::Zero);
        let map = PageMap::new(lengths.clone(), vec![zero]).unwrap();
        assert_eq!(map.locate(1, 2), Some(Location::Zero));
        assert_eq!(map.locate(1, 3), None);
        let short = PageMap::new(lengths, vec![run(1, 0, 2, Location::Zero)]);
        assert_eq!(
            short.unwrap_err().to_string(),
            "page 2 of page file 1 is in no frame"
        );
    }

    /// Where each page lies, none for a hole, as a map of runs.
    fn map_of(files: &[Vec<Option<u32>>]) -> (BTreeMap<u32, u32>, Vec<Run>) {
        let lengths = (0_u32..)
            .zip(files)
            .map(|(file, pages)| (file, pages.len() as u32));
        let mut runs = Vec::new();
        for (file, pages) in (0_u32..).zip(files) {
            for (page, place) in (0_u32..).zip(pages) {
                if let Some(frame) = place {
                    push_run(&mut runs, run(file, page, 1, at(0, *frame)));
                }
            }
        }
        (lengths.collect(), runs)
    }

    fn files() -> impl Strategy<Value = Vec<Vec<Option<u32>>>> {
        let place = prop_oneof![1 => Just(None), 2 => (0_u32..3).prop_map(Some)];
        proptest::collection::vec(proptest::collection::vec(place, 0..9), 0..4)
    }

    proptest! {
        #[test]
        fn holes_are_the_pages_that_no_run_names(files in files()) {
            let (lengths, runs) = map_of(&files);
            let mut holes = Holes::new(&lengths);
            for run in &runs {
                holes.pass(run).unwrap();
            }
            let mut found = Vec::new();
            for (file, pages) in holes.finish() {
                found.extend(pages.map(|page| (file, page)));
            }
            let mut expected = Vec::new();
            for (file, pages) in (0_u32..).zip(&files) {
                let absent = (0_u32..).zip(pages).filter(|(_, place)| place.is_none());
                expected.extend(absent.map(|(page, _)| (file, page)));
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_forgotten_page_is_taken_over_from_nowhere(
            old in files(),
            forgotten in proptest::collection::vec((0_u32..5, 0_u32..9, 0_u32..5), 0..6),
            anew in proptest::collection::btree_set((0_u32..4, 0_u32..9), 0..6),
        ) {
            let (lengths, runs) = map_of(&old);
            let anew: Vec<_> = anew
                .into_iter()
                .filter(|(file, page)| lengths.get(file).is_some_and(|length| page < length))
                .collect();
            let placed = anew.iter().map(|(file, page)| run(*file, *page, 1, at(7, 0))).collect();
            let ranges = forgotten.iter().map(|(file, first, count)| (*file, *first..first + count));
            let changes = Changes::new(&lengths, lengths.clone(), &BTreeMap::new(), placed)
                .unwrap()
                .forgetting(&lengths, ranges.clone());
            let now = changes.apply(&runs, PageKey::MIN, KEY_MAX);
            check_order(&now).unwrap();
            for (file, pages) in (0_u32..).zip(&old) {
                for (page, place) in (0_u32..).zip(pages) {
                    let cut = ranges.clone().any(|(of, pages)| of == file && pages.contains(&page));
                    let expected = if anew.contains(&(file, page)) {
                        Some(at(7, 0))
                    } else {
                        place.filter(|_| !cut).map(|frame| at(0, frame))
                    };
                    prop_assert_eq!(locate(&now, file, page), expected);
                }
            }
        }
    }

    #[test]
    fn incomplete_and_overfull_maps_are_refused() {
        let lengths = BTreeMap::from([(1, 4), (3, 2)]);
        let full = vec![run(1, 0, 4, at(0, 0)), run(3, 0, 2, at(0, 1))];
        assert!(PageMap::new(lengths.clone(), full.clone()).is_ok());
        let mut cases = Vec::new();
        for index in 0..2 {
            let mut holed = full.clone();
            holed.remove(index);
            cases.push(holed);
        }
        cases.push(vec![run(1, 1, 3, at(0, 0)), full[1]]);
        cases.push(vec![run(1, 0, 5, at(0, 0)), full[1]]);
        cases.push(vec![full[0], run(2, 0, 1, at(0, 0)), full[1]]);
        cases.push(vec![full[0], full[1], run(4, 0, 1, at(0, 0))]);
        cases.push(vec![
            run(1, 0, 3, at(0, 0)),
            run(1, 2, 2, at(0, 0)),
            full[1],
        ]);
        for case in cases {
            assert!(
                PageMap::new(lengths.clone(), case.clone()).is_err(),
                "{case:?} was accepted"
            );
        }
    }

    #[test]
    fn a_file_that_shrank_and_grew_again_keeps_no_old_page() {
        let old = BTreeMap::from([(1, 10)]);
        let map = PageMap::new(old.clone(), vec![run(1, 0, 10, at(0, 0))]).unwrap();
        // Truncated to 4, grown to 8, and only pages 4 to 6 were read again.
        let limits = BTreeMap::from([(1, 4)]);
        let new = BTreeMap::from([(1, 8)]);
        let partial =
            Changes::new(&old, new.clone(), &limits, vec![run(1, 4, 3, at(1, 0))]).unwrap();
        assert_eq!(
            map.apply(&partial).unwrap_err().to_string(),
            "page 7 of page file 1 is in no frame"
        );
        let whole = Changes::new(&old, new, &limits, vec![run(1, 4, 4, at(1, 0))]).unwrap();
        assert_eq!(
            map.apply(&whole).unwrap().runs(),
            [run(1, 0, 4, at(0, 0)), run(1, 4, 4, at(1, 0))]
        );
    }

    #[test]
    fn a_page_past_the_end_of_its_file_is_refused() {
        let none = BTreeMap::new();
        let changes = Changes::new(
            &none,
            BTreeMap::from([(1, 4)]),
            &none,
            vec![run(1, 4, 1, at(0, 0))],
        );
        assert!(changes.is_err());
    }

    #[test]
    fn a_frame_is_listed_once_however_many_runs_it_has() {
        let runs = vec![
            run(1, 0, 1, at(2, 1)),
            run(1, 1, 1, at(0, 5)),
            run(1, 2, 1, at(2, 1)),
            run(1, 3, 1, at(2, 0)),
        ];
        let map = PageMap::new(BTreeMap::from([(1, 4)]), runs).unwrap();
        assert_eq!(
            map.frames_by_pack(),
            BTreeMap::from([(0, vec![(5, 1)]), (2, vec![(0, 1), (1, 2)])])
        );
        assert_eq!(map.use_by_pack()[&2].live_pages, 3);
    }

    proptest! {
        #[test]
        fn parts_are_read_back(seeds in proptest::collection::vec((0_u32..3, 0_u32..9, 1_u32..9, any::<Option<(u32, u32)>>()), 0..80)) {
            let mut runs = Vec::new();
            let mut past = PageKey::MIN;
            for (file_step, gap, count, place) in seeds {
                let file = past.file + file_step;
                let base = if file == past.file { past.page as u32 } else { 0 };
                let place = place.map_or(Location::Zero, |(pack, frame)| at(pack, frame));
                let next = run(file, base + gap, count, place);
                past = next.end();
                runs.push(next);
            }
            prop_assert_eq!(decode_runs(&encode_runs(&runs)).unwrap(), runs);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            if let Ok(runs) = decode_runs(&bytes) {
                prop_assert!(check_order(&runs).is_ok());
            }
        }
    }
}
