use super::*;

const PIECE: PieceIndex = PieceIndex::new(0);

/// One piece of two full segments and a last one of 10,000 bytes.
fn world() -> (Geometry, Assembly<u32, u32>) {
    let bytes = u64::from(2 * SEGMENT_BYTES + 10_000);
    let geometry = Geometry::new(bytes, bytes).unwrap();
    (geometry.clone(), Assembly::new(geometry))
}

fn fill(geometry: &Geometry, assembly: &mut Assembly<u32, u32>, segment: u32) {
    for at in 0..SEGMENT_BLOCKS {
        let Some(block) = geometry.block(PIECE, segment * SEGMENT_BLOCKS + at) else {
            return;
        };
        let place = assembly.place(block);
        assert_eq!(place.segment, segment);
        if place.needs_buffer.is_some() {
            assembly.insert_buffer(PIECE, segment, segment);
        }
        assembly.block_done(block);
        assembly.check();
    }
}

#[test]
fn segments_ask_for_memory_of_their_own_length() {
    let (geometry, mut assembly) = world();
    let place = assembly.place(geometry.block(PIECE, 17).unwrap());
    assert_eq!((place.segment, place.offset_in_segment), (1, 16_384));
    assert_eq!(place.needs_buffer, Some(SEGMENT_BYTES));
    let place = assembly.place(geometry.block(PIECE, 32).unwrap());
    assert_eq!((place.segment, place.offset_in_segment), (2, 0));
    assert_eq!(place.needs_buffer, Some(10_000));
    assert_eq!(assembly.segment_blocks(PIECE, 2), 1);
}

#[test]
fn running_hash_goes_in_order_and_reads_back_what_it_missed() {
    let (geometry, mut assembly) = world();
    (0..3).for_each(|segment| fill(&geometry, &mut assembly, segment));
    let second = assembly.take_segment_for_flush(PIECE, 1).unwrap();
    assert!(!second.ticket.is_hashed, "segment 0 is not hashed yet");
    assembly.written(second.ticket);
    let first = assembly.take_segment_for_flush(PIECE, 0).unwrap();
    assert!(first.ticket.is_hashed && assembly.hash_turn(first.ticket) == HashTurn::Now);
    let back = assembly.take_read_back(PIECE).unwrap();
    assert_eq!(back.segment, 1);
    assert_eq!(assembly.hash_turn(back), HashTurn::Wait);
    let third = assembly.take_segment_for_flush(PIECE, 2).unwrap();
    assert!(third.ticket.is_hashed, "promised behind segment 1");
    assert_eq!(assembly.take_progress(PIECE), None);
    for ticket in [first.ticket, back, third.ticket] {
        assert_eq!(assembly.hash_turn(ticket), HashTurn::Now);
        assembly.take_hash(ticket);
        assembly.put_hash(ticket, ticket.segment);
    }
    assert_eq!(assembly.take_progress(PIECE), Some((Some(2), 3)));
}

#[test]
fn partial_segment_spills_and_later_blocks_get_a_fresh_buffer() {
    let (geometry, mut assembly) = world();
    let first = geometry.block(PIECE, 0).unwrap();
    let second = geometry.block(PIECE, 1).unwrap();
    assembly.place(first);
    assembly.insert_buffer(PIECE, 0, 7);
    assembly.block_done(first);
    assembly.place(second);
    let spilled = assembly.take_segment_for_flush(PIECE, 0).unwrap();
    assert_eq!((spilled.ticket.blocks, spilled.keep), (1, 2));
    assert!(!spilled.ticket.is_hashed);
    assert_eq!(assembly.place(second).needs_buffer, Some(SEGMENT_BYTES));
    assembly.insert_buffer(PIECE, 0, 8);
    assembly.block_done(second);
    assembly.written(spilled.ticket);
    assembly.check();
    assert_eq!(assembly.blocks_on_disk(PIECE, 0), 1);
    assert_eq!(assembly.blocks_in_memory(PIECE, 0), 2);
    assert!(assembly.is_streamed(PIECE));
}

