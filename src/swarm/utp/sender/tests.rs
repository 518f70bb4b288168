//! What is lost, sent again and asked for.

use super::*;

const WINDOW: u64 = 1 << 20;

fn sender(packets: usize) -> Sender {
    let mut sender = Sender::new(100);
    assert_eq!(sender.write(&vec![1; packets * 10], 1 << 20), packets * 10);
    for _ in 0..packets {
        sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    }
    sender.check();
    sender
}

fn sack(sender: &mut Sender, acked: u64, bits: u32) -> Acked {
    let bits = bits.to_le_bytes();
    let mut datagram = vec![0x21, 1];
    datagram.resize(20, 0);
    datagram.extend([0, 4]);
    datagram.extend(bits);
    let packet = crate::wire::utp::Packet::parse(&datagram).unwrap();
    let news = sender.on_ack(acked, packet.sack, true, Now::from_millis(30));
    sender.check();
    news
}

#[test]
fn what_three_later_ones_overtook_is_sent_again_once() {
    let mut sender = sender(6);
    let news = sack(&mut sender, 99, 0b011);
    assert_eq!((news.packets, news.lost), (2, None), "two may overtake");
    let news = sack(&mut sender, 99, 0b111);
    assert_eq!((news.packets, news.bytes, news.lost), (1, 10, Some(0)));
    assert_eq!(news.round_trip, Some(Duration::from_millis(30)));
    let again = sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    assert_eq!((again.seq, again.start, again.length), (100, 0, 10));
    assert_eq!(sender.next_packet(WINDOW, 10, None, Now::ZERO), None);
    let news = sack(&mut sender, 99, 0b1111);
    assert_eq!(
        (news.packets, news.lost),
        (1, None),
        "it is on its way anew"
    );
    let news = sender.on_ack(105, None, true, Now::ZERO);
    assert_eq!(news.packets, 2);
    assert!(!sender.awaits_acks() && sender.kept_bytes() == 0);
}

#[test]
fn three_acks_without_news_are_a_loss_where_nothing_else_is_told() {
    let mut sender = sender(3);
    let lost = |sender: &mut Sender| sender.on_ack(99, None, true, Now::ZERO).lost;
    assert_eq!(lost(&mut sender), None);
    assert_eq!(sender.on_ack(99, None, false, Now::ZERO).lost, None, "data");
    assert_eq!(lost(&mut sender), None);
    assert_eq!(lost(&mut sender), Some(0));
    assert_eq!(lost(&mut sender), None);
    sender.check();
}

#[test]
fn the_window_bounds_what_is_on_its_way_and_a_timeout_empties_it() {
    let mut sender = Sender::new(7);
    sender.write(&[5; 100], 60);
    assert_eq!(sender.kept_bytes(), 60);
    let next = |sender: &mut Sender| sender.next_packet(25, 10, None, Now::ZERO);
    assert!(next(&mut sender).is_some() && next(&mut sender).is_some());
    assert_eq!(next(&mut sender), None);
    assert_eq!(sender.on_timeout(), None);
    sender.check();
    assert_eq!(sender.in_flight_bytes(), 0);
    assert_eq!(next(&mut sender).unwrap().seq, 7);
    assert_eq!(next(&mut sender).unwrap().seq, 8);
    sender.on_ack(8, None, true, Now::ZERO);
    assert_eq!(next(&mut sender).unwrap().start, 0);
    sender.check();
}

#[test]
fn a_lost_probe_is_sent_again_unfilled_and_is_no_congestion() {
    let mut sender = Sender::new(0);
    sender.write(&[5; 100], 100);
    let probe = sender.next_packet(WINDOW, 10, Some(1_400), Now::ZERO);
    assert_eq!(probe.unwrap().fill_bytes, Some(1_400));
    for _ in 0..3 {
        sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    }
    let acked = sender.on_ack(0, None, true, Now::ZERO);
    assert_eq!(acked.probe_acked, Some(1_400));
    let mut sender = Sender::new(100);
    sender.write(&[5; 100], 100);
    sender.next_packet(WINDOW, 10, Some(1_400), Now::ZERO);
    for _ in 0..3 {
        sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    }
    let news = sack(&mut sender, 99, 0b111);
    assert_eq!((news.lost, news.probe_lost), (None, Some(1_400)));
    let again = sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    assert_eq!((again.seq, again.fill_bytes), (100, None));
}

#[test]
fn the_end_is_the_last_packet() {
    let mut sender = Sender::new(0);
    sender.write(b"abc", 100);
    sender.finish();
    assert_eq!(sender.write(b"more", 100), 0);
    let next = |sender: &mut Sender| sender.next_packet(WINDOW, 10, None, Now::ZERO);
    assert!(!next(&mut sender).unwrap().is_end);
    let end = next(&mut sender).unwrap();
    assert!(end.is_end && end.length == 0);
    assert_eq!(next(&mut sender), None);
    sender.on_timeout();
    assert!(!next(&mut sender).unwrap().is_end && next(&mut sender).unwrap().is_end);
    sender.on_ack(1, None, true, Now::ZERO);
    assert!(sender.is_done());
    sender.check();
}

#[test]
fn what_asks_for_a_late_answer_goes_past_the_window_and_tells_a_lost_packet_from_a_lost_ack() {
    let mut asking = sender(4);
    assert_eq!(asking.ask_again(), None);
    asking.check();
    let again = asking.next_packet(10, 10, None, Now::ZERO).unwrap();
    assert_eq!(again.seq, 103, "the newest one");
    assert_eq!(asking.next_packet(10, 10, None, Now::ZERO), None);
    let mut tail = asking.clone();
    let news = asking.on_ack(103, None, true, Now::ZERO);
    assert_eq!((news.packets, news.lost), (4, None), "the ack was lost");
    tail.on_ack(102, None, true, Now::ZERO);
    let news = tail.on_ack(103, None, true, Now::ZERO);
    assert_eq!((news.packets, news.lost), (1, Some(3)), "the last one was");
    assert!(!tail.awaits_acks());
}

#[test]
fn a_probe_that_asks_is_sent_again_unfilled() {
    let mut sender = Sender::new(0);
    sender.write(&[5; 10], 100);
    sender.next_packet(WINDOW, 10, Some(1_400), Now::ZERO);
    assert_eq!(sender.ask_again(), Some(1_400));
    let again = sender.next_packet(WINDOW, 10, None, Now::ZERO).unwrap();
    assert_eq!((again.seq, again.fill_bytes), (0, None));
    assert_eq!(sender.on_ack(0, None, true, Now::ZERO).lost, None);
}

#[test]
fn the_first_of_the_lost_waits_for_no_room_in_the_window() {
    let mut sender = sender(8);
    let news = sack(&mut sender, 99, 0b0011_1000);
    assert_eq!(news.lost, Some(3));
    let next = |sender: &mut Sender| sender.next_packet(10, 10, None, Now::ZERO);
    assert_eq!(next(&mut sender).unwrap().seq, 100);
    assert_eq!(next(&mut sender), None);
    sender.check();
}
