//! Both sides against bytes that another program made, against each other in any split, and against what breaks the rules.

use super::dh::KeyPair;
use super::*;

const INFO_HASH: [u8; 20] = counted(100);

const fn counted(first: u8) -> [u8; 20] {
    let mut bytes = [0; 20];
    let mut at = 0;
    while at < 20 {
        bytes[at] = first + at as u8;
        at += 1;
    }
    bytes
}

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// A whole handshake of another program: secrets 01…14 and c8…db, pads of 5, 7, 3 and 2 bytes, IA "ia..", "behind" and
/// "answer" behind it.
const YA: &str = "96e112dab29e8c5272accb9b17b26887ce54a144a4e3b697c7d159b7a817e556b0918db2b4c658e02a87f7e5fb14b18a553e084cbf3dad2d30f16596ccb982d406258c61b30c5c1dae2ddc60bdbd48d79896312aad63238c39e1a633821eb693";
const YB: &str = "03c593e7dcfea0f15646f07b91aab5c9d94bea8862cfa18beb3f0621fc92df7a76dbb155a5d50b5e9f66def0854433675e74fb2b5c0c3a2ae060a0f6d417fd429f5368a632bbb0008609ab2e9520a8fec77abb2631833b72ac8a5028ae2b76c2";
const S: &str = "2821a957fd9c8fd5c7c11aa203a8ea7381deb98dd43569f5e9564b001b40aff0708be4e5dcc07bf35d9bdb055a2ad2b989cf30456f27f00bd1bcc11bf22b75896c10732d840666bfd0731965a439f3c28ad5311d5d1a0f09baea34cbffd58af9";
const A2: &str = "01940d77d5d2bd148765495c55d8e5359a33066837f1187cd11909a87f6b45c4c64cc6701d4ef8894d5e30f06672ebd68c4fb2c9751ddacde0a45dd1f781e6";
const A3: &str = "0926ae47469c";
const B2: &str = "2796235bfa1200eed1363986cef272747379ac812e15";

fn random(secret: [u8; 20], seed: u64) -> Random {
    let mut bytes = [0; RANDOM_BYTES];
    bytes[..20].copy_from_slice(&secret);
    bytes[20..].copy_from_slice(&seed.to_le_bytes());
    Random::new(bytes)
}

fn initiator(offers: Payloads, initial: &[u8], seed: u64) -> Initiator {
    Initiator::new(
        InfoHash::new(INFO_HASH),
        offers,
        initial,
        random(counted(1), seed),
    )
}

/// Runs a responder that has the torrent as far as it goes.
fn answer(responder: &mut Responder, seed: u64) -> Result<Step, MseError> {
    loop {
        match responder.advance()? {
            Step::Exchange => responder.exchange(random(counted(200), seed))?,
            Step::Torrent(wanted) => {
                let ours = InfoHash::new(INFO_HASH);
                responder.set_torrent((wanted == StreamHash::of(&ours)).then_some(ours))?;
            }
            step => return Ok(step),
        }
    }
}

fn responder_after(accepts: Payloads, bytes: &[u8], step: usize) -> Result<Agreed, MseError> {
    let mut responder = Responder::new(accepts);
    for part in bytes.chunks(step.max(1)) {
        responder.feed(part);
        answer(&mut responder, 3)?;
    }
    Ok(responder.finish().expect("done"))
}

/// What the other program sends as the one that dialed.
fn dialing() -> Vec<u8> {
    [unhex(YA), vec![1; 5], unhex(A2), unhex(A3)].concat()
}

/// And as the one that was dialed.
fn dialed() -> Vec<u8> {
    [unhex(YB), vec![2; 7], unhex(B2)].concat()
}

