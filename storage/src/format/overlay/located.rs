//! Where an overlay's bytes are: in which parts of its own file, and in which of the base.

use std::io;

use super::{CLUSTER_BYTES, Overlay, PAGE_SPAN_BYTES, cluster_in_page};
use crate::format::{Disk as _, Extent, Work, check_within};

impl Overlay {
    /// The pages of the map under which a part of the disk lies, each with the first and the last cluster of the part.
    pub(super) fn pages(&self, offset: u64, length: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        let end = offset + length;
        let pages = offset / PAGE_SPAN_BYTES..end.div_ceil(PAGE_SPAN_BYTES);
        pages.filter(move |_| length > 0).map(move |page| {
            let start = offset.max(page * PAGE_SPAN_BYTES);
            let stop = end.min((page + 1) * PAGE_SPAN_BYTES);
            (page, cluster_in_page(start), cluster_in_page(stop - 1))
        })
    }

    pub(super) fn is_here(&self, offset: u64, length: u64) -> io::Result<bool> {
        for (page, first, last) in self.pages(offset, length) {
            if !self.map.page(&*self.file, page)?.all_here(first, last) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether what begins at `at` is here, and how many bytes on that is so, up to `end` at the most.
    pub(super) fn run_at(&self, at: u64, end: u64) -> io::Result<(bool, u64)> {
        let span = (end - at).min(PAGE_SPAN_BYTES - at % PAGE_SPAN_BYTES);
        let (first, last) = (cluster_in_page(at), cluster_in_page(at + span - 1));
        let (here, clusters) = self.map.page(&*self.file, at / PAGE_SPAN_BYTES)?.run(first, last);
        Ok((here, span.min(clusters * CLUSTER_BYTES - at % CLUSTER_BYTES)))
    }

    pub(super) fn locate_read(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Vec<Extent>,
    ) -> io::Result<bool> {
        check_within(self.size_bytes(), offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (here, run) = self.run_at(at, end)?;
            if here {
                if !self.file.locate(Work::Read { offset: self.data_at(at), length: run }, extents)? {
                    return Ok(false);
                }
            } else {
                let of_base = self.geometry.base_size_bytes.saturating_sub(at).min(run);
                if of_base > 0 && !self.base.locate(Work::Read { offset: at, length: of_base }, extents)? {
                    return Ok(false);
                }
                if of_base < run {
                    extents.push(Extent { file: None, offset: 0, length: run - of_base });
                }
            }
            at += run;
        }
        Ok(true)
    }

    pub(super) fn locate_discard(
        &self,
        offset: u64,
        length: u64,
        extents: &mut Vec<Extent>,
    ) -> io::Result<bool> {
        check_within(self.size_bytes(), offset, length)?;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let (here, run) = self.run_at(at, end)?;
            if here && !self.file.locate(Work::Discard { offset: self.data_at(at), length: run }, extents)? {
                return Ok(false);
            }
            at += run;
        }
        Ok(true)
    }
}
