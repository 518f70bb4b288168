//! Good inputs to begin with, and words that belong into them, by target.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};

use gyre::base::{Bitfield, InfoHash, NodeId, PeerId, Rng};
use gyre::storage::resume::{Counters, FileStamp, Record, RootKey};
use gyre::swarm::dht::Saved;
use gyre::wire::dns::{self, Wanted};
use gyre::wire::extended::{Extension, OurExtensionHandshake};
use gyre::wire::handshake::{Handshake, Reserved};
use gyre::wire::krpc;
use gyre::wire::message::{HashRange, Message, RawBlock, encode, piece_header};
use gyre::wire::metainfo::{MetainfoBuilder, TreeFile};
use gyre::wire::mse::{Initiator, Payloads, Random, Responder, Step};
use gyre::wire::socks;
use gyre::wire::tracker::{AnnounceRequest, Counters as Announced, Event};
use gyre::wire::tracker_udp;
use gyre::wire::ut_holepunch::{HolepunchError, HolepunchMessage};
use gyre::wire::ut_metadata::MetadataMessage;
use gyre::wire::ut_pex::{PexFlags, PexMessage, PexPeer};

use crate::targets::HIDDEN;

type Corpus = (Vec<Vec<u8>>, &'static [&'static [u8]]);

const NONE: &[&[u8]] = &[];
const BENCODE: &[&[u8]] = &[
    b"d",
    b"l",
    b"e",
    b"i",
    b"0:",
    b"de",
    b"le",
    b"i0e",
    b"i-1e",
    b"i-0e",
    b"4:info",
    b"99999999999999999999:",
    b"-1:",
    b"1:a",
];

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub fn bencode() -> Corpus {
    let mut corpus = texts(&["de", "le", "i42e", "4:spam", "d1:ad1:bli1ei2eee1:c0:e"]);
    corpus.extend(metainfo().0);
    corpus.push([b"l".repeat(90), b"e".repeat(90)].concat());
    (corpus, BENCODE)
}

pub fn metainfo() -> Corpus {
    let hash = |count: usize| vec![7; 20 * count];
    let single = MetainfoBuilder::new("one.bin", 16_384)
        .single_file(40_000)
        .pieces(hash(3))
        .announce_tiers(vec![vec!["http://t.example/announce".to_owned()]])
        .comment(Some("a comment".to_owned()));
    let path = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect();
    let tree = MetainfoBuilder::new("tree", 32_768)
        .files(vec![
            (path(&["a"]), 1),
            (path(&["b", "c", "ü"]), 70_000),
            (path(&["b", "d"]), 0),
        ])
        .pieces(hash(3))
        .private(true)
        .web_seeds(vec!["http://w.example/".to_owned()]);
    let v2_file = |name: &str, length_bytes, pieces: Vec<[u8; 32]>| TreeFile {
        path: path(&[name, "x"]),
        length_bytes,
        pieces,
    };
    let v2_files = || {
        let large = v2_file("c", 40_000, vec![[1; 32], [2; 32]]);
        vec![
            v2_file("a", 0, Vec::new()),
            v2_file("b", 5, vec![[3; 32]]),
            large,
        ]
    };
    let v2 = MetainfoBuilder::new("v2", 32_768)
        .v2_only()
        .tree(v2_files());
    let hybrid = MetainfoBuilder::new("hybrid", 32_768)
        .files(vec![
            (path(&["b", "x"]), 5),
            (Vec::new(), 32_763),
            (path(&["c", "x"]), 40_000),
        ])
        .pieces(hash(3))
        .tree(v2_files());
    let mut corpus: Vec<Vec<u8>> = [single, tree, v2, hybrid]
        .iter()
        .map(|builder| builder.build().expect("a good torrent").0)
        .collect();
    let odd = "d4:infod5:filesld4:attr1:p6:lengthi5e4:pathl4:.pad1:5eed4:attr2:lx6:lengthi0e4:pathl1:seee\
               4:name2:..12:piece lengthi16384e6:pieces20:hhhhhhhhhhhhhhhhhhhhee";
    corpus.push(odd.as_bytes().to_vec());
    (
        corpus,
        &[
            b"4:info",
            b"5:files",
            b"9:file tree",
            b"12:meta versioni2e",
            b"11:pieces root",
            b"12:piece layers",
            b"4:path",
            b"6:length",
            b"12:piece length",
            b"6:pieces",
            b"4:name",
            b"4:attr",
            b"2:..",
            b"1:/",
            b"1:.",
            b"10:path.utf-8",
            b"12:meta versioni2e",
            b"7:privatei1e",
            b"8:url-list",
            b"12:symlink path",
            b"8:announce",
            b"13:announce-list",
            b"e",
            b"l",
            b"d",
            b"i0e",
            b"0:",
            b"3:\xff\x00/",
        ],
    )
}