#[test]
fn keys_and_secret_are_those_of_another_program() {
    let (a, b) = (KeyPair::new(counted(1)), KeyPair::new(counted(200)));
    assert_eq!(a.public()[..], unhex(YA));
    assert_eq!(b.public()[..], unhex(YB));
    assert_eq!(a.agree(b.public()).unwrap()[..], unhex(S));
    assert_eq!(b.agree(a.public()).unwrap()[..], unhex(S));
}

#[test]
fn a_responder_reads_another_program_in_every_split() {
    let bytes = dialing();
    for step in 1..=bytes.len() {
        let agreed = responder_after(Payloads::Rc4Only, &bytes, step).unwrap();
        assert_eq!(agreed.payload(), Payload::Rc4);
        assert_eq!(agreed.early, b"ia..behind"[..agreed.early.len()]);
    }
    for cut in 1..bytes.len() {
        let mut responder = Responder::new(Payloads::Rc4Only);
        responder.feed(&bytes[..cut]);
        let is_done = answer(&mut responder, 1).unwrap() == Step::Done;
        assert_eq!(is_done, cut >= bytes.len() - 6, "{cut} bytes");
        responder.feed(&bytes[cut..]);
        assert_eq!(answer(&mut responder, 1), Ok(Step::Done));
        assert_eq!(responder.finish().unwrap().early, b"ia..behind");
    }
}

#[test]
fn of_two_payloads_the_plain_one_is_chosen_and_what_follows_stays_as_it_is() {
    let agreed = responder_after(Payloads::Both, &dialing(), usize::MAX).unwrap();
    assert_eq!(agreed.payload(), Payload::Plain);
    assert_eq!(agreed.early, [b"ia..", &unhex(A3)[..]].concat());
}

#[test]
fn an_initiator_reads_another_program_in_every_split_and_says_the_same() {
    let bytes = dialed();
    for cut in 0..bytes.len() {
        let mut initiator = initiator(Payloads::Both, b"ia..", 9);
        let begin = initiator.take_out();
        assert_eq!(begin[..96], unhex(YA));
        let is_done = initiator.feed(&bytes[..cut]).unwrap();
        assert_eq!(is_done, cut >= bytes.len() - 6, "{cut} bytes");
        assert!(initiator.feed(&bytes[cut..]).unwrap());
        let said = initiator.take_out();
        // Two hashes, VC and what is offered; the pad is ours.
        assert_eq!(said[..52], unhex(A2)[..52]);
        let agreed = initiator.finish().unwrap();
        assert_eq!(agreed.payload(), Payload::Rc4);
        assert_eq!(agreed.early, b"answer");
    }
}

#[test]
fn both_sides_agree_whatever_the_pads_and_splits() {
    let mut rng = Rng::new(11);
    for seed in 0..400 {
        let (offers, accepts, payload) = match seed % 4 {
            0 => (Payloads::Both, Payloads::Both, Payload::Plain),
            1 => (Payloads::Both, Payloads::Rc4Only, Payload::Rc4),
            2 => (Payloads::Rc4Only, Payloads::Both, Payload::Rc4),
            _ => (Payloads::Rc4Only, Payloads::Rc4Only, Payload::Rc4),
        };
        let initial = vec![7; rng.below(200) as usize];
        let (mut a, mut b) = (initiator(offers, &initial, seed), Responder::new(accepts));
        let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
        let (mut is_a_done, mut is_b_done) = (false, false);
        while !is_a_done || !is_b_done {
            to_b.extend(a.take_out());
            let now = to_b.len().min(rng.below(120) as usize + 1);
            b.feed(&to_b[..now]);
            to_b.drain(..now);
            is_b_done = answer(&mut b, seed).unwrap() == Step::Done;
            to_a.extend(b.take_out());
            let now = to_a.len().min(rng.below(120) as usize + 1);
            is_a_done |= a.feed(&to_a[..now]).unwrap();
            to_a.drain(..now);
        }
        a.feed(&to_a).unwrap();
        b.feed(&to_b);
        let (a, b) = (a.finish().unwrap(), b.finish().unwrap());
        assert_eq!((a.payload(), b.payload()), (payload, payload));
        assert_eq!((&a.early[..], &b.early[..]), (&[][..], &initial[..]));
        if let (Some(mut a), Some(mut b)) = (a.ciphers, b.ciphers) {
            let mut there = *b"from the one that dialed";
            a.outbound.apply(&mut there);
            b.inbound.apply(&mut there);
            assert_eq!(&there, b"from the one that dialed");
            let mut back = *b"and back";
            b.outbound.apply(&mut back);
            a.inbound.apply(&mut back);
            assert_eq!(&back, b"and back");
        }
    }
}

