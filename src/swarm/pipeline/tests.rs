use super::*;
use crate::base::Geometry;

fn block(index: u32) -> BlockRef {
    let geometry = Geometry::new(1 << 30, 1 << 30 >> 1).unwrap();
    geometry.block(PieceIndex::new(0), index).unwrap()
}

fn raw(block: BlockRef) -> RawBlock {
    RawBlock {
        piece: block.piece().get(),
        begin: block.begin(),
        length: block.length(),
    }
}

fn send(p: &mut Pipeline, block: BlockRef, now: Now) {
    p.push(block);
    assert_eq!(p.next_to_send(now), Some(block));
}

#[test]
fn what_was_not_sent_is_withdrawn_without_a_trace() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    p.push(block(0));
    p.push(block(1));
    assert_eq!(p.next_to_send(Now::ZERO), Some(block(0)));
    let withdrawn = p.withdraw_all();
    assert_eq!(withdrawn.sent, [block(0)]);
    assert_eq!(withdrawn.unsent, [block(1)]);
    assert_eq!(p.take(raw(block(1)), Now::ZERO), Asked::No);
    assert_eq!(p.take(raw(block(0)), Now::ZERO), Asked::Late(block(0)));
}

#[test]
fn a_late_block_answers_the_request_that_was_about_to_be_made_again() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    send(&mut p, block(0), Now::ZERO);
    p.withdraw(block(0));
    p.push(block(0));
    assert_eq!(
        p.take(raw(block(0)), Now::ZERO),
        Asked::Outstanding(block(0))
    );
    assert!(p.is_empty());
}

#[test]
fn depth_doubles_each_round_trip_up_to_what_the_peer_bears() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    p.set_peer_reqq(402);
    let mut rounds = 0;
    while p.depth() < 400 {
        rounds += 1;
        assert!(rounds <= 5, "depth {}", p.depth());
        for _ in 0..p.depth() {
            p.on_bytes(BLOCK_BYTES, Now::from_millis(rounds));
            p.on_block(Now::from_millis(rounds));
        }
    }
}

/// Answers each request `latency_ms` after it was sent, at most `blocks_per_s` of them, for 20 s.
fn depth_after_20_s(latency_ms: u64, blocks_per_s: u64) -> u32 {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    p.set_peer_reqq(PIPELINE_MAX);
    let mut sent: VecDeque<(BlockRef, u64)> = VecDeque::new();
    let mut next = 0;
    let mut free_at_us = 0;
    for now_us in (0..20_000_000).step_by(1_000) {
        let now = Now::from_micros(now_us);
        while p.room() > 0 {
            send(&mut p, block(next % 32_768), now);
            sent.push_back((block(next % 32_768), now_us));
            next += 1;
        }
        while let Some((block, sent_at_us)) = sent.front().copied()
            && sent_at_us + latency_ms * 1_000 <= now_us
            && free_at_us <= now_us
        {
            free_at_us = free_at_us.max(now_us) + 1_000_000 / blocks_per_s;
            sent.pop_front();
            assert_eq!(p.take(raw(block), now), Asked::Outstanding(block));
            p.on_bytes(BLOCK_BYTES, now);
            p.on_block(now);
        }
    }
    p.depth()
}

#[test]
fn depth_follows_the_rate_times_the_time_to_cover() {
    let near = |depth: u32, wanted: u32| depth.abs_diff(wanted) <= wanted / 8 + 1;
    let (slow, fast) = (depth_after_20_s(10, 20), depth_after_20_s(10, 200));
    assert!(near(slow, 20) && near(fast, 200), "{slow} and {fast}");
    let far = depth_after_20_s(1_000, 200);
    assert!(near(far, 400), "a second of latency is covered too: {far}");
}

#[test]
fn a_slow_peer_gets_a_short_queue() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    for second in 1..20 {
        p.on_bytes(BLOCK_BYTES, Now::from_secs(second));
        p.on_block(Now::from_secs(second));
    }
    assert_eq!(p.depth(), PEER_PACE.depth_min);
}