pub fn handshake() -> Corpus {
    let good = Handshake {
        reserved: Reserved::new([0, 0, 0, 0, 0, 0x10, 0, 4]),
        info_hash: InfoHash::new([1; 20]),
        peer_id: PeerId::new([2; 20]),
    };
    (vec![good.encode().to_vec()], &[b"\x13BitTorrent protocol"])
}

pub fn mse() -> Corpus {
    let (info_hash, of_a, of_b) = HIDDEN;
    let mut corpus = Vec::new();
    for (how, payloads) in [(0, Payloads::Both), (2, Payloads::Rc4Only)] {
        let mut a = Initiator::new(info_hash, payloads, &[7; 68], Random::new(of_a));
        let mut b = Responder::new(payloads);
        let (mut said_a, mut said_b) = (a.take_out(), Vec::new());
        b.feed(&said_a);
        loop {
            match b.advance().expect("a good handshake") {
                Step::Bytes => {
                    let (to_a, is_done) = (b.take_out(), a.feed(&said_b));
                    assert!(!is_done.expect("a good handshake"));
                    a.feed(&to_a).expect("a good handshake");
                    said_b.extend(to_a);
                    let to_b = a.take_out();
                    b.feed(&to_b);
                    said_a.extend(to_b);
                }
                Step::Exchange => b.exchange(Random::new(of_b)).expect("a good key"),
                Step::Torrent(_) => b.set_torrent(Some(info_hash)).expect("it is here"),
                Step::Done => break,
            }
        }
        said_b.extend(b.take_out());
        let step = if how == 0 { 3 } else { 99 };
        corpus.push([&[how, step], &said_a[..], b"behind"].concat());
        corpus.push([&[how | 1, step], &said_b[..], b"behind"].concat());
    }
    (corpus, &[b"\x13BitTorrent protocol", &[0; 96], &[0xff; 96]])
}

pub fn decoder() -> Corpus {
    let range = HashRange {
        root: [8; 32],
        base_layer: 2,
        index: 0,
        length: 2,
        proof_layers: 3,
    };
    let raw = RawBlock {
        piece: 1,
        begin: 16_384,
        length: 16_384,
    };
    let messages = [
        Message::KeepAlive,
        Message::Bitfield {
            bytes: &[0xff, 0, 0x80],
        },
        Message::Unchoke,
        Message::Have { piece: 3 },
        Message::Request(raw),
        Message::Cancel(raw),
        Message::RejectRequest(raw),
        Message::HaveAll,
        Message::AllowedFast { piece: 2 },
        Message::Extended {
            id: 0,
            payload: b"d1:md6:ut_pexi1eee",
        },
        Message::Port { port: 6881 },
        Message::HashRequest(range),
        Message::HashReject(range),
        Message::Hashes {
            range,
            hashes: &[9; 64],
        },
    ];
    let mut stream = vec![9];
    messages
        .iter()
        .for_each(|message| encode(message, &mut stream));
    let mut piece = vec![3];
    piece.extend_from_slice(&piece_header(1, 0, 200));
    piece.extend_from_slice(&[5; 200]);
    encode(&Message::Choke, &mut piece);
    (
        vec![stream, piece],
        &[
            &[0, 0, 0, 0],
            &[0, 0, 0, 1, 14],
            &[0, 0, 0, 9, 7],
            &[0, 0, 0, 13, 6],
            &[0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 2, 20],
        ],
    )
}

pub fn extended() -> Corpus {
    let ours = OurExtensionHandshake {
        extensions: &Extension::ALL,
        client: "Gyre 1",
        listen_port: Some(6881),
        reqq: 512,
        your_ip: Some([9, 9, 9, 9].into()),
        metadata_size_bytes: Some(31_000),
        upload_only: true,
    };
    let mut corpus = vec![ours.encode()];
    corpus.extend(texts(&[
        "d1:md11:ut_metadatai3e6:ut_pexi1ee1:pi6881e4:reqqi250e1:v4:\u{202e}xe",
        "de",
    ]));
    (
        corpus,
        &[
            b"1:m",
            b"1:v",
            b"1:p",
            b"4:reqq",
            b"6:yourip",
            b"13:metadata_size",
            b"4:ipv4",
            b"4:ipv6",
            b"d",
            b"e",
            b"i0e",
        ],
    )
}

