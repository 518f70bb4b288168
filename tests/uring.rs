//! The ring layer against the real kernel: loopback sockets, files in a scratch folder, dropped futures.

use std::cell::Cell;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use gyre::uring::buffers::{Pool, Segment};
use gyre::uring::files::{self, File, FsKind, OpenMode};
use gyre::uring::hasher::{Hasher, PieceState};
use gyre::uring::listener::Listener;
use gyre::uring::map::FileMap;
use gyre::uring::resolve::Resolver;
use gyre::uring::ring::{self, Ring, RingConfig, spawn};
use gyre::uring::socket::SocketOptions;
use gyre::uring::stream::{Outgoing, SendData, SendPart, Stream};
use gyre::uring::udp::Udp;
use tokio::time::{sleep, timeout};

const MIB: usize = 1 << 20;
const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// A small ring: the tests of this file run side by side under one memory limit.
fn ring() -> Ring {
    ring::start(RingConfig {
        sq_entries: Some(256),
        ..RingConfig::default()
    })
    .unwrap()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Bytes that differ at every place, so that a shifted copy is noticed.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 7) as u8)
        .collect()
}

fn filled(pool: &Pool, len: usize, seed: usize) -> Segment {
    let mut segment = pool.alloc_or_heap(len);
    segment.as_mut_slice().copy_from_slice(&pattern(len, seed));
    segment
}

async fn pair(listen: &str, options: &SocketOptions) -> (Stream, Stream) {
    let listener = Listener::bind(addr(listen), options).unwrap();
    let to = listener.local_addr().unwrap();
    let connect = Stream::connect(to, options);
    let (near, far) = tokio::join!(connect, listener.accept());
    let near = near.unwrap();
    let (far, from) = far.unwrap();
    assert_eq!(near.local_addr().unwrap(), from);
    assert_eq!(near.peer_addr().unwrap(), far.local_addr().unwrap());
    (near, far)
}

async fn read_exactly(stream: &Stream, pool: &Pool, len: usize) -> Segment {
    let mut segment = pool.alloc_or_heap(len);
    let mut got = 0;
    while got < len {
        let (result, back) = stream.recv(segment, got..len).await;
        segment = back;
        let n = result.unwrap();
        assert_ne!(n, 0, "end of stream after {got} of {len} bytes");
        got += n;
    }
    segment
}

#[test]
fn bytes_come_back_over_loopback_in_both_families() {
    ring().block_on(async {
        let pool = Pool::plain(4 * MIB).unwrap();
        for listen in [V4, V6] {
            let (near, far) = pair(listen, &SocketOptions::default()).await;
            let (result, sent) = near.send_all(pattern(300_000, 1)).await;
            result.unwrap();
            let echo = read_exactly(&far, &pool, 300_000).await;
            assert_eq!(echo.as_slice(), sent);
            assert_eq!(near.sent_bytes(), 300_000);
            assert_eq!(far.received_bytes(), 300_000);
            assert!(near.tcp_info().unwrap().rtt < Duration::from_secs(1));
            near.shutdown();
            let (end, _) = far.recv(echo, 0..1).await;
            assert_eq!(end.unwrap(), 0);
        }
    });
}

#[test]
fn a_run_is_whole_although_each_send_is_short() {
    ring().block_on(async {
        let pool = Pool::plain(8 * MIB).unwrap();
        let tiny = SocketOptions {
            send_buffer_bytes: Some(4096),
            receive_buffer_bytes: Some(4096),
            ..SocketOptions::default()
        };
        let (near, far) = pair(V4, &tiny).await;
        let segments: Vec<_> = (0..2).map(|i| filled(&pool, 65_536, i)).collect();
        let headers = pattern(13 * 8, 9);
        let mut parts = Vec::new();
        let mut expected = Vec::new();
        for i in 0..8 {
            let (index, at) = (i % 2, i / 2 * 16_384);
            let (header, range) = (13 * i..13 * (i + 1), at..at + 16_384);
            expected.extend_from_slice(&headers[header.clone()]);
            expected.extend_from_slice(&segments[index].as_slice()[range.clone()]);
            let data = SendData::Segment { index, range };
            parts.push(SendPart { header, data });
        }
        let len = expected.len();
        let reader = spawn(async move { read_exactly(&far, &pool, len).await });
        let (result, out) = near.send_run(outgoing(headers, parts, segments)).await;
        result.unwrap();
        assert_eq!(out.segments.len(), 2);
        assert_eq!(reader.await.unwrap().as_slice(), expected);
    });
}