#[test]
fn every_truncation_waits_and_is_no_error() {
    let bytes = dialing();
    for cut in 0..bytes.len() - 6 {
        let mut responder = Responder::new(Payloads::Both);
        responder.feed(&bytes[..cut]);
        assert_eq!(answer(&mut responder, 1), Ok(Step::Bytes), "{cut} bytes");
        assert!(responder.finish().is_none());
    }
    let bytes = dialed();
    for cut in 0..bytes.len() - 6 {
        let mut initiator = initiator(Payloads::Both, b"", 1);
        assert_eq!(initiator.feed(&bytes[..cut]), Ok(false), "{cut} bytes");
        assert!(initiator.finish().is_none());
    }
}

/// A number that would make the secret known, and its neighbours.
fn bad_keys() -> Vec<[u8; KEY_BYTES]> {
    let mut prime = [0xff; KEY_BYTES];
    let middle = "c90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3cd3a431b\
                  302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a63a36210000000000090563";
    prime[8..].copy_from_slice(&unhex(middle));
    let near = |less: i8| {
        let mut key = prime;
        key[KEY_BYTES - 1] = key[KEY_BYTES - 1].wrapping_add_signed(less);
        key
    };
    let mut one = [0; KEY_BYTES];
    one[KEY_BYTES - 1] = 1;
    vec![
        [0; KEY_BYTES],
        one,
        near(-1),
        prime,
        near(1),
        [0xff; KEY_BYTES],
    ]
}

#[test]
fn keys_that_give_the_secret_away_are_refused_by_both_sides() {
    for key in bad_keys() {
        let mut responder = Responder::new(Payloads::Both);
        responder.feed(&key);
        assert_eq!(answer(&mut responder, 1), Err(MseError::BadKey), "{key:x?}");
        let mut initiator = initiator(Payloads::Both, b"", 1);
        assert_eq!(initiator.feed(&key), Err(MseError::BadKey), "{key:x?}");
    }
    let mut two = [0; KEY_BYTES];
    two[KEY_BYTES - 1] = 2;
    let mut last = bad_keys()[3];
    last[KEY_BYTES - 1] -= 2;
    for key in [two, last] {
        assert!(KeyPair::new(counted(1)).agree(&key).is_some(), "{key:x?}");
    }
}

#[test]
fn a_search_that_finds_nothing_ends_at_its_bound() {
    let mut responder = Responder::new(Payloads::Both);
    responder.feed(&unhex(YA));
    assert_eq!(answer(&mut responder, 1), Ok(Step::Bytes));
    for _ in 0..PAD_BYTES_MAX + 19 {
        responder.feed(&[1]);
        assert_eq!(answer(&mut responder, 1), Ok(Step::Bytes));
    }
    responder.feed(&[1]);
    let searched_bytes = PAD_BYTES_MAX + 20;
    assert_eq!(
        answer(&mut responder, 1),
        Err(MseError::NoSync { searched_bytes })
    );

    let mut initiator = initiator(Payloads::Both, b"", 1);
    initiator.feed(&unhex(YB)).unwrap();
    for _ in 0..PAD_BYTES_MAX + 7 {
        assert_eq!(initiator.feed(&[1]), Ok(false));
    }
    let searched_bytes = PAD_BYTES_MAX + 8;
    assert_eq!(
        initiator.feed(&[1]),
        Err(MseError::NoSync { searched_bytes })
    );
}