pub fn pex() -> Corpus {
    let peer = |last: u8| PexPeer {
        addr: SocketAddr::from(([9, 9, 9, last], 6_881)),
        flags: PexFlags::new(last),
    };
    let message = PexMessage {
        added: (1..9).map(peer).collect(),
        dropped: vec![SocketAddr::from(([0x2600, 0, 0, 0, 0, 0, 0, 1], 80))],
    };
    (
        vec![message.encode(), b"de".to_vec()],
        &[
            b"5:added",
            b"7:added.f",
            b"6:added6",
            b"8:added6.f",
            b"7:dropped",
            b"8:dropped6",
            b"0:",
            b"6:abcdef",
            b"e",
        ],
    )
}

pub fn holepunch() -> Corpus {
    let v4 = SocketAddr::from(([9, 9, 9, 1], 6_881));
    let v6 = SocketAddr::from(([0x2600, 0, 0, 0, 0, 0, 0, 1], 80));
    let messages = [
        HolepunchMessage::Rendezvous(v4),
        HolepunchMessage::Connect(v6),
        HolepunchMessage::Error(v4, HolepunchError::NoSupport),
    ];
    let texts = messages.iter().map(HolepunchMessage::encode).collect();
    (
        texts,
        &[&[0, 0], &[1, 1], &[2, 0], &[0, 0, 0, 4], &[0xff; 18]],
    )
}

pub fn metadata() -> Corpus {
    let encoded = |message: MetadataMessage<'_>| {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    };
    let data = MetadataMessage::Data {
        piece: 0,
        total_bytes: 300,
        bytes: &[b'x'; 300],
    };
    let corpus = vec![
        encoded(MetadataMessage::Request { piece: 2 }),
        encoded(data),
        encoded(MetadataMessage::Reject { piece: 0 }),
    ];
    (
        corpus,
        &[
            b"8:msg_type",
            b"5:piece",
            b"10:total_size",
            b"i1e",
            b"i2e",
            b"e",
            b"d",
        ],
    )
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).expect("memory takes it");
    packer.finish().expect("memory takes it")
}

pub fn http_response() -> Corpus {
    let mut packed = b"\x05HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".to_vec();
    packed.extend(gzip(&b"d8:intervali1800ee".repeat(40)));
    let mut corpus = texts(&[
        "\x07HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\nd8:intervali1800ee",
        "\x03HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nA: b\r\n\r\n",
        "\x02HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/20\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello",
        "\x01HTTP/1.0 302 Found\r\nLocation: http://other.example/x\r\nConnection: keep-alive\r\n\r\nrest",
    ]);
    corpus.push(packed);
    (
        corpus,
        &[
            b"\r\n",
            b"\r\n\r\n",
            b"0\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Connection: close\r\n",
            b"ffffffffffffffff\r\n",
            b"HTTP/1.1 ",
            b": ",
            b"\x1f\x8b\x08",
        ],
    )
}

/// Which part is asked for, a step, then an answer.
pub fn web_seed() -> Corpus {
    let corpus = texts(&[
        "\0\x03HTTP/1.1 206 P\r\nContent-Range: bytes 5-9/20\r\nContent-Length: 5\r\n\r\nhello",
        "\0\x01HTTP/1.1 206 P\r\nContent-Range: bytes 5-9/20\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        "\0\x02HTTP/1.0 206 P\r\nContent-Range: bytes 5-9/*\r\n\r\nhello and more",
        "\x01\x04HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nabcdefghijklmnopqrst",
        "\x01\0HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\nabcdefghijklmnopqrst\r\n0\r\nA: b\r\n\r\n",
        "\0\x03HTTP/1.1 416 No\r\nContent-Range: bytes */7\r\nContent-Length: 0\r\n\r\n",
    ]);
    (
        corpus,
        &[
            b"\r\n",
            b"\r\n\r\n",
            b"0\r\n\r\n",
            b"bytes 5-9/20",
            b"bytes */20",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"ffffffffffffffff\r\n",
            b"206",
            b"200",
        ],
    )
}