#[test]
fn a_run_of_more_parts_than_one_message_holds_is_whole() {
    ring().block_on(async {
        let pool = Pool::plain(8 * MIB).unwrap();
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        let segment = filled(&pool, 1500, 0);
        let headers = pattern(1500, 5);
        let parts = (0..1500).map(|i| SendPart {
            header: i..i + 1,
            data: SendData::Segment {
                index: 0,
                range: i..i + 1,
            },
        });
        let out = outgoing(headers, parts.collect(), vec![segment]);
        let (result, out) = near.send_run(out).await;
        result.unwrap();
        let (headers, segments) = (out.headers, out.segments);
        let got = read_exactly(&far, &pool, 3000).await;
        let pairs = headers.iter().zip(segments[0].as_slice());
        let expected: Vec<u8> = pairs.flat_map(|(&a, &b)| [a, b]).collect();
        assert_eq!(got.as_slice(), expected);
    });
}

#[test]
fn a_part_outside_its_segment_is_refused_and_all_comes_back() {
    ring().block_on(async {
        let pool = Pool::plain(MIB).unwrap();
        let (near, _far) = pair(V4, &SocketOptions::default()).await;
        let part = SendPart {
            header: 0..1,
            data: SendData::Segment {
                index: 0,
                range: 0..101,
            },
        };
        let out = outgoing(vec![0], vec![part], vec![filled(&pool, 100, 0)]);
        let (result, out) = near.send_run(out).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!((out.headers.len(), out.segments.len()), (1, 1));
    });
}

/// A run without mappings.
fn outgoing(headers: Vec<u8>, parts: Vec<SendPart>, segments: Vec<Segment>) -> Outgoing {
    Outgoing {
        headers,
        parts,
        segments,
        maps: Vec::new(),
    }
}

/// Slices of a file of that content, with zeros between them.
fn mapped_run(file: &std::fs::File, bytes: u64) -> Outgoing {
    let fd: std::os::fd::OwnedFd = file.try_clone().unwrap().into();
    let map = FileMap::new(&fd, bytes).unwrap();
    let half = bytes / 2;
    let mapped = |offset| SendData::Mapped {
        index: 0,
        offset,
        length: half as usize,
    };
    let part = |header: std::ops::Range<usize>, data| SendPart { header, data };
    Outgoing {
        headers: pattern(26, 3),
        parts: vec![
            part(0..13, mapped(half)),
            part(13..13, SendData::Zeros(1000)),
            part(13..26, mapped(0)),
        ],
        segments: Vec::new(),
        maps: vec![map],
    }
}

#[test]
fn a_run_goes_out_of_the_page_cache_with_zeros_for_pads() {
    ring().block_on(async {
        let pool = Pool::plain(8 * MIB).unwrap();
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        let content = pattern(600_000, 1);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &content).unwrap();
        let run = mapped_run(&file, 600_000);
        let (a, b) = run.headers.split_at(13);
        let zeros = vec![0; 1000];
        let expected = [a, &content[300_000..], &zeros, b, &content[..300_000]].concat();
        let len = expected.len();
        let reader = spawn(async move { read_exactly(&far, &pool, len).await });
        near.send_run(run).await.0.unwrap();
        assert!(reader.await.unwrap().as_slice() == expected);
    });
}

#[test]
fn a_mapped_file_that_was_cut_fails_the_send_and_nothing_else() {
    ring().block_on(async {
        let (near, _far) = pair(V4, &SocketOptions::default()).await;
        let file = tempfile::tempfile().unwrap();
        file.set_len(600_000).unwrap();
        let run = mapped_run(&file, 600_000);
        file.set_len(100).unwrap();
        let (result, _) = near.send_run(run).await;
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT));
    });
}

#[test]
fn recv_now_would_block_until_readable_says_so() {
    ring().block_on(async {
        let pool = Pool::plain(MIB).unwrap();
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        let (nothing, segment) = far.recv_now(pool.alloc_or_heap(100), 0..100).await;
        assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
        let waits = spawn({
            let far = far.clone();
            async move { far.readable().await }
        });
        sleep(Duration::from_millis(10)).await;
        assert!(!waits.is_finished());
        near.send_all(b"hello".to_vec()).await.0.unwrap();
        waits.await.unwrap().unwrap();
        let (n, segment) = far.recv_now(segment, 10..100).await;
        assert_eq!(n.unwrap(), 5);
        assert_eq!(&segment.as_slice()[10..15], b"hello");
        let (n, buf) = {
            near.send_all(b"more".to_vec()).await.0.unwrap();
            far.recv_vec(b"and ".to_vec(), 100).await
        };
        assert_eq!((n.unwrap(), buf.as_slice()), (4, b"and more".as_slice()));
    });
}