#[test]
fn a_place_is_foreseen_only_while_it_is_free_or_filled_by_the_same_block() {
    let (geometry, mut assembly) = world();
    let block = geometry.block(PIECE, 1).unwrap();
    assert_eq!(assembly.foresee(block, true), None, "nothing has begun");
    let foreseen = assembly.foresee(block, false).unwrap();
    assert_eq!(foreseen, assembly.foresee(block, false).unwrap());
    assert_eq!(assembly.blocks_begun(PIECE, 0), 0, "it is not arriving");
    assert_eq!(foreseen, assembly.place(block));
    assembly.insert_buffer(PIECE, 0, 7);
    assert_eq!(assembly.blocks_begun(PIECE, 0), 2);
    assert_eq!(assembly.foresee(block, false), None, "it arrives");
    let rest = assembly.foresee(block, true).unwrap();
    assert_eq!((rest.offset_in_segment, rest.needs_buffer), (16_384, None));
    assembly.block_done(block);
    for is_begun in [false, true] {
        assert_eq!(assembly.foresee(block, is_begun), None, "it is here");
    }
    let taken = assembly.take_segment(PIECE, 0).unwrap();
    assert_eq!(assembly.foresee(block, false), None, "it is on loan");
    assembly.written(taken.ticket);
    assert_eq!(assembly.foresee(block, false), None, "it is on disk");
    assembly.check();
}

#[test]
fn failed_flush_merges_into_the_newer_buffer() {
    let (geometry, mut assembly) = world();
    let first = geometry.block(PIECE, 0).unwrap();
    let second = geometry.block(PIECE, 1).unwrap();
    assembly.place(first);
    assembly.insert_buffer(PIECE, 0, 7);
    assembly.block_done(first);
    let taken = assembly.take_segment(PIECE, 0).unwrap();
    assembly.place(second);
    assembly.insert_buffer(PIECE, 0, 8);
    let mut moved = Vec::new();
    let freed = assembly.give_back(taken.ticket, taken.buffer, |_, _, run| {
        moved.push(run);
        true
    });
    assert_eq!(freed, Some(7));
    assert!(moved.len() == 1 && moved[0] == (0..16_384));
    assert_eq!(assembly.blocks_in_memory(PIECE, 0), 1);
    assembly.check();
}

#[test]
fn what_cannot_be_merged_is_in_memory_no_more() {
    let (geometry, mut assembly) = world();
    let [first, second, third] = [0, 1, 2].map(|at| geometry.block(PIECE, at).unwrap());
    for block in [first, third] {
        assembly.place(block);
    }
    assembly.insert_buffer(PIECE, 0, 7);
    for block in [first, third] {
        assembly.block_done(block);
    }
    let taken = assembly.take_segment(PIECE, 0).unwrap();
    assembly.place(second);
    assembly.insert_buffer(PIECE, 0, 8);
    assembly.give_back(taken.ticket, taken.buffer, |_, _, run| run.start == 0);
    assert_eq!(assembly.blocks_in_memory(PIECE, 0), 1);
    assembly.check();
}

#[test]
fn answers_after_a_discard_change_nothing() {
    let (geometry, mut assembly) = world();
    fill(&geometry, &mut assembly, 0);
    let taken = assembly.take_segment_for_flush(PIECE, 0).unwrap();
    assembly.discard(PIECE);
    assembly.place(geometry.block(PIECE, 0).unwrap());
    assembly.written(taken.ticket);
    assembly.put_hash(taken.ticket, 1);
    assert_eq!(assembly.blocks_on_disk(PIECE, 0), 0);
    assert!(!assembly.is_current(taken.ticket));
    let freed = assembly.give_back(taken.ticket, taken.buffer, |_, _, _| unreachable!());
    assert_eq!(freed, Some(0));
    assembly.check();
}

#[test]
fn abandoned_block_frees_an_otherwise_empty_segment() {
    let (geometry, mut assembly) = world();
    let block = geometry.block(PIECE, 3).unwrap();
    assembly.place(block);
    assembly.insert_buffer(PIECE, 0, 7);
    assert_eq!(assembly.memory_bytes(), u64::from(SEGMENT_BYTES));
    assert_eq!(assembly.block_abandoned(block), Some(7));
    assert_eq!(assembly.memory_bytes(), 0);
}

#[test]
fn runs_join_neighbours_and_end_with_the_segment() {
    let all: Vec<_> = runs(0b1_0110, 70_000).collect();
    assert_eq!(all, [16_384..49_152, 65_536..70_000]);
    assert_eq!(runs(u16::MAX, SEGMENT_BYTES).count(), 1);
}