#[test]
fn a_peer_that_unchokes_late_still_gets_its_slow_start() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    send(&mut p, block(0), Now::from_secs(20));
    p.on_bytes(BLOCK_BYTES, Now::from_millis(20_050));
    p.on_block(Now::from_millis(20_050));
    assert_eq!(p.depth(), PEER_PACE.depth_start + 1);
}

#[test]
fn withdrawn_requests_are_late_not_unasked() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    send(&mut p, block(0), Now::ZERO);
    send(&mut p, block(1), Now::ZERO);
    assert_eq!(p.withdraw(block(1)).sent, [block(1)]);
    assert_eq!(p.withdraw(block(1)), Withdrawn::default());
    let now = Now::from_millis(1);
    assert_eq!(p.take(raw(block(0)), now), Asked::Outstanding(block(0)));
    assert_eq!(p.take(raw(block(1)), now), Asked::Late(block(1)));
    assert_eq!(p.take(raw(block(1)), now), Asked::No);
}

#[test]
fn a_reject_answers_the_cancelled_request_not_the_new_one() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    send(&mut p, block(0), Now::ZERO);
    p.withdraw(block(0));
    send(&mut p, block(0), Now::ZERO);
    assert_eq!(p.take_rejected(raw(block(0))), Asked::Late(block(0)));
    assert_eq!(p.take_rejected(raw(block(0))), Asked::Outstanding(block(0)));
    assert_eq!(p.take_rejected(raw(block(0))), Asked::No);
}

#[test]
fn silence_snubs_and_a_block_ends_it() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    let quiet = |p: &mut Pipeline, secs| p.check_silence(Now::from_secs(secs));
    assert_eq!(quiet(&mut p, 100), Silence::None, "nothing is owed");
    p.push(block(0));
    assert_eq!(quiet(&mut p, 99), Silence::None, "nothing was sent");
    p.next_to_send(Now::from_secs(100));
    send(&mut p, block(1), Now::from_secs(100));
    assert_eq!(quiet(&mut p, 129), Silence::None);
    assert_eq!(quiet(&mut p, 130), Silence::Snubbed);
    let withdrawn = p.withdraw_snubbed(Now::from_secs(130));
    assert_eq!(withdrawn.sent, [block(0), block(1)]);
    assert_eq!((p.room(), p.probe()), (0, Some(block(0))));
    assert_eq!(quiet(&mut p, 159), Silence::None);
    assert_eq!(quiet(&mut p, 160), Silence::ProbeDue);
    let before = p.set_probe(Some(block(2)), Now::from_secs(160));
    assert_eq!(before, Some(block(0)), "is cancelled for the new one");
    assert_eq!(quiet(&mut p, 161), Silence::None);
    assert_eq!(
        p.take(raw(block(0)), Now::from_secs(161)),
        Asked::Late(block(0))
    );
    assert_eq!(p.take_stale_probe(), None, "still snubbed");
    p.on_block(Now::from_secs(161));
    assert_eq!(p.take_stale_probe(), Some(block(2)));
    assert!(p.room() > 1);
}

#[test]
fn absurd_reqq_is_clamped() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    p.set_peer_reqq(0);
    assert_eq!(p.room(), 1);
    p.set_peer_reqq(1 << 31);
    assert_eq!(p.depth_max, PIPELINE_MAX);
}

/// Transmission unchokes at its ten-second mark and answers what has come every half second.
#[test]
fn a_peer_that_answers_in_bursts_long_after_connecting_is_soon_asked_for_much() {
    let mut p = Pipeline::new(&PEER_PACE, Now::ZERO);
    let mut next = 0;
    for half_second in 20..26 {
        let now = Now::from_millis(half_second * 500);
        for asked in p.withdraw_all().sent {
            p.on_bytes(asked.length(), now);
            p.on_block(now);
        }
        while p.room() > 0 {
            send(&mut p, block(next), now);
            next += 1;
        }
    }
    assert_eq!(p.depth(), PEER_REQQ_DEFAULT);
}
