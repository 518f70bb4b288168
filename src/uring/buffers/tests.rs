use super::*;

const MIB: usize = 1 << 20;

const BOUNDS: Bounds = Bounds {
    memlock: Limit::Unlimited,
    region_bytes_max: MIB,
    grows: false,
};

/// A kernel that locks at most `limit` bytes.
fn limited(bytes: usize, limit: usize, bounds: Bounds) -> (Pool, PoolReport) {
    Pool::with_registrar(bytes, bounds, |memories| {
        let wanted: usize = memories.iter().flatten().map(|m| m.bytes).sum();
        if wanted <= limit {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ENOMEM))
    })
    .unwrap()
}

#[test]
fn locked_memory_that_is_short_is_halved_and_the_rest_is_plain() {
    let (pool, report) = limited(32 * MIB, 5 * MIB, BOUNDS);
    assert_eq!(report.bytes, 32 * MIB);
    assert_eq!(report.registered_bytes, 4 * MIB);
    assert!(report.note.unwrap().starts_with("4 of 32 MiB"));
    let all: Vec<_> = (0..32).map(|_| pool.alloc(MIB).unwrap()).collect();
    assert_eq!(all.iter().filter(|s| s.is_registered()).count(), 4);
    assert!(pool.alloc(1).is_none());
    drop(all);
    pool.check();
    assert_eq!(pool.free_bytes(), 32 * MIB);
}

#[test]
fn all_that_the_limit_leaves_beside_the_ring_is_registered() {
    let bounds = Bounds {
        memlock: Limit::Bytes(8 << 20),
        ..BOUNDS
    };
    let (_, report) = limited(32 * MIB, 7 * MIB, bounds);
    assert_eq!(report.registered_bytes, 7 * MIB);
    let (_, report) = limited(32 * MIB, 6 * MIB, bounds);
    assert_eq!(report.registered_bytes, 3 * MIB);
}

#[test]
fn without_any_locked_memory_the_pool_is_plain_and_whole() {
    let (pool, report) = limited(3 * MIB, 0, BOUNDS);
    assert_eq!((report.bytes, report.registered_bytes), (3 * MIB, 0));
    assert!(!pool.alloc(MIB).unwrap().is_registered());
}

#[test]
fn each_region_is_known_to_the_kernel_by_its_number() {
    use crate::uring::{files::File, ring};
    let ring = ring::start(ring::RingConfig {
        sq_entries: Some(64),
        ..Default::default()
    });
    let file = tempfile::tempfile().unwrap();
    ring.unwrap().block_on(async {
        let (pool, report) = Pool::with_registrar(3 * MIB, BOUNDS, register).unwrap();
        assert_eq!(report.registered_bytes, 3 * MIB);
        let file = File::from_fd(file.into());
        let mut seen = Vec::new();
        let mut held = Vec::new();
        for i in 0..6u8 {
            let mut segment = pool.alloc(MIB / 2).unwrap();
            seen.push(segment.buf_index().unwrap());
            segment.as_mut_slice().fill(i + 1);
            let (written, mut segment) = file.write_at(segment, 0..MIB / 2, 0).await;
            written.unwrap();
            segment.as_mut_slice().fill(0);
            let (read, segment) = file.read_at(segment, 0..MIB / 2, 0).await;
            assert_eq!(read.unwrap(), MIB / 2);
            assert!(segment.as_slice().iter().all(|&b| b == i + 1));
            held.push(segment);
        }
        assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
    });
}

