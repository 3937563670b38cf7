//! Writes the pages of a base backup where they belong, or, over files that are there, those that differ.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use borealis_repository::pages::digests::{PageDigest, PageDigester};
use borealis_repository::pages::manifest::PageFile;
use borealis_repository::pages::read::PageSink;
use bytes::Bytes;

use super::delta::Tally;
use super::files::{new_file, segment_name, segments, set_mode};
use crate::error::{Error, FileContext, Result};

/// Bytes of pages after which the file that they went to is synced, so that the disk works while pages
/// are still being opened, and the sync at the end finds little to do.
const SYNC_EVERY_BYTES: u64 = 64 << 20;
/// Pages in one system call; the system takes at most 1,024 (`IOV_MAX`). Of a file that is there, so many
/// are read at a time.
const PAGES_PER_WRITE: usize = 256;

/// The page files below a directory. They are made with their full length, so that pages of zeros are
/// there already.
pub struct PageFiles {
    target: PathBuf,
    segment_pages: u32,
    /// Counts what is kept and written, where files may be there already.
    delta: Option<Arc<Tally>>,
    /// How many pages segment files had when they were found, by page file and segment. Nothing is known
    /// of their content. What is not named here is new, and all zeros.
    found: Mutex<BTreeMap<(u32, u32), u32>>,
    /// Bytes written since a file was last synced.
    unsynced: AtomicU64,
}

impl PageFiles {
    /// Files below `target`; with `delta`, what they hold already is kept.
    pub fn new(target: &Path, segment_pages: u32, delta: Option<Arc<Tally>>) -> Self {
        Self {
            target: target.to_owned(),
            segment_pages,
            delta,
            found: Mutex::default(),
            unsynced: AtomicU64::new(0),
        }
    }

    /// Gives the segments of a page file their lengths, making those that there are not.
    pub fn make(&self, file: &PageFile) -> Result<()> {
        for (segment, (name, pages)) in (0..).zip(segments(file, self.segment_pages)) {
            let path = self.target.join(name);
            let page_size = u64::from(file.page_size);
            let made = match &self.delta {
                None => new_file(&path, file.mode)?,
                Some(_) => self.keep_or_make(file, segment, &path, pages)?,
            };
            made.set_len(u64::from(pages) * page_size)
                .at("set the length of", &path)?;
        }
        Ok(())
    }

    /// Opens what is there, cut to whole pages, so that all that it grows by is zeros.
    fn keep_or_make(&self, file: &PageFile, segment: u32, path: &Path, pages: u32) -> Result<File> {
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(file.mode)
            .open(path)
            .at("open", path)?;
        set_mode(path, file.mode)?;
        let page_size = u64::from(file.page_size);
        let there = opened.metadata().at("look at", path)?.len() / page_size;
        let there = u32::try_from(there).unwrap_or(u32::MAX).min(pages);
        opened
            .set_len(u64::from(there) * page_size)
            .at("set the length of", path)?;
        let mut found = self.found.lock().expect("no holder panics");
        found.insert((file.number, segment), there);
        drop(found);
        Ok(opened)
    }

    /// How many pages a segment had already.
    fn there(&self, file: &PageFile, segment: u32) -> u32 {
        let found = self.found.lock().expect("no holder panics");
        found.get(&(file.number, segment)).copied().unwrap_or(0)
    }

    fn open(&self, file: &PageFile, segment: u32) -> Result<(File, PathBuf)> {
        let path = self.target.join(segment_name(file, segment));
        let opened = OpenOptions::new()
            .read(self.delta.is_some())
            .write(true)
            .open(&path)
            .at("open", &path)?;
        Ok((opened, path))
    }

    fn wrote(&self, opened: &File, path: &Path, bytes: u64) -> Result<()> {
        if let Some(tally) = &self.delta {
            tally.write(bytes);
        }
        if self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes >= SYNC_EVERY_BYTES {
            self.unsynced.store(0, Ordering::Relaxed);
            opened.sync_data().at("sync", path)?;
        }
        Ok(())
    }