#[test]
fn pads_may_be_as_long_as_the_specification_says_and_no_byte_longer() {
    let with_pad = |pad| [unhex(YA), vec![1; pad], unhex(A2)].concat();
    assert!(responder_after(Payloads::Both, &with_pad(PAD_BYTES_MAX), 50).is_ok());
    let searched_bytes = PAD_BYTES_MAX + 20;
    let too_long = responder_after(Payloads::Both, &with_pad(PAD_BYTES_MAX + 1), 50);
    assert_eq!(too_long.unwrap_err(), MseError::NoSync { searched_bytes });
    let with_pad = |pad| [unhex(YB), vec![1; pad], unhex(B2)].concat();
    assert_eq!(
        initiator(Payloads::Both, b"", 1).feed(&with_pad(PAD_BYTES_MAX)),
        Ok(true)
    );
    let searched_bytes = PAD_BYTES_MAX + 8;
    let too_long = initiator(Payloads::Both, b"", 1).feed(&with_pad(PAD_BYTES_MAX + 1));
    assert_eq!(too_long, Err(MseError::NoSync { searched_bytes }));
}

/// The fields behind the hashes as the initiator of the golden handshake would encrypt them.
fn provide(fields: &[&[u8]]) -> Vec<u8> {
    let secret = unhex(S).try_into().unwrap();
    let mut fields = fields.concat();
    let mut ciphers = Ciphers::new(&secret, &InfoHash::new(INFO_HASH), true);
    ciphers.outbound.apply(&mut fields);
    [unhex(YA), unhex(A2)[..40].to_vec(), fields].concat()
}

/// The fields behind PadB as the responder of the golden handshake would encrypt them.
fn select(fields: &[&[u8]]) -> Vec<u8> {
    let secret = unhex(S).try_into().unwrap();
    let mut fields = fields.concat();
    let mut ciphers = Ciphers::new(&secret, &InfoHash::new(INFO_HASH), false);
    ciphers.outbound.apply(&mut fields);
    [unhex(YB), fields].concat()
}

#[test]
fn a_responder_refuses_wrong_fields() {
    let (pad_max, too_long) = (512_u16.to_be_bytes(), 513_u16.to_be_bytes());
    let (initial_max, initial_over) = (4096_u16.to_be_bytes(), 4097_u16.to_be_bytes());
    let nothing = |theirs, ours| MseError::NothingInCommon { theirs, ours };
    let cases: [(Vec<u8>, Payloads, MseError); 8] = [
        (
            provide(&[&[0, 0, 0, 0, 0, 0, 0, 1], &[0, 0, 0, 3, 0, 0]]),
            Payloads::Both,
            MseError::WrongConstant,
        ),
        (
            provide(&[&VC, &[0, 0, 0, 0, 0, 0]]),
            Payloads::Both,
            nothing(0, 3),
        ),
        (
            provide(&[&VC, &[0, 0, 0, 1, 0, 0]]),
            Payloads::Rc4Only,
            nothing(1, 2),
        ),
        (
            provide(&[&VC, &[0xff, 0xff, 0xff, 0xfc, 0, 0]]),
            Payloads::Both,
            nothing(0xffff_fffc, 3),
        ),
        (
            provide(&[&VC, &[0, 0, 0, 3], &too_long]),
            Payloads::Both,
            MseError::PadTooLong {
                got_bytes: 513,
                max_bytes: 512,
            },
        ),
        (
            provide(&[&VC, &[0, 0, 0, 3], &[0xff; 2]]),
            Payloads::Both,
            MseError::PadTooLong {
                got_bytes: 65_535,
                max_bytes: 512,
            },
        ),
        (
            provide(&[&VC, &[0, 0, 0, 3, 0, 0], &initial_over]),
            Payloads::Both,
            MseError::InitialTooLong {
                got_bytes: 4097,
                max_bytes: 4096,
            },
        ),
        (
            provide(&[&VC, &[0, 0, 0, 3, 0, 0], &[0xff; 2]]),
            Payloads::Both,
            MseError::InitialTooLong {
                got_bytes: 65_535,
                max_bytes: 4096,
            },
        ),
    ];
    for (bytes, accepts, expected) in cases {
        for step in [1, usize::MAX] {
            assert_eq!(
                responder_after(accepts, &bytes, step).unwrap_err(),
                expected
            );
        }
    }
    let longest = provide(&[
        &VC,
        &[0, 0, 0, 2],
        &pad_max,
        &[0; 512],
        &initial_max,
        &[5; 4096],
        b"behind",
    ]);
    let agreed = responder_after(Payloads::Both, &longest, 100).unwrap();
    assert_eq!(agreed.early[..4096], [5; 4096]);
}