pub fn announce_answer() -> Corpus {
    let mut corpus = texts(&[
        "d8:completei5e10:incompletei7e8:intervali1800e12:min intervali60e5:peers12:abcdefghijkl10:tracker id3:abce",
        "d5:peersld2:ip9:127.0.0.17:peer id20:aaaaaaaaaaaaaaaaaaaa4:porti6881eed2:ip7:1.2.3.44:porti80eeee",
        "d14:failure reason9:not today8:retry in5:nevere",
        "d15:warning message4:\u{7}oops5:peers0:6:peers618:aaaaaaaaaaaaaaaabbe",
    ]);
    corpus.push(b"d11:external ip4:\x09\x09\x09\x09e".to_vec());
    (
        corpus,
        &[
            b"5:peers",
            b"6:peers6",
            b"8:interval",
            b"12:min interval",
            b"14:failure reason",
            b"8:retry in",
            b"5:never",
            b"15:warning message",
            b"10:tracker id",
            b"11:external ip",
            b"2:ip",
            b"4:port",
            b"i0e",
            b"i-1e",
            b"e",
            b"l",
            b"d",
        ],
    )
}

pub fn udp_answer() -> Corpus {
    let addrs: Vec<u8> = (0..36).collect();
    let mut announce = vec![0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2];
    announce.extend(addrs);
    let corpus = vec![
        tracker_udp::connect_answer(9, 77),
        announce,
        tracker_udp::error_answer(9, "no"),
    ];
    (corpus, NONE)
}

fn announce() -> AnnounceRequest {
    AnnounceRequest {
        info_hash: InfoHash::new([3; 20]),
        peer_id: PeerId::new([4; 20]),
        port: 6881,
        counters: Announced::default(),
        event: Some(Event::Started),
        numwant: 50,
        key: 99,
        tracker_id: None,
    }
}

pub fn udp_request() -> Corpus {
    let corpus = vec![
        tracker_udp::connect_request(5),
        tracker_udp::announce_request(8, 5, &announce(), "/announce?key=1"),
        tracker_udp::scrape_request(8, 5, &[InfoHash::new([3; 20]); 3]),
    ];
    (corpus, NONE)
}

pub fn tracker_request() -> Corpus {
    let query = "/announce?info_hash=%01%02aaaaaaaaaaaaaaaaaa&peer_id=-GY0001-aaaaaaaaaaaa&port=6881&uploaded=0&downloaded=0\
                 &left=5&compact=1&event=started&numwant=30&key=abc&ip=1.2.3.4";
    let request = format!("GET {query} HTTP/1.1\r\nHost: t\r\nConnection: keep-alive\r\n\r\n");
    let scrape = "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa&info_hash=bbbbbbbbbbbbbbbbbbbb";
    (
        texts(&[query, &request, scrape]),
        &[
            b"&",
            b"=",
            b"%",
            b"%00",
            b"%ff",
            b"info_hash=",
            b"peer_id=",
            b"port=",
            b"numwant=",
            b"event=",
            b"ip=",
            b"compact=0",
            b"\r\n",
            b"?",
            b"HTTP/1.0",
        ],
    )
}

pub fn lsd() -> Corpus {
    let corpus = texts(&[
        "BT-SEARCH * HTTP/1.1\r\nHost: 239.192.152.143:6771\r\nPort: 6881\r\n\
         Infohash: 0123456789abcdef0123456789abcdef01234567\r\ncookie: 0123456789abcdef\r\n\r\n\r\n",
        "BT-SEARCH * HTTP/1.1\r\nPort: 1\r\nInfohash: 0123456789abcdef0123456789abcdef01234567\r\n\
         Infohash: fedcba9876543210fedcba9876543210fedcba98\r\n\r\n",
    ]);
    (
        corpus,
        &[
            b"BT-SEARCH",
            b"Infohash: ",
            b"Port: ",
            b"65536",
            b"cookie: ",
            b"\r\n",
            b"0123456789abcdef0123456789abcdef01234567",
        ],
    )
}

