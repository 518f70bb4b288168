//! The handshake at every split of the proxy's bytes, and the heads of datagrams.

use super::*;

fn login() -> Option<Login> {
    Login::new(b"user".to_vec(), b"pass word".to_vec())
}

fn name() -> Target {
    Target::Name("tracker.example".to_owned(), 6969)
}

/// Feeds the proxy's bytes, at most `step` at a time; gives all that was sent, how many bytes were taken, and the end.
fn shake(
    mut client: Client,
    answers: &[u8],
    step: usize,
) -> (Vec<u8>, usize, Result<Option<Target>, SocksError>) {
    let (mut sent, mut taken) = (client.take_out(), 0);
    while taken < answers.len() && client.wanted() > 0 {
        let end = answers.len().min(taken + step.min(client.wanted()));
        let fed = client.feed(&answers[taken..end]);
        taken = end;
        sent.extend(client.take_out());
        match fed {
            Ok(None) => {}
            done => return (sent, taken, done),
        }
    }
    (sent, taken, Ok(None))
}

fn client(login: Option<Login>) -> Client {
    Client::new(Command::Connect, &name(), login).unwrap()
}

#[test]
fn a_handshake_is_the_same_at_every_split_and_takes_nothing_behind_it() {
    let bounds: [(&[u8], Target); 3] = [
        (
            &[1, 9, 8, 7, 6, 0x1a, 0xe1],
            Target::Addr("9.8.7.6:6881".parse().unwrap()),
        ),
        (
            &[
                4, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 80,
            ],
            Target::Addr("[2001:db8::1]:80".parse().unwrap()),
        ),
        (b"\x03\x03abc\x00\x50", Target::Name("abc".to_owned(), 80)),
    ];
    for (bound, expected) in bounds {
        let mut plain = vec![5, 0, 5, 0, 0];
        plain.extend(bound);
        let length = plain.len();
        plain.extend(b"\x13BitTorrent protocol");
        let mut with_login = vec![5, 2, 1, 0, 5, 0, 0];
        with_login.extend(bound);
        for step in 1..=length {
            let (sent, taken, end) = shake(client(None), &plain, step);
            assert_eq!(end, Ok(Some(expected.clone())), "step {step}");
            assert_eq!(taken, length, "what comes behind is left alone");
            assert_eq!(
                sent,
                b"\x05\x01\x00\x05\x01\x00\x03\x0ftracker.example\x1b\x39"
            );
            let (sent, taken, end) = shake(client(login()), &with_login, step);
            assert_eq!((end, taken), (Ok(Some(expected.clone())), length + 2));
            assert_eq!(
                sent,
                b"\x05\x02\x00\x02\x01\x04user\x09pass word\x05\x01\x00\x03\x0ftracker.example\x1b\x39"
            );
        }
        for end in 0..length {
            assert_eq!(
                shake(client(None), &plain[..end], 1).2,
                Ok(None),
                "cut at {end}"
            );
        }
    }
}

#[test]
fn a_user_and_password_are_sent_only_where_the_proxy_asks() {
    let (sent, _, _) = shake(client(login()), &[5, 0], 2);
    assert!(!sent.windows(4).any(|part| part == b"user"));
}

#[test]
fn whoever_does_not_agree_is_understood() {
    use SocksError::{
        NoMethod, NotSocks, Refused, WantsLogin, WrongAddress, WrongLogin, WrongMethod,
    };
    let table: [(Option<Login>, &[u8], SocksError); 17] = [
        (None, b"HTTP/1.1 400", NotSocks { first: b'H' }),
        (None, &[4, 90], NotSocks { first: 4 }),
        (None, &[5, 2], WantsLogin),
        (None, &[5, 0xff], WantsLogin),
        (login(), &[5, 0xff], NoMethod),
        (login(), &[5, 1], WrongMethod(1)),
        (login(), &[5, 2, 1, 1], WrongLogin),
        (login(), &[5, 2, 5, 0], NotSocks { first: 5 }),
        (None, &[5, 0, 5, 1], Refused(Refusal::General)),
        (
            None,
            &[5, 0, 5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
            Refused(Refusal::NotAllowed),
        ),
        (None, &[5, 0, 5, 3], Refused(Refusal::NetworkUnreachable)),
        (None, &[5, 0, 5, 4], Refused(Refusal::HostUnreachable)),
        (None, &[5, 0, 5, 5], Refused(Refusal::ConnectionRefused)),
        (None, &[5, 0, 5, 7], Refused(Refusal::CommandUnsupported)),
        (None, &[5, 0, 5, 8], Refused(Refusal::AddressUnsupported)),
        (None, &[5, 0, 5, 200], Refused(Refusal::Other(200))),
        (None, &[5, 0, 5, 0, 0, 2, 0], WrongAddress(2)),
    ];
    for (login, answers, expected) in table {
        for step in 1..=answers.len() {
            let (_, _, end) = shake(client(login.clone()), answers, step);
            assert_eq!(end, Err(expected), "{answers:?} by {step}");
        }
        assert!(!expected.hint().is_empty() && !expected.to_string().is_empty());
    }
    assert!(WrongLogin.is_lasting() && !Refused(Refusal::NotAllowed).is_lasting());
    assert!(Refusal::Expired.is_of_target() && !Refusal::NotAllowed.is_of_target());
}

#[test]
fn names_and_logins_have_the_lengths_that_a_byte_can_tell() {
    let long = |bytes: usize| Target::Name("x".repeat(bytes), 1);
    assert!(Client::new(Command::Connect, &long(255), None).is_ok());
    let refused = Client::new(Command::Connect, &long(256), None).map(|_| ());
    assert_eq!(refused, Err(SocksError::LongName));
    assert!(wrap(&long(256), b"").is_err());
    assert!(Login::new(vec![1; 255], vec![1; 255]).is_some());
    assert!(Login::new(vec![1; 256], vec![1]).is_none());
    assert!(Login::new(vec![1], vec![1; 256]).is_none());
    assert!(Login::new(vec![], vec![1]).is_none());
    assert!(
        !format!("{:?}", login()).contains("pass"),
        "no password in a log"
    );
}

#[test]
fn datagrams_carry_any_target_and_broken_ones_are_nobodys() {
    let targets = [
        Target::Addr("9.8.7.6:6881".parse().unwrap()),
        Target::Addr("[2001:db8::1]:80".parse().unwrap()),
        name(),
    ];
    for target in targets {
        let datagram = wrap(&target, b"d1:q4:pinge").unwrap();
        assert_eq!(unwrap(&datagram), Some((target, &b"d1:q4:pinge"[..])));
        for end in 0..datagram.len() - 11 {
            assert_eq!(unwrap(&datagram[..end]), None, "cut at {end}");
        }
        let mut fragment = datagram.clone();
        fragment[2] = 1;
        assert_eq!(unwrap(&fragment), None, "a fragment");
    }
    assert_eq!(unwrap(&[0, 0, 0, 2, 1, 2, 3, 4, 0, 1]), None);
}

#[test]
fn addresses_of_ipv4_written_as_ipv6_are_ipv4() {
    let mapped = Target::Addr("[::ffff:9.8.7.6]:1".parse().unwrap());
    assert_eq!(wrap(&mapped, b"").unwrap(), [0, 0, 0, 1, 9, 8, 7, 6, 0, 1]);
}