    /// Writes neighbouring pages of one segment, except those that are there already.
    fn place(&self, segment: &Segment<'_>, pages: &[(u32, Bytes)]) -> Result<()> {
        let found = segment.found(self.segment_pages, pages)?;
        let found = found.chunks_exact(segment.page_size as usize);
        let (old, new) = pages.split_at(found.len());
        let same: Vec<bool> = found
            .zip(old)
            .map(|(found, (_, page))| found == &page[..])
            .collect();
        let mut rest = old;
        for alike in same.chunk_by(|a, b| a == b) {
            let (now, later) = rest.split_at(alike.len());
            rest = later;
            if alike.first() == Some(&true) {
                if let Some(tally) = &self.delta {
                    tally.keep(now.len() as u64 * segment.page_size);
                }
            } else {
                self.write(segment, now)?;
            }
        }
        self.write(segment, new)
    }

    fn write(&self, segment: &Segment<'_>, pages: &[(u32, Bytes)]) -> Result<()> {
        let Some((first, _)) = pages.first() else {
            return Ok(());
        };
        let offset = u64::from(first % self.segment_pages) * segment.page_size;
        write_pages(segment.file, pages, offset).at("write", segment.path)?;
        self.wrote(
            segment.file,
            segment.path,
            pages.len() as u64 * segment.page_size,
        )
    }
}

/// A segment file that is open.
struct Segment<'a> {
    file: &'a File,
    path: &'a Path,
    page_size: u64,
    /// Pages that it had already.
    there: u32,
}

impl Segment<'_> {
    /// The content, in the file, of those of neighbouring pages that it had already: the first ones.
    fn found<T>(&self, segment_pages: u32, pages: &[(u32, T)]) -> Result<Vec<u8>> {
        let count = pages.partition_point(|(number, _)| number % segment_pages < self.there);
        let mut found = vec![0; count * self.page_size as usize];
        if let Some((first, _)) = pages.first() {
            let offset = u64::from(first % segment_pages) * self.page_size;
            self.file
                .read_exact_at(&mut found, offset)
                .at("read", self.path)?;
        }
        Ok(found)
    }
}

impl PageFiles {
    /// Hands pages, ascending, to `each` by neighbouring ones of one segment.
    fn by_runs<T>(
        &self,
        file: &PageFile,
        pages: &[(u32, T)],
        mut each: impl FnMut(&Segment<'_>, &[(u32, T)]) -> Result<()>,
    ) -> Result<()> {
        let in_one_segment =
            |a: &(u32, T), b: &(u32, T)| a.0 / self.segment_pages == b.0 / self.segment_pages;
        for pages in pages.chunk_by(in_one_segment) {
            let Some((first, _)) = pages.first() else {
                continue;
            };
            let number = first / self.segment_pages;
            let (opened, path) = self.open(file, number)?;
            let segment = Segment {
                file: &opened,
                path: &path,
                page_size: u64::from(file.page_size),
                there: self.there(file, number),
            };
            for run in pages.chunk_by(|a, b| a.0.checked_add(1) == Some(b.0)) {
                for part in run.chunks(PAGES_PER_WRITE) {
                    each(&segment, part)?;
                }
            }
        }
        Ok(())
    }
}

impl PageSink for PageFiles {
    type Error = Error;