pub fn magnet() -> Corpus {
    let corpus = texts(&[
        "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=a%20name&tr=http%3A%2F%2Ft.example%2Fannounce\
         &ws=http://w.example/&x.pe=1.2.3.4:80&so=0,2,4-7",
        "magnet:?xt=urn:btih:ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
        "magnet:?xt=urn:btmh:1220aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ]);
    (
        corpus,
        &[
            b"&",
            b"xt=urn:btih:",
            b"dn=",
            b"tr=",
            b"x.pe=",
            b"so=",
            b"%",
            b"%00",
            b"%e2%80%ae",
            b"-",
            b",",
            b"[::1]:80",
        ],
    )
}

pub fn control_request() -> Corpus {
    let corpus = texts(&[
        "POST /transmission/rpc?x HTTP/1.1\r\nHost: localhost:9091\r\nOrigin: http://localhost:9091\r\n\
         X-Transmission-Session-Id: a\r\nAuthorization: Basic eDp5\r\nContent-Length: 2\r\n\r\n{}",
        "GET / HTTP/1.0\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
        "{\"method\":\"torrent-get\",\"arguments\":{\"ids\":[1,\"a\"],\"fields\":[\"id\"]},\"tag\":4}",
        "[{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"x\",\"params\":{\"a\":1.5e3}}]",
    ]);
    (
        corpus,
        &[
            b"\r\n",
            b"Host: ",
            b"Content-Length: ",
            b"chunked",
            b":",
            b"[",
            b"{",
            b"\"",
            b"\\",
            b"\\ud800",
            b"1e999",
            b"-0",
            b"?",
        ],
    )
}

pub fn url() -> Corpus {
    let corpus = texts(&[
        "http://tracker.example:6969/announce?x=1#f",
        "udp://[2001:db8::1]:80",
        "http://user:pass@1.2.3.4/%7e",
        "//other.example/x",
        "../up?q",
    ]);
    (
        corpus,
        &[
            b"http://",
            b"udp://",
            b"https://",
            b"@",
            b":",
            b"[",
            b"]",
            b"/../",
            b"//",
            b"?",
            b"#",
            b"%",
            b"\r\n",
            b" ",
            b":65536",
        ],
    )
}

pub fn dns_answer() -> Corpus {
    let question = dns::question(0x6779, "tracker.example", Wanted::V4).expect("a good name");
    let mut answer = question.clone();
    answer[2] = 0x81;
    answer[3] = 0x80;
    answer[7] = 2;
    // An alias that points back into the question, then its address.
    answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 4, 1, b'x', 0xc0, 20]);
    answer.extend([1, b'x', 0xc0, 20, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(Ipv4Addr::new(9, 9, 9, 9).octets());
    (
        vec![question, answer],
        &[&[0xc0, 12], &[0xc0, 0], &[0xc0, 0xff], &[0, 1, 0, 1], &[63]],
    )
}

pub fn socks_answers() -> Corpus {
    let plain = b"\x00\x05\x00\x05\x00\x00\x01\x09\x08\x07\x06\x1a\xe1behind".to_vec();
    let named = b"\x05\x05\x02\x01\x00\x05\x00\x00\x03\x03abc\x00\x50".to_vec();
    let refused = b"\x00\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    (
        vec![plain, named, refused, b"\x00HTTP/1.1 400".to_vec()],
        &[
            b"\x05\x00",
            b"\x05\x02",
            b"\x05\xff",
            b"\x01\x00",
            b"\x01\x01",
            b"\x00\x04",
        ],
    )
}

pub fn socks_datagram() -> Corpus {
    let targets = ["9.8.7.6:1", "[2001:db8::1]:2"].map(|addr| addr.parse().expect("an address"));
    let targets = targets.map(socks::Target::Addr);
    let name = socks::Target::Name("a.example".to_owned(), 3);
    let wrapped = targets.iter().chain([&name]);
    let wrapped = wrapped.map(|target| socks::wrap(target, b"d1:ye").expect("a short name"));
    (wrapped.collect(), &[b"\x00\x00\x00", b"\x03\xff", b"\x04"])
}

pub fn ip_list() -> Corpus {
    let good = "\u{9}# list\na name:1.2.3.4-1.2.4.5\n001.002.003.004 - 001.002.004.005 , 127 , x\r\n\
                2001:db8::/32\nn:2001:db8::1-2001:db8::2\n1.2.3.4\n10.0.0.0/8 # inner\n1.0.0.0-2.0.0.0";
    (
        texts(&[good, "x\u{feff}::1\n"]),
        &[
            b"\n",
            b"-",
            b" - ",
            b",",
            b", 128 ,",
            b"/",
            b"/0",
            b":",
            b"::",
            b"255.255.255.255",
            b"0.0.0.0",
            b"#",
        ],
    )
}

pub fn form() -> Corpus {
    let corpus = texts(&[
        "hashes=0123456789abcdef0123456789abcdef01234567|all&value=true&tags=a%2Cb+c",
        "json={\"save_path\":\"/srv\",\"dl_limit\":1024}&&x&=y&%c3%a4=%f0%9f%98%80",
        "filter=all&category=&sort=name&reverse=false&limit=-1&offset=18446744073709551616",
    ]);
    (
        corpus,
        &[b"&", b"=", b"%", b"%00", b"%ff", b"%25", b"+", b"a=b&"],
    )
}

pub fn multipart() -> Corpus {
    let corpus = texts(&[
        "multipart/form-data; boundary=B\n--B\r\nContent-Disposition: form-data; name=\"urls\"\r\n\r\nmagnet:?x\r\n\
         --B\r\nContent-Disposition: form-data; name=\"torrents\"; filename=\"a \\\"b.torrent\"\r\n\
         Content-Type: application/x-bittorrent\r\n\r\nd4:infode\r\n--B--\r\n",
        "Multipart/Form-Data; charset=x; boundary=\"----WebKit :1\"\npreamble\r\n------WebKit :1 \t\r\n\
         content-disposition: form-data; filename*=x; name=torrents\r\n\r\n\r\n------WebKit :1--epilogue",
        "x\n--B--",
    ]);
    (
        corpus,
        &[
            b"\r\n--B",
            b"\r\n--B\r\n",
            b"\r\n--B--",
            b"\r\n\r\n",
            b"Content-Disposition: form-data; name=",
            b"; filename=",
            b"\"",
            b"\\",
            b"\r\r\n",
        ],
    )
}

/// Packets of uTP of every kind, with extensions and without.
pub fn utp_packet() -> Corpus {
    let packet = |first, extensions: &[u8]| {
        let mut bytes = vec![first, 0, 0x12, 0x34];
        bytes.extend([7; 16]);
        if let Some((kind, rest)) = extensions.split_first() {
            bytes[1] = *kind;
            bytes.extend_from_slice(rest);
        }
        bytes.extend(b"payload");
        bytes
    };
    let sack = [1, 0, 4, 1, 0, 0x80, 3];
    let long = [
        2, 1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8,
    ];
    let kinds = [0x01, 0x11, 0x21, 0x31, 0x41].map(|first| packet(first, &[]));
    let more = [packet(0x21, &sack), packet(0x01, &long)];
    (kinds.into_iter().chain(more).collect(), NONE)
}

/// Scripts: two connections and data both ways, then whatever comes.
pub fn utp_port() -> Corpus {
    let script = |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut script = vec![0, 0, seed as u8, 10, 1, 7, 10, 0, 7];
        script.extend([1, 254, 0, 10, 1, 7, 10, 0, 7, 1, 255, 0, 10, 0, 7]);
        script.extend((0..600).map(|_| rng.below(256) as u8));
        script
    };
    ((0..32).map(script).collect(), NONE)
}