#[test]
fn shutdown_ends_a_pending_receive_and_a_pending_wait() {
    ring().block_on(async {
        let pool = Pool::plain(MIB).unwrap();
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        let reader = spawn({
            let (near, segment) = (near.clone(), pool.alloc_or_heap(100));
            async move { near.recv(segment, 0..100).await.0 }
        });
        let waits = spawn(async move { far.readable().await });
        sleep(Duration::from_millis(10)).await;
        near.shutdown();
        assert_eq!(reader.await.unwrap().unwrap(), 0);
        waits.await.unwrap().unwrap();
    });
}

#[test]
fn dropped_futures_keep_their_memory_until_the_kernel_is_done() {
    ring().block_on(async {
        let pool = Pool::plain(MIB).unwrap();
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        let segment = pool.alloc(65_536).unwrap();
        let free = pool.free_bytes();
        let pending = timeout(Duration::from_millis(10), far.recv(segment, 0..65_536));
        assert!(pending.await.is_err(), "nothing was sent");
        // The kernel still has it: what is handed out now must not change under its owner.
        assert_eq!(pool.free_bytes(), free);
        let others: Vec<_> = (0..15).map(|i| filled(&pool, 65_536, i)).collect();
        assert!(pool.alloc(1).is_none());
        near.send_all(vec![0xEE; 65_536]).await.0.unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while pool.free_bytes() == 0 {
            assert!(Instant::now() < deadline, "the receive never ended");
            ring::breathe().await;
        }
        for (i, other) in others.iter().enumerate() {
            assert_eq!(other.as_slice(), pattern(65_536, i));
        }
        drop(others);
        pool.check();
        assert_eq!(pool.free_bytes(), MIB);
    });
}