    fn pages(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<()> {
        self.by_runs(file, pages, |segment, pages| self.place(segment, pages))
    }

    fn may_hold(&self) -> bool {
        self.delta.is_some()
    }

    fn held(
        &self,
        file: &PageFile,
        pages: &[(u32, PageDigest)],
        digester: &PageDigester,
    ) -> Result<Vec<bool>> {
        let mut held = Vec::with_capacity(pages.len());
        self.by_runs(file, pages, |segment, pages| {
            let found = segment.found(self.segment_pages, pages)?;
            let found = found.chunks_exact(file.page_size as usize);
            let same = found
                .zip(pages)
                .map(|(page, (_, digest))| digester.digest(page) == *digest);
            let before = held.len();
            held.extend(same);
            held.resize(before + pages.len(), false);
            Ok(())
        })?;
        if let Some(tally) = &self.delta {
            let count = held.iter().filter(|held| **held).count();
            tally.keep(count as u64 * u64::from(file.page_size));
        }
        Ok(held)
    }

    fn replace(&self, file: &PageFile, pages: &[(u32, Bytes)]) -> Result<()> {
        self.by_runs(file, pages, |segment, pages| self.write(segment, pages))
    }

    fn zeros(&self, file: &PageFile, first: u32, count: u32) -> Result<()> {
        if self.delta.is_none() {
            return Ok(());
        }
        let zero = Bytes::from(vec![0; file.page_size as usize]);
        let end = first.saturating_add(count);
        let mut next = first;
        while next < end {
            let number = next / self.segment_pages;
            let there = self.there(file, number);
            // What the file did not have yet is zeros.
            let found = number
                .saturating_mul(self.segment_pages)
                .saturating_add(there)
                .min(end);
            let after = (number + 1).saturating_mul(self.segment_pages).min(end);
            if next < found {
                let (opened, path) = self.open(file, number)?;
                let segment = Segment {
                    file: &opened,
                    path: &path,
                    page_size: u64::from(file.page_size),
                    there,
                };
                let pages: Vec<(u32, Bytes)> =
                    (next..found).map(|page| (page, zero.clone())).collect();
                for part in pages.chunks(PAGES_PER_WRITE) {
                    self.place(&segment, part)?;
                }
            }
            next = after;
        }
        Ok(())
    }
}

/// Writes neighbouring pages at `offset`.
fn write_pages(file: &File, pages: &[(u32, Bytes)], mut offset: u64) -> std::io::Result<()> {
    let slices: Vec<IoSlice<'_>> = pages.iter().map(|(_, page)| IoSlice::new(page)).collect();
    let mut written = match rustix::io::pwritev(file, &slices, offset) {
        Ok(written) => written,
        Err(rustix::io::Errno::INTR) => 0,
        Err(error) => return Err(error.into()),
    };
    // The system may take less than all of it; the rest goes page by page.
    for (_, page) in pages {
        let rest = page.get(written..).unwrap_or_default();
        let done = page.len() - rest.len();
        file.write_all_at(rest, offset + done as u64)?;
        written -= done;
        offset += page.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u32 = 512;
    const SEGMENT: u32 = 4;

    fn page_file(length: u32) -> PageFile {
        PageFile {
            number: 3,
            name: "1".to_owned(),
            page_size: PAGE,
            length,
            mode: 0o600,
        }
    }

    fn page(fill: u8) -> Bytes {
        Bytes::from(vec![fill; PAGE as usize])
    }

    /// Places pages of these fills, as a restore does: zeros as runs, the others in frames of `frame`.
    fn restore(directory: &Path, fills: &[u8], frame: usize, delta: Option<Arc<Tally>>) {
        let file = page_file(fills.len() as u32);
        let files = PageFiles::new(directory, SEGMENT, delta);
        files.make(&file).unwrap();
        let pages: Vec<(u32, Bytes)> = (0..).zip(fills.iter().map(|fill| page(*fill))).collect();
        let zero = |(number, _): &&(u32, Bytes)| fills[*number as usize] == 0;
        for (number, _) in pages.iter().filter(zero) {
            files.zeros(&file, *number, 1).unwrap();
        }
        let full: Vec<_> = pages.iter().filter(|page| !zero(page)).cloned().collect();
        for frame in full.chunks(frame) {
            files.pages(&file, frame).unwrap();
        }
    }

    fn content(directory: &Path, pages: u32) -> Vec<Vec<u8>> {
        segments(&page_file(pages), SEGMENT)
            .map(|(name, _)| std::fs::read(directory.join(name)).unwrap())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_was_there_a_delta_leaves_what_a_fresh_restore_makes(
            wanted in proptest::collection::vec(0_u8..3, 0..14),
            before in proptest::collection::vec(0_u8..3, 0..14),
            odd in 0..PAGE as usize,
            frame in 1_usize..6,
        ) {
            let (fresh, over) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            restore(fresh.path(), &wanted, frame, None);
            restore(over.path(), &before, frame, None);
            // The last segment ends in the middle of a page.
            let last = segment_name(&page_file(0), (before.len() as u32).div_ceil(SEGMENT).max(1) - 1);
            let mut torn = std::fs::read(over.path().join(&last)).unwrap();
            torn.extend(vec![9; odd]);
            std::fs::write(over.path().join(&last), torn).unwrap();
            let tally = Arc::new(Tally::default());
            restore(over.path(), &wanted, frame, Some(tally.clone()));
            let pages = wanted.len() as u32;
            prop_assert!(content(over.path(), pages) == content(fresh.path(), pages));
            let same = wanted.iter().zip(&before).filter(|(a, b)| a == b).count();
            // What was not there is zeros as soon as the file has its length.
            let differ = (0..wanted.len())
                .filter(|page| before.get(*page).copied().unwrap_or(0) != wanted[*page])
                .count();
            prop_assert_eq!(tally.report().kept_bytes, same as u64 * u64::from(PAGE));
            prop_assert_eq!(tally.report().written_bytes, differ as u64 * u64::from(PAGE));
        }
    }
}