/// A grant and a refusal over PCP, a grant, a refusal and an address over NAT-PMP.
pub fn map_answer() -> Corpus {
    let mut grant = super::gateway::ASKED.to_pcp();
    grant[1] |= 0x80;
    grant[42..44].copy_from_slice(&[0x1b, 0x58]);
    let mut refusal = grant.clone();
    refusal[3] = 8;
    let corpus = vec![
        grant,
        refusal,
        b"\0\x82\0\0\0\0\0\x01\x1a\xe1\x1b\x58\0\0\x0e\x10".to_vec(),
        b"\0\x82\0\x02\0\0\0\x01".to_vec(),
        b"\0\x81\0\x01\0\0\0\x01".to_vec(),
        b"\0\x80\0\0\0\0\0\x01\xcb\0\x71\x05".to_vec(),
    ];
    (corpus, NONE)
}

pub fn upnp_answer() -> Corpus {
    let found = b"HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
        LOCATION: http://192.168.1.1:5000/root.xml\r\n\r\n";
    let description = b"<root><URLBase>http://192.168.1.1/</URLBase><device><serviceList><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/ctl?a=1&amp;b=2</controlURL></service></serviceList></device></root>";
    let corpus = vec![
        found.to_vec(),
        description.to_vec(),
        b"<s:Fault><errorCode>725</errorCode></s:Fault>".to_vec(),
        b"<NewExternalIPAddress>203.0.113.5</NewExternalIPAddress>".to_vec(),
    ];
    (
        corpus,
        &[
            b"<service>",
            b"</service>",
            b"<controlURL>",
            b"</controlURL>",
            b"urn:schemas-upnp-org:service:WANPPPConnection:1",
            b"&amp;",
            b"/>",
        ],
    )
}

pub fn scrape_answer() -> Corpus {
    let corpus = vec![
        b"d5:filesd20:aaaaaaaaaaaaaaaaaaaad8:completei5e10:downloadedi50e10:incompletei10eeee"
            .to_vec(),
        b"d14:failure reason2:noe".to_vec(),
    ];
    (
        corpus,
        &[
            b"5:files",
            b"20:aaaaaaaaaaaaaaaaaaaa",
            b"8:complete",
            b"i99999999999999999999e",
        ],
    )
}

