//! Which part of a write may go past the page cache. Layer 3, pure.
//!
//! O_DIRECT moves whole pages only. A page that two writes share (at the ends of a run, of a piece, of a file) always
//! goes through the page cache, so no direct write ever covers a page that a buffered one has touched.

use std::ops::Range;

/// What O_DIRECT wants offsets, lengths and memory to be multiples of, on every common device.
pub const PAGE_BYTES: usize = 4096;
/// Shorter middles are not worth a second operation.
const DIRECT_BYTES_MIN: usize = 64 * 1024;

/// A write cut at page borders of its file. Ranges are those of the buffer, and follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Up to the first page border.
    pub head: Range<usize>,
    /// Whole pages of the file; empty when none is worth it.
    pub middle: Range<usize>,
    /// From the last page border on.
    pub tail: Range<usize>,
    /// Middle and memory agree: page borders of the file are page borders of the buffer.
    pub is_aligned: bool,
}

/// Cuts the write of `range` of a page-aligned buffer to `offset` of a file.
pub fn cut(range: Range<usize>, offset: u64) -> Cut {
    let page = PAGE_BYTES as u64;
    let into_page = (offset % page) as usize;
    let head_bytes = if into_page == 0 {
        0
    } else {
        PAGE_BYTES - into_page
    };
    let after_head = range.len().saturating_sub(head_bytes);
    let middle_bytes = after_head / PAGE_BYTES * PAGE_BYTES;
    if middle_bytes < DIRECT_BYTES_MIN {
        return Cut {
            head: range.clone(),
            middle: range.end..range.end,
            tail: range.end..range.end,
            is_aligned: true,
        };
    }
    let start = range.start + head_bytes;
    let end = start + middle_bytes;
    Cut {
        head: range.start..start,
        middle: start..end,
        tail: end..range.end,
        is_aligned: start.is_multiple_of(PAGE_BYTES),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_aligned_write_is_all_middle() {
        let cut = cut(0..262_144, 1 << 20);
        assert_eq!(
            (cut.head, cut.middle, cut.tail),
            (0..0, 0..262_144, 262_144..262_144)
        );
        assert!(cut.is_aligned);
    }

    #[test]
    fn the_end_of_a_file_inside_a_page_is_a_tail() {
        let cut = cut(0..100_000, 0);
        assert_eq!((cut.middle, cut.tail), (0..98_304, 98_304..100_000));
    }

    #[test]
    fn a_file_that_begins_inside_a_page_is_cut_and_not_aligned() {
        let cut = cut(0..262_144, 1_000);
        assert_eq!(cut.head, 0..3_096);
        assert_eq!(cut.middle, 3_096..3_096 + 258_048);
        assert!(!cut.is_aligned);
        // The same file offset at a place of the buffer that agrees with it.
        assert!(super::cut(1_000..262_144, 1_000).is_aligned);
    }

    #[test]
    fn short_writes_stay_in_the_page_cache() {
        let cut = cut(0..65_535, 0);
        assert_eq!((cut.head, cut.middle), (0..65_535, 65_535..65_535));
    }

    proptest! {
        #[test]
        fn parts_are_the_whole_and_middles_are_pages(start in 0..70_000_usize, len in 0..300_000_usize, offset in 0..1_u64 << 40) {
            let c = cut(start..start + len, offset);
            prop_assert_eq!(c.head.start, start);
            prop_assert_eq!(c.head.end, c.middle.start);
            prop_assert_eq!(c.middle.end, c.tail.start);
            prop_assert_eq!(c.tail.end, start + len);
            prop_assert_eq!(c.middle.len() % PAGE_BYTES, 0);
            if !c.middle.is_empty() {
                prop_assert_eq!((offset + (c.middle.start - start) as u64) % PAGE_BYTES as u64, 0);
                prop_assert!(c.head.len() < PAGE_BYTES && c.tail.len() < PAGE_BYTES);
            }
        }
    }
}