#[test]
fn a_ring_dropped_with_operations_pending_cancels_them_first() {
    let pool = Pool::plain(MIB).unwrap();
    let started = Instant::now();
    let ring = ring();
    ring.block_on(async {
        let (near, far) = pair(V4, &SocketOptions::default()).await;
        for stream in [near, far] {
            let segment = pool.alloc(16_384).unwrap();
            spawn(async move { stream.recv(segment, 0..100).await });
        }
        let udp = Udp::bind(addr(V4), &SocketOptions::default()).unwrap();
        spawn(async move { udp.recv_from(vec![0; 100]).await });
        sleep(Duration::from_millis(10)).await;
        assert_eq!(gyre::uring::op::in_flight(), 3);
    });
    drop(ring);
    assert_eq!(gyre::uring::op::in_flight(), 0);
    assert_eq!(pool.free_bytes(), MIB);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_closed_listener_ends_its_pending_accept_and_frees_the_port() {
    ring().block_on(async {
        let options = SocketOptions::default();
        let listener = Listener::bind(addr(V4), &options).unwrap();
        let at = listener.local_addr().unwrap();
        let taken = Listener::bind(at, &options).err().unwrap();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        let pending = spawn({
            let listener = listener.clone();
            async move { listener.accept().await.err().unwrap().kind() }
        });
        sleep(Duration::from_millis(10)).await;
        listener.close();
        assert_eq!(pending.await.unwrap(), ErrorKind::ConnectionAborted);
        let refused = Stream::connect(at, &options).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        drop(listener);
        Listener::bind(at, &options).unwrap();
    });
}

#[test]
fn connecting_gives_up_after_its_timeout() {
    ring().block_on(async {
        // A full backlog swallows further SYNs: the attempt hangs without leaving this machine.
        let silent = std::net::TcpListener::bind(V4).unwrap();
        nix::sys::socket::listen(&silent, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let to = silent.local_addr().unwrap();
        let options = SocketOptions {
            connect_timeout: Duration::from_millis(200),
            ..SocketOptions::default()
        };
        let mut held = Vec::new();
        let started = Instant::now();
        let error = loop {
            match Stream::connect(to, &options).await {
                Ok(stream) => held.push(stream),
                Err(e) => break e,
            }
            assert!(held.len() < 10, "the backlog never filled");
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(3));
        // A dropped attempt ends as well.
        let dropped = timeout(Duration::from_millis(20), Stream::connect(to, &options));
        assert!(dropped.await.is_err());
        sleep(Duration::from_millis(20)).await;
        assert_eq!(gyre::uring::op::in_flight(), 0);
    });
}

#[test]
fn connections_come_from_the_bound_source_address() {
    ring().block_on(async {
        let options = SocketOptions {
            bind: Some("127.0.0.9".parse().unwrap()),
            bind_device: Some("lo".to_owned()),
            user_timeout: Some(Duration::from_secs(30)),
            notsent_lowat_bytes: Some(65_536),
            congestion: Some("cubic".to_owned()),
            ..SocketOptions::default()
        };
        let (near, _far) = pair(V4, &options).await;
        assert_eq!(near.local_addr().unwrap().ip(), options.bind.unwrap());
        let options = SocketOptions {
            bind: Some("::1".parse().unwrap()),
            ..SocketOptions::default()
        };
        pair(V6, &options).await;
    });
}

#[test]
fn datagrams_travel_in_both_families_and_close_ends_a_receive() {
    ring().block_on(async {
        for listen in [V4, V6] {
            let options = SocketOptions::default();
            let a = Udp::bind(addr(listen), &options).unwrap();
            let b = Udp::bind(addr(listen), &options).unwrap();
            let to = b.local_addr().unwrap();
            a.send_to(b"ping".to_vec(), to).await.0.unwrap();
            let (result, buf) = b.recv_from(vec![0; 100]).await;
            let received = result.unwrap();
            let expected = (4, a.local_addr().unwrap());
            assert_eq!((received.length, received.from), expected);
            assert_eq!(&buf[..4], b"ping");
            let pending = spawn({
                let b = b.clone();
                async move { b.recv_from(vec![0; 100]).await.0.unwrap_err().kind() }
            });
            sleep(Duration::from_millis(10)).await;
            let started = Instant::now();
            b.close();
            let ended = timeout(Duration::from_secs(5), pending).await.unwrap();
            assert_eq!(ended.unwrap(), ErrorKind::ConnectionAborted);
            assert!(started.elapsed() < Duration::from_millis(100));
        }
    });
}

#[test]
fn a_thousand_connections_echo_at_once() {
    ring().block_on(async {
        let pool = Pool::plain(2 * MIB).unwrap();
        let options = SocketOptions::default();
        let listener = Listener::bind(addr(V4), &options).unwrap();
        let to = listener.local_addr().unwrap();
        let server = spawn({
            let pool = pool.clone();
            async move {
                for _ in 0..1000 {
                    let (stream, _) = listener.accept().await.unwrap();
                    let pool = pool.clone();
                    spawn(async move {
                        stream.readable().await.unwrap();
                        let got = read_exactly(&stream, &pool, 1000).await;
                        let echo = got.as_slice().to_vec();
                        stream.send_all(echo).await.0.unwrap();
                    });
                }
            }
        });
        let echoes = Rc::new(Cell::new(0));
        let clients: Vec<_> = (0..1000)
            .map(|i| {
                let (pool, echoes) = (pool.clone(), Rc::clone(&echoes));
                spawn(async move {
                    let options = SocketOptions::default();
                    let stream = Stream::connect(to, &options).await.unwrap();
                    let (result, sent) = stream.send_all(pattern(1000, i)).await;
                    result.unwrap();
                    let echo = read_exactly(&stream, &pool, 1000).await;
                    assert_eq!(echo.as_slice(), sent);
                    echoes.set(echoes.get() + 1);
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        server.await.unwrap();
        assert_eq!(echoes.get(), 1000);
        assert_eq!(pool.heap_bytes(), 0);
    });
}

#[test]
fn files_round_trip_through_registered_and_plain_memory() {
    let folder = tempfile::tempdir().unwrap();
    let root = files::open_root(folder.path()).unwrap();
    ring().block_on(async {
        let (registered, report) = Pool::new(2 * MIB).unwrap();
        assert_eq!(report.registered_bytes, 2 * MIB, "{:?}", report.note);
        let plain = Pool::plain(2 * MIB).unwrap();
        for (pool, kind) in [
            (&registered, FsKind::Local),
            (&plain, FsKind::Local),
            (&registered, FsKind::Remote),
        ] {
            let fd = files::open_beneath(&root, Path::new("f"), OpenMode::Create).unwrap();
            files::set_len(&fd, 0).unwrap();
            let file = File::with_kind(fd, kind);
            // Not at the start of the region, not at the start of the segment.
            let _first = pool.alloc(16_384).unwrap();
            let segment = filled(pool, 262_144, 3);
            let (result, segment) = file.write_at(segment, 1000..201_000, 777).await;
            result.unwrap();
            file.fdatasync().await.unwrap();
            let stamp = file.stamp().unwrap();
            assert_eq!(stamp.size_bytes, 201_000 - 1000 + 777);
            let on_disk = fs::read(folder.path().join("f")).unwrap();
            assert_eq!(&on_disk[777..], &segment.as_slice()[1000..201_000]);
            let fresh = pool.alloc(262_144).unwrap();
            let (n, fresh) = file.read_at(fresh, 5..262_000, 777).await;
            assert_eq!(n.unwrap(), 200_000, "short at the end of the file");
            assert_eq!(
                &fresh.as_slice()[5..200_005],
                &segment.as_slice()[1000..201_000]
            );
        }
    });
}

#[test]
fn whole_pages_go_past_the_page_cache() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = files::open_root(folder.path()).unwrap();
    fs::write(folder.path().join("f"), vec![0; 65_536]).unwrap();
    let direct = match files::open_beneath(&root, Path::new("f"), OpenMode::WriteDirect) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return,
        result => result.unwrap(),
    };
    ring().block_on(async {
        let (pool, _) = Pool::new(MIB).unwrap();
        let file = File::from_fd(direct);
        let (written, segment) = file
            .write_at(filled(&pool, 65_536, 4), 4096..65_536, 4096)
            .await;
        written.unwrap();
        file.fdatasync().await.unwrap();
        let on_disk = fs::read(folder.path().join("f")).unwrap();
        assert_eq!(on_disk[4096..], segment.as_slice()[4096..]);
    });
}

#[test]
fn space_is_reserved_and_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = files::open_root(folder.path()).unwrap();
    ring().block_on(async {
        let fd = files::open_beneath(&root, Path::new("f"), OpenMode::Create).unwrap();
        let file = File::from_fd(fd);
        assert_eq!(file.kind(), files::statfs_kind(&root));
        match file.fallocate(0, 1 << 20).await {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            result => result.unwrap(),
        }
        assert_eq!(file.stamp().unwrap().size_bytes, 1 << 20);
        let full = file.stamp().unwrap().allocated_bytes;
        file.punch(0, 1 << 19).await.unwrap();
        assert_eq!(file.stamp().unwrap().size_bytes, 1 << 20);
        assert!(file.stamp().unwrap().allocated_bytes < full);
    });
    assert!(files::free_bytes(&root).unwrap() > 0);
    files::sync_dir(&root).unwrap();
}

fn refused(root: &OwnedFd, rel: &str) -> io::Error {
    let error = files::open_beneath(root, Path::new(rel), OpenMode::Create).unwrap_err();
    if !rel.is_empty() {
        assert!(files::mkdirs_beneath(root, &Path::new(rel).join("d")).is_err());
    }
    error
}

#[test]
fn no_path_leads_out_of_its_root() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir_all(inside.join("real")).unwrap();
    fs::write(folder.path().join("secret"), "x").unwrap();
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
    };
    link("../secret", "up");
    link("..", "updir");
    link("/etc", "absolute");
    link("real", "stays");
    let root = files::open_root(&inside).unwrap();
    for rel in ["../secret", "real/../../secret", "/etc/passwd", "", "."] {
        assert_eq!(refused(&root, rel).kind(), ErrorKind::InvalidInput, "{rel}");
    }
    for rel in ["up", "updir/secret", "absolute/passwd"] {
        let error = refused(&root, rel);
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{rel}");
    }
    let fd = files::open_beneath(&root, Path::new("stays/new"), OpenMode::Create).unwrap();
    assert!(inside.join("real/new").exists());
    assert!(files::try_lock(&fd, true).unwrap());
    let made = files::mkdirs_beneath(&root, Path::new("stays/a/b")).unwrap();
    assert_eq!(made, [Path::new("stays/a"), Path::new("stays/a/b")]);
    files::rename_beneath(&root, Path::new("stays/new"), Path::new("stays/a/moved")).unwrap();
    let again = files::open_beneath(&root, Path::new("real/a/moved"), OpenMode::Read).unwrap();
    assert!(!files::try_lock(&again, false).unwrap());
    assert_eq!(
        files::stamp(&again).unwrap(),
        files::stamp_beneath(&root, Path::new("stays/a/moved")).unwrap()
    );
    files::unlink_beneath(&root, Path::new("stays/a/moved")).unwrap();
    assert!(!inside.join("real/a/moved").exists());
}

#[test]
fn a_fifo_or_folder_in_place_of_a_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    nix::unistd::mkfifo(&folder.path().join("fifo"), mode).unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    let root = files::open_root(folder.path()).unwrap();
    for name in ["fifo", "dir"] {
        let error = files::open_beneath(&root, Path::new(name), OpenMode::Read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn hashing_in_parts_equals_hashing_the_whole() {
    ring().block_on(async {
        let pool = Pool::plain(2 * MIB).unwrap();
        let hasher = Hasher::new(2).unwrap();
        let whole = pattern(500_000, 0);
        for tree_height in [None, Some(5)] {
            let mut expected = PieceState::new(tree_height);
            expected.update(&whole);
            let mut state = Box::new(PieceState::new(tree_height));
            for bytes in whole.chunks(150_000) {
                let mut parts = Vec::new();
                for bytes in bytes.chunks(70_001) {
                    let mut segment = pool.alloc(bytes.len() + 9).unwrap();
                    segment.as_mut_slice()[9..].copy_from_slice(bytes);
                    let end = segment.len();
                    parts.push((segment, 9..end));
                }
                state = hasher.hash(state, parts).await.state;
            }
            assert_eq!(state.finalize(), expected.finalize());
        }
        assert_eq!(pool.free_bytes(), 2 * MIB);
    });
}

#[test]
fn block_digests_tell_which_block_differs_and_depend_on_the_key() {
    ring().block_on(async {
        let pool = Pool::plain(2 * MIB).unwrap();
        let hasher = Hasher::new(1).unwrap();
        let cut = |at: usize, damage: Option<usize>| {
            let mut bytes = pattern(50_000, 0);
            if let Some(damage) = damage {
                bytes[damage] ^= 1;
            }
            [&bytes[..at], &bytes[at..]]
                .map(|bytes| {
                    let mut segment = pool.alloc(bytes.len()).unwrap();
                    segment.as_mut_slice().copy_from_slice(bytes);
                    let end = segment.len();
                    (segment, 0..end)
                })
                .into()
        };
        let good = hasher.digest_blocks(cut(1000, None), 7).await.digests;
        assert_eq!(good.len(), 4);
        let other_cut = hasher.digest_blocks(cut(30_000, None), 7).await.digests;
        assert_eq!(good, other_cut);
        let bad = hasher.digest_blocks(cut(1000, Some(20_000)), 7).await;
        let differs: Vec<_> = (0..4).filter(|&i| good[i] != bad.digests[i]).collect();
        assert_eq!(differs, [1]);
        let other_key = hasher.digest_blocks(cut(1000, None), 8).await.digests;
        assert!((0..4).all(|i| good[i] != other_key[i]));
    });
}

#[test]
fn a_dropped_hash_keeps_its_segments_until_the_worker_is_done() {
    let pool = Pool::plain(64 * MIB).unwrap();
    ring().block_on(async {
        let hasher = Hasher::new(1).unwrap();
        for i in 0..16 {
            let parts = vec![(filled(&pool, MIB, i), 0..MIB)];
            tokio::select! {
                biased;
                _ = hasher.hash(Box::new(PieceState::new(None)), parts) => panic!("hashed before the worker was asked"),
                () = std::future::ready(()) => {}
            }
        }
        // No answer has been looked at yet: nothing may have come back, hashed or not.
        assert_eq!(pool.free_bytes(), 48 * MIB);
        // The last handle waits for the workers.
        drop(hasher);
    });
    assert_eq!(pool.free_bytes(), 64 * MIB);
    pool.check();
}

#[test]
fn waiting_for_memory_ends_when_some_comes_back() {
    ring().block_on(async {
        let pool = Pool::plain(MIB).unwrap();
        let all = pool.alloc(MIB).unwrap();
        let waits = spawn({
            let pool = pool.clone();
            async move {
                while pool.alloc(16_384).is_none() {
                    pool.wait_free().await;
                }
            }
        });
        sleep(Duration::from_millis(5)).await;
        assert!(!waits.is_finished());
        drop(all);
        waits.await.unwrap();
    });
}

#[test]
fn names_and_literals_resolve() {
    ring().block_on(async {
        let resolver = Resolver::new().unwrap();
        let limit = Duration::from_secs(10);
        let literal = resolver.resolve("[::1]", 5, limit).await.unwrap();
        assert_eq!(literal, [addr("[::1]:5")]);
        let local = resolver.resolve("localhost", 6881, limit).await.unwrap();
        assert!(local.iter().all(|a| a.ip().is_loopback()));
        assert!(!local.is_empty());
    });
}