pub fn record() -> Corpus {
    let stamp = FileStamp {
        inode: 7,
        size_bytes: 50_000,
        mtime_ns: -5,
    };
    let record = Record {
        info_hash: InfoHash::new([5; 20]),
        root: Some(RootKey {
            device: 1,
            inode: 2,
        }),
        root_path: b"/srv/data/x".to_vec(),
        is_open: true,
        have: Bitfield::full(19),
        files: vec![Some(stamp), None, Some(stamp)],
        parts: Some(stamp),
        counters: Counters::default(),
        unproven: Some(Bitfield::full(19)),
    };
    let whole = record.encode();
    let unsigned = whole[..whole.len() - 20].to_vec();
    (vec![whole, unsigned], NONE)
}

/// The file, then which program it is of: each key that is read, with a value of its type.
pub fn foreign() -> Corpus {
    let of = |which: u8, file: &[u8]| [file, &[which]].concat();
    let inputs = vec![
        of(
            0,
            b"d10:added_timei5e12:auto_managedi0e13:file_priorityli4ei0ei7ee9:info-hash20:aaaaaaaaaaaaaaaaaaaa\
              12:mapped_filesl3:a/b0:e6:pausedi1e6:pieces4:\x01\x00\x03\x0112:qBt-category2:tv14:qBt-ratioLimiti2000e\
              8:qBt-tagsl1:x1:ye9:save_path5:/data14:total_uploadedi9e8:trackersll9:http://t/eee",
        ),
        of(
            1,
            b"d10:added-datei5e11:destination5:/data3:dndli0ei1ee6:labelsl1:xe6:pausedi0e8:progressd\
              6:blocks1:\xfe6:mtimesli1ei2ee6:pieces1:\xf0e11:ratio-limitd11:ratio-limit3:1.510:ratio-modei1ee\
              14:speed-limit-upd15:use-speed-limiti1eee",
        ),
        of(
            1,
            b"d8:progressd6:blocks3:all12:time-checkedli5eli5ei1ei0eeeee",
        ),
        of(
            2,
            b"d8:bitfield1:\xe05:filesld5:mtimei8e8:priorityi1eed5:mtimei-1e8:priorityi0eee8:trackersd\
              9:udp://t:1d13:extra_trackeri1eee16:uncertain_pieces4:\x00\x00\x00\x01e",
        ),
        of(2, b"d8:bitfieldi4ee"),
        of(
            3,
            b"d6:customd7:addtime2:77e7:custom16:tv%20x9:directory6:/data/5:statei1e18:timestamp.finishedi6ee",
        ),
    ];
    (inputs, &[b"all", b"none", b"%", b"://", b"/"])
}

/// A torrent's shape, its name, then files: kind, length, elements.
pub fn layout() -> Corpus {
    let corpus: [&[u8]; 4] = [
        b"\x00name\xfe\x03\x05a\xfdb.txt\xfe\x03\x06a\xfdc.txt\xfe\x00\x02.pad\xfd7\xfe\x02\x07run",
        b"\x01n\xfe\x03\x05a\xfdb\xfe\x09\x00l\xfdk\xfda\xfdb\xfe\x01\x00m\xfda\xfe\x11\x00x\xfdy\xfdz\xfda",
        b"\x02..\xfe\x03\x01A.t\xfe\x03\x01a.t\xfe\x03\x02a.t\xfe\x03\x03a.t\xfdb\xfe\x03\x00a~2.t",
        b"\x00.gyre-parts\xfe\x03\x04.gyre-parts\xfe\x03\x04.gyre-parts-1\xfe\x03\x04..\xfd..\xfdetc",
    ];
    (
        corpus.iter().map(|entry| entry.to_vec()).collect(),
        &[
            b"\xfe\x03\x05",
            b"\xfe\x01\x00",
            b"\xfe\x00\x02",
            b"\xfd",
            b"..",
            b".",
            b"/",
            b"\\",
            b"~2",
            b".txt",
            b"a\xfdb",
            b"A",
            b".gyre-parts",
            b"\xe2\x80\xae",
            &[120; 260],
            b"\xc3\xbc",
        ],
    )
}