#[test]
fn a_pool_that_grows_registers_what_is_needed_and_goes_on_without() {
    let bounds = Bounds {
        region_bytes_max: REGION_BYTES_MAX,
        grows: true,
        ..BOUNDS
    };
    let (pool, report) = limited(12 * MIB, 4 * MIB, bounds);
    assert_eq!((report.bytes, report.registered_bytes), (12 * MIB, 4 * MIB));
    assert!(report.grows && report.note.is_none());
    let asked = Rc::new(RefCell::new(Vec::new()));
    let told = Rc::clone(&asked);
    *pool.shared.register.borrow_mut() = Box::new(move |number, memory| {
        told.borrow_mut()
            .push((number, memory.map_or(0, |(_, bytes)| bytes)));
        if number == 2 {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Ok(())
    });
    let mut all: Vec<_> = (0..4).map(|_| pool.alloc(MIB).unwrap()).collect();
    assert!(asked.borrow().is_empty(), "the first region does");
    all.extend((0..8).map(|_| pool.alloc(MIB).unwrap()));
    assert_eq!(*asked.borrow(), [(1, 4 * MIB), (2, 4 * MIB)]);
    let numbers = |i: usize| all[i * 4].buf_index();
    assert_eq!(
        [numbers(0), numbers(1), numbers(2)],
        [Some(0), Some(1), None]
    );
    assert!(pool.alloc(1).is_none());
    drop(all);
    pool.check();
    assert_eq!(pool.free_bytes(), 12 * MIB);

    // What was needed a moment ago is kept, and then given back, but for what is there from the start.
    asked.borrow_mut().clear();
    pool.trim();
    assert!(asked.borrow().is_empty());
    pool.trim();
    pool.trim();
    assert_eq!(
        *asked.borrow(),
        [(1, 0)],
        "the last has no number with the ring"
    );
    let mut all: Vec<_> = (0..5).map(|_| pool.alloc(MIB).unwrap()).collect();
    assert_eq!(*asked.borrow(), [(1, 0), (1, 4 * MIB)]);
    // Neither does what is in use go, nor what was since the last time.
    pool.trim();
    pool.trim();
    drop(all.pop());
    pool.trim();
    drop(pool.alloc(MIB).unwrap());
    pool.trim();
    assert_eq!(asked.borrow().len(), 2);
    pool.trim();
    assert_eq!(*asked.borrow().last().unwrap(), (1, 0));
    drop(all);
    pool.check();
    assert_eq!(pool.free_bytes(), 12 * MIB);
}

#[test]
fn what_is_registered_later_is_read_and_written_by_its_number() {
    use crate::uring::{files::File, ring};
    // Another test's ring that comes in the same moment hides which one is ours.
    let ring = (0..100).find_map(|_| {
        let ring = ring::start(ring::RingConfig {
            sq_entries: Some(64),
            ..Default::default()
        });
        Some(ring.unwrap()).filter(|_| registration::is_possible())
    });
    let file = tempfile::tempfile().unwrap();
    ring.unwrap().block_on(async {
        let bounds = Bounds {
            region_bytes_max: REGION_BYTES_MAX,
            grows: true,
            ..BOUNDS
        };
        let (pool, report) = Pool::with_registrar(9 * MIB, bounds, register).unwrap();
        assert_eq!(report.registered_bytes, 4 * MIB);
        let file = File::from_fd(file.into());
        // And again after it was given back.
        for _ in 0..2 {
            let mut held = Vec::new();
            for i in 0..9u8 {
                let mut segment = pool.alloc(MIB).unwrap();
                assert_eq!(segment.buf_index(), Some(u16::from(i) / 4));
                segment.as_mut_slice().fill(i + 1);
                let (written, mut segment) = file.write_at(segment, 0..MIB, 0).await;
                written.unwrap();
                segment.as_mut_slice().fill(0);
                let (read, segment) = file.read_at(segment, 0..MIB, 0).await;
                assert_eq!(read.unwrap(), MIB);
                assert!(segment.as_slice().iter().all(|&b| b == i + 1));
                held.push(segment);
            }
            drop(held);
            assert_eq!(pool.shared.open.get(), 3);
            pool.trim();
            pool.trim();
            assert_eq!(pool.shared.open.get(), 1);
        }
    });
}

#[test]
fn segments_are_page_aligned_disjoint_and_come_back() {
    let pool = Pool::plain(2 * MIB).unwrap();
    let mut a = pool.alloc(16_384).unwrap();
    let mut b = pool.alloc(40_000).unwrap();
    assert_eq!((b.len(), b.capacity()), (40_000, 65_536));
    assert_eq!(a.start() as usize % PAGE_BYTES, 0);
    a.as_mut_slice().fill(1);
    b.as_mut_slice().fill(2);
    assert!(a.as_slice().iter().all(|&x| x == 1));
    drop((a, b));
    assert_eq!(pool.free_bytes(), 2 * MIB);
    pool.check();
}

#[test]
fn a_full_pool_falls_back_to_memory_of_its_own() {
    let pool = Pool::plain(MIB).unwrap();
    let _all = pool.alloc(MIB).unwrap();
    let mut heap = pool.alloc_or_heap(20_000);
    heap.as_mut_slice().fill(7);
    assert_eq!((heap.len(), heap.capacity()), (20_000, 20_480));
    assert_eq!(pool.heap_bytes(), 20_480);
    drop(heap);
    assert_eq!(pool.heap_bytes(), 0);
}

#[test]
fn a_landing_has_its_range_alone_and_keeps_the_memory() {
    let pool = Pool::plain(MIB).unwrap();
    let mut segment = pool.alloc(65_536).unwrap();
    segment.as_mut_slice().fill(1);
    let mut landing = segment.land(16_384..32_768).unwrap();
    assert!(segment.land(32_767..40_000).is_none(), "overlaps");
    assert!(segment.land(65_000..65_537).is_none(), "past the end");
    assert_eq!(segment.bytes(16_000..16_385), None);
    assert_eq!(segment.bytes(16_000..16_384), Some(&[1; 384][..]));
    assert!(!segment.put(16_380, &[9; 5]), "into the landing");
    assert!(segment.put(16_380, &[9; 4]));
    assert!(!segment.put(65_530, &[9; 7]), "past the end");
    landing.as_mut_slice().fill(2);
    // What has landed needs no copy, there or in part.
    assert!(segment.put(16_384, landing.as_slice()));
    assert!(segment.put(16_400, &landing.as_slice()[16..20]));
    assert!(segment.put(40_000, &landing.as_slice()[..100]), "elsewhere");
    let mut other = pool.alloc(65_536).unwrap();
    other.as_mut_slice().fill(7);
    assert!(!other.put_from(&segment, 0..65_536), "but what lands");
    assert!(other.put_from(&segment, 32_768..65_536));
    assert!(!other.put_from(&segment, 0..65_537), "past the end");
    let copied = other.as_slice();
    assert_eq!(copied[16_380..16_385], [9, 9, 9, 9, 7]);
    assert_eq!((copied[32_767], copied[32_768]), (7, 1));
    assert_eq!((copied[40_099], copied[40_100]), (2, 1));
    drop((segment, other));
    assert_eq!(pool.free_bytes(), MIB - 65_536);
    assert!(landing.as_slice().iter().all(|&byte| byte == 2));
    drop(landing);
    assert_eq!(pool.free_bytes(), MIB);
    pool.check();
}

#[test]
fn a_segment_is_whole_again_when_its_landings_are_gone() {
    let pool = Pool::plain(MIB).unwrap();
    let mut segment = pool.alloc(65_536).unwrap();
    let landings = [0..10, 10..20, 60_000..65_536].map(|range| segment.land(range).unwrap());
    for mut landing in landings {
        landing.as_mut_slice().fill(3);
    }
    assert_eq!(segment.as_mut_slice()[19], 3);
    assert!(segment.land(0..65_536).is_some());
}

#[test]
#[should_panic(expected = "nothing lands here")]
fn what_lands_is_not_shown() {
    let pool = Pool::plain(MIB).unwrap();
    let mut segment = pool.alloc(65_536).unwrap();
    let _landing = segment.land(0..1);
    let _ = segment.as_slice();
}