#[test]
fn an_initiator_refuses_wrong_fields() {
    let nothing = |theirs, ours| MseError::NothingInCommon { theirs, ours };
    let too_long = MseError::PadTooLong {
        got_bytes: 513,
        max_bytes: 512,
    };
    let cases: [(Vec<u8>, Payloads, MseError); 5] = [
        (
            select(&[&VC, &[0, 0, 0, 1, 0, 0]]),
            Payloads::Rc4Only,
            nothing(1, 2),
        ),
        (
            select(&[&VC, &[0, 0, 0, 0, 0, 0]]),
            Payloads::Both,
            nothing(0, 3),
        ),
        (
            select(&[&VC, &[0, 0, 0, 3, 0, 0]]),
            Payloads::Both,
            nothing(3, 3),
        ),
        (
            select(&[&VC, &[0, 0, 0, 4, 0, 0]]),
            Payloads::Both,
            nothing(4, 3),
        ),
        (
            select(&[&VC, &[0, 0, 0, 2, 2, 1]]),
            Payloads::Both,
            too_long,
        ),
    ];
    for (bytes, offers, expected) in cases {
        assert_eq!(initiator(offers, b"", 1).feed(&bytes), Err(expected));
    }
    let longest = select(&[&VC, &[0, 0, 0, 2, 2, 0], &[0; 512], b"behind"]);
    let mut initiator = initiator(Payloads::Rc4Only, b"", 1);
    assert_eq!(initiator.feed(&longest), Ok(true));
    assert_eq!(initiator.finish().unwrap().early, b"behind");
}

#[test]
fn an_unknown_torrent_is_an_error_before_anything_is_decrypted() {
    let mut responder = Responder::new(Payloads::Both);
    let mut bytes = dialing();
    bytes[96 + 5 + 20] ^= 1;
    responder.feed(&bytes);
    assert_eq!(answer(&mut responder, 1), Err(MseError::UnknownTorrent));
}

#[test]
fn an_answer_in_the_open_ends_the_handshake_before_a_key_could_be_there() {
    let mut initiator = initiator(Payloads::Both, b"", 1);
    let open = b"\x13BitTorrent protocol";
    assert_eq!(initiator.feed(&open[..19]), Ok(false));
    assert_eq!(initiator.feed(&open[19..]), Err(MseError::InTheOpen));
}

#[test]
fn a_reflected_handshake_ends_at_once() {
    let mut initiator = initiator(Payloads::Both, b"ia", 1);
    let begin = initiator.take_out();
    assert_eq!(initiator.feed(&begin), Err(MseError::Reflected));

    // What a responder says, sent back to it, is no hash of the secret.
    let mut responder = Responder::new(Payloads::Both);
    responder.feed(&unhex(YA));
    answer(&mut responder, 1).unwrap();
    let said = responder.take_out();
    let end = (0..20).find_map(|_| {
        responder.feed(&said);
        answer(&mut responder, 1).err()
    });
    assert!(matches!(end, Some(MseError::NoSync { .. })));
}