/// What is recorded and found, then a torrent.
pub fn verdict() -> Corpus {
    let (shapes, words) = layout();
    let with_disk = |(seed, shape): (u64, Vec<u8>)| {
        let mut rng = Rng::new(seed);
        let mut entry: Vec<u8> = (0..32).map(|_| rng.below(256) as u8).collect();
        entry.extend(shape);
        entry
    };
    let shapes = shapes.iter().cycle().take(16).cloned();
    ((0..).zip(shapes).map(with_disk).collect(), words)
}

/// Steps of three bytes drawn from seeds.
pub fn assembly() -> Corpus {
    let script = |seed: u64| {
        let mut rng = Rng::new(seed);
        (0..600).map(|_| rng.below(256) as u8).collect()
    };
    ((0..32).map(script).collect(), NONE)
}

/// Announces of eight bytes drawn from seeds.
/// Queries, answers and refusals of the DHT.
pub fn krpc() -> Corpus {
    let id = NodeId::new([7; 20]);
    let info_hash = InfoHash::new([9; 20]);
    let query = |method| {
        let query = krpc::Query {
            id,
            method,
            want: Some(krpc::Want::BOTH),
            is_read_only: true,
        };
        krpc::encode_query(b"aa", &query)
    };
    let contact = krpc::Contact {
        id,
        addr: SocketAddr::from(([1, 2, 3, 4], 5)),
    };
    let reply = krpc::Reply {
        token: b"token".to_vec(),
        nodes_v4: Some(vec![contact; 8]),
        nodes_v6: Some(Vec::new()),
        values: vec![contact.addr, SocketAddr::from(([7_u16; 8], 9))],
        ..krpc::Reply::default()
    };
    let corpus = vec![
        query(krpc::Method::Ping),
        query(krpc::Method::FindNode { target: id }),
        query(krpc::Method::SampleInfohashes { target: id }),
        query(krpc::Method::GetPeers {
            info_hash,
            no_seed: true,
            scrape: true,
        }),
        query(krpc::Method::AnnouncePeer {
            info_hash,
            port: Some(6881),
            token: b"token",
            is_seed: true,
        }),
        reply.encode(b"aa", &id, contact.addr),
        krpc::encode_error(b"aa", 203, "no", contact.addr),
    ];
    (
        corpus,
        &[
            b"1:t2:aa",
            b"1:y1:q",
            b"1:y1:r",
            b"1:rd",
            b"1:ad",
            b"5:nodes26:",
            b"6:nodes638:",
            b"6:valuesl6:",
            b"2:id20:",
            b"5:token",
            b"4:porti0e",
            b"4:wantl2:n4e",
            b"e",
            b"d",
            b"i-1e",
            b"0:",
        ],
    )
}

/// Lists of DHT nodes.
pub fn saved_nodes() -> Corpus {
    let contact = krpc::Contact {
        id: NodeId::new([7; 20]),
        addr: SocketAddr::from(([1, 2, 3, 4], 5)),
    };
    let saved = Saved {
        external: vec![Ipv4Addr::new(9, 8, 7, 6).into()],
        contacts: vec![contact; 3],
    };
    (
        vec![saved.encode(), Saved::default().encode()],
        &[b"GYRE-DHT"],
    )
}

/// Scripts of events drawn from seeds.
pub fn dht_node() -> Corpus {
    registry()
}

pub fn registry() -> Corpus {
    let script = |seed: u64| {
        let mut rng = Rng::new(seed);
        (0..480).map(|_| rng.below(256) as u8).collect()
    };
    ((0..32).map(script).collect(), NONE)
}

/// Scripts of events drawn from seeds.
pub fn swarm() -> Corpus {
    let script = |seed: u64| {
        let mut rng = Rng::new(seed);
        // Peers that have everything and let us ask, then whatever comes.
        let mut script = vec![seed as u8, 0, 1, 0x14, 0, 5, 0x14, 0, 9, 4];
        for peer in 0..3 {
            script.extend([7, 0x50 + peer, 0, 7, peer, 0]);
        }
        script.extend((0..900).map(|_| rng.below(256) as u8));
        script
    };
    ((0..32).map(script).collect(), NONE)
}

/// Scripts of events: peers that come, say a size and send pieces, then whatever comes.
pub fn search() -> Corpus {
    let script = |seed: u64| {
        let mut rng = Rng::new(seed);
        let mut script = Vec::new();
        for peer in 0..4 {
            script.extend([1, peer, 1, 3, peer, 1 + (seed as u8 & 3), 4, peer, 0x1d]);
        }
        script.extend((0..600).map(|_| rng.below(256) as u8));
        script
    };
    ((0..32).map(script).collect(), NONE)
}
