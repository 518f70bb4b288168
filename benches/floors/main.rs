//! The performance floors: Gyre beside other peers under the same load, as pairs in one run.
//!
//! The program under test is pinned to one core, the load runs on the other; rounds alternate. Prints a table with
//! medians and spreads, the congestion control, and the verdict. `scripts/floors` runs it in a network namespace of its
//! own under cubic.

mod load;
mod programs;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use load::World;
use programs::{Kind, Program};

const CONNECTIONS: u8 = 8;
const DEPTH: u32 = 64;
const PIECE_BYTES: u32 = 1 << 20;
const TEST_CORE: usize = 0;
const LOAD_CORE: usize = 1;

struct Settings {
    rounds: usize,
    total_bytes: u64,
    seconds: f64,
    gyre: PathBuf,
    only: Option<String>,
}

/// One measured round.
#[derive(Clone, Copy)]
struct Sample {
    mb_per_s: f64,
    cpu_s_per_gib: f64,
    anonymous_mib: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings() -> Settings {
    let mut settings = Settings {
        rounds: 5,
        total_bytes: 1 << 30,
        seconds: 4.0,
        gyre: PathBuf::from(env!("CARGO_BIN_EXE_gyre")),
        only: None,
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.windows(2) {
        match pair[0].as_str() {
            "--rounds" => settings.rounds = pair[1].parse().expect("a number of rounds"),
            "--mib" => settings.total_bytes = pair[1].parse::<u64>().expect("MiB") << 20,
            "--seconds" => settings.seconds = pair[1].parse().expect("seconds"),
            "--gyre" => settings.gyre = PathBuf::from(&pair[1]),
            "--only" => settings.only = Some(pair[1].clone()),
            _ => {}
        }
    }
    settings
}

fn run() -> io::Result<bool> {
    let settings = settings();
    let folder = std::env::temp_dir().join(format!("gyre-floors-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = measure_all(&settings, &folder);
    fs::remove_dir_all(&folder)?;
    result
}

fn measure_all(settings: &Settings, folder: &Path) -> io::Result<bool> {
    pin_self(LOAD_CORE);
    let torrent = make_torrent(settings, folder)?;
    let congestion =
        fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap_or_default();
    println!(
        "congestion control: {} · {} MiB, pieces of 1 MiB, {CONNECTIONS} connections, {DEPTH} requests deep, {} rounds",
        congestion.trim(),
        settings.total_bytes >> 20,
        settings.rounds
    );
    println!("ceiling of the load alone: {:.0} MB/s", ceiling(&torrent)?);
    let mut passed = 0;
    let mut failed = 0;
    let mut verdict = |name: &str, got: f64, floor: f64, at_least: bool| {
        let holds = if at_least { got >= floor } else { got <= floor };
        let sign = if at_least { "≥" } else { "≤" };
        println!(
            "{} {name}: {got:.2} (floor {sign} {floor:.2})",
            if holds { "ok    " } else { "FAILED" }
        );
        if holds { passed += 1 } else { failed += 1 }
    };
    for (what, kinds, factor) in [
        ("seeding", [Kind::Gyre, Kind::Rqbit], 0.8),
        ("downloading", [Kind::Gyre, Kind::Aria2], 1.0),
    ] {
        if settings.only.as_deref().is_some_and(|only| only != what) {
            continue;
        }
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); kinds.len()];
        for round in 0..settings.rounds {
            for step in 0..kinds.len() {
                // The order rotates, so that drift of the machine falls on all alike.
                let at = (round + step) % kinds.len();
                let sample = if what == "seeding" {
                    seed_round(settings, folder, &torrent, kinds[at])
                } else {
                    leech_round(settings, folder, &torrent, kinds[at])
                };
                samples[at].push(
                    sample.map_err(|error| {
                        io::Error::other(format!("{}: {error}", kinds[at].name()))
                    })?,
                );
            }
        }
        println!(
            "\n{what:<12} {:>10} {:>16} {:>12} {:>14}",
            "MB/s", "spread", "CPU s/GiB", "anonymous MiB"
        );
        for (kind, samples) in kinds.iter().zip(&samples) {
            let rates: Vec<f64> = samples.iter().map(|sample| sample.mb_per_s).collect();
            let (low, high) = spread(&rates);
            println!(
                "{:<12} {:>10.0} {:>16} {:>12.2} {:>14.1}",
                kind.name(),
                median(&rates),
                format!("{low:.0}–{high:.0}"),
                median(
                    &samples
                        .iter()
                        .map(|sample| sample.cpu_s_per_gib)
                        .collect::<Vec<_>>()
                ),
                median(
                    &samples
                        .iter()
                        .map(|sample| sample.anonymous_mib)
                        .collect::<Vec<_>>()
                ),
            );
        }
        let rate = |at: usize| {
            median(
                &samples[at]
                    .iter()
                    .map(|sample| sample.mb_per_s)
                    .collect::<Vec<_>>(),
            )
        };
        verdict(
            &format!("{what}, times {}", kinds[1].name()),
            rate(0) / rate(1),
            factor,
            true,
        );
        let memory = samples[0]
            .iter()
            .map(|sample| sample.anonymous_mib)
            .fold(0.0, f64::max);
        verdict(&format!("{what}, anonymous MiB"), memory, 64.0, false);
    }
    println!("floors: {passed} passed, {failed} failed");
    Ok(failed == 0)
}

struct Torrent {
    file: PathBuf,
    data_folder: PathBuf,
    data: PathBuf,
    world: Arc<World>,
}

fn make_torrent(settings: &Settings, folder: &Path) -> io::Result<Torrent> {
    let data_folder = folder.join("data");
    fs::create_dir_all(&data_folder)?;
    let data = data_folder.join("floor.bin");
    let mut file = File::create(&data)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = vec![0u8; 1 << 20];
    for _ in 0..settings.total_bytes >> 20 {
        for word in chunk.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    // Written back before anything is measured.
    file.sync_all()?;
    let (listener, tracker) = load::listen()?;
    drop(listener);
    let torrent = folder.join("floor.torrent");
    let mut world = World {
        info_hash: [0; 20],
        total_bytes: settings.total_bytes,
        piece_bytes: PIECE_BYTES,
        payload: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let created = Command::new(&settings.gyre)
        .args(["create", "--piece-length", "1MiB", "--json", "-a"])
        .arg(format!("http://{tracker}/announce"))
        .arg("-o")
        .args([&torrent, &data])
        .output()?;
    let text = String::from_utf8_lossy(&created.stdout).into_owned();
    let hex = text
        .split("\"info_hash\":\"")
        .nth(1)
        .and_then(|rest| rest.get(..40));
    let hex = hex.ok_or_else(|| io::Error::other(format!("gyre create said {text}")))?;
    for (at, byte) in world.info_hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(io::Error::other)?;
    }
    Ok(Torrent {
        file: torrent,
        data_folder,
        data,
        world: Arc::new(world),
    })
}

fn fresh(world: &World) -> Arc<World> {
    Arc::new(World {
        info_hash: world.info_hash,
        total_bytes: world.total_bytes,
        piece_bytes: world.piece_bytes,
        payload: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    })
}

/// The load against itself: what its leechers take from its own seeders.
fn ceiling(torrent: &Torrent) -> io::Result<f64> {
    let world = fresh(&torrent.world);
    let (listener, addr) = load::listen()?;
    let (served, data) = (fresh(&torrent.world), Arc::new(File::open(&torrent.data)?));
    std::thread::spawn(move || {
        pin_self(TEST_CORE);
        load::seed(served, listener, data, 0);
    });
    let rate = leech_for(&world, addr, 2.0);
    Ok(rate)
}

fn leech_for(world: &Arc<World>, addr: std::net::SocketAddr, seconds: f64) -> f64 {
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let world = world.clone();
            std::thread::spawn(move || load::leech(&world, addr, number, DEPTH))
        })
        .collect();
    // The first moments are handshakes and unchokes.
    let deadline = Instant::now() + Duration::from_secs(20);
    while world.payload.load(Ordering::Relaxed) < 64 << 20 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let (start, before) = (Instant::now(), world.payload.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let bytes = world.payload.load(Ordering::Relaxed) - before;
    let rate = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
    world.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    rate
}

fn seed_round(
    settings: &Settings,
    folder: &Path,
    torrent: &Torrent,
    kind: Kind,
) -> io::Result<Sample> {
    warm(&torrent.data)?;
    let program = Program::seed(
        kind,
        &settings.gyre,
        folder,
        &torrent.file,
        &torrent.data_folder,
        TEST_CORE,
    )?;
    load::wait_for_port(program.addr, Duration::from_secs(60))?;
    program.wait_until_ready()?;
    let world = fresh(&torrent.world);
    let cpu_before = program.cpu_s()?;
    let mb_per_s = leech_for(&world, program.addr, settings.seconds);
    let cpu = program.cpu_s()? - cpu_before;
    let gib = world.payload.load(Ordering::Relaxed) as f64 / f64::from(1 << 30);
    if gib == 0.0 {
        return Err(io::Error::other(format!(
            "nothing was served\n{}",
            program.log()
        )));
    }
    Ok(Sample {
        mb_per_s,
        cpu_s_per_gib: cpu / gib,
        anonymous_mib: program.anonymous_mib()?,
    })
}

fn leech_round(
    settings: &Settings,
    folder: &Path,
    torrent: &Torrent,
    kind: Kind,
) -> io::Result<Sample> {
    warm(&torrent.data)?;
    let world = fresh(&torrent.world);
    let data = Arc::new(File::open(&torrent.data)?);
    let mut seeds = Vec::new();
    for number in 0..CONNECTIONS {
        // Each on an address of its own: some programs keep one connection per address.
        let listener =
            std::net::TcpListener::bind((std::net::Ipv4Addr::new(127, 0, 0, 10 + number), 0))?;
        seeds.push(listener.local_addr()?);
        let (world, data) = (world.clone(), data.clone());
        std::thread::spawn(move || load::seed(world, listener, data, number));
    }
    let target = folder.join(format!("leech-{}", kind.name()));
    let start = Instant::now();
    let mut program = Program::leech(
        kind,
        &settings.gyre,
        folder,
        &torrent.file,
        &target,
        &seeds,
        TEST_CORE,
    )?;
    let mut first = None;
    let mut memory: f64 = 0.0;
    let mut cpu = 0.0;
    let deadline = start + Duration::from_secs(180);
    while program.is_running()? && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        if first.is_none() && world.payload.load(Ordering::Relaxed) > 0 {
            first = Some(Instant::now());
        }
        memory = memory.max(program.anonymous_mib().unwrap_or(0.0));
        cpu = program.cpu_s().unwrap_or(cpu).max(cpu);
    }
    let seconds = first.unwrap_or(start).elapsed().as_secs_f64();
    world.stop.store(true, Ordering::Relaxed);
    if !same(&torrent.data, &target.join("floor.bin")) {
        return Err(io::Error::other(format!(
            "the download is not complete\n{}",
            program.log()
        )));
    }
    fs::remove_dir_all(&target)?;
    let gib = settings.total_bytes as f64 / f64::from(1 << 30);
    Ok(Sample {
        mb_per_s: settings.total_bytes as f64 / seconds / 1e6,
        cpu_s_per_gib: cpu / gib,
        anonymous_mib: memory,
    })
}

fn same(left: &Path, right: &Path) -> bool {
    Command::new("cmp")
        .arg("-s")
        .args([left, right])
        .status()
        .is_ok_and(|status| status.success())
}

/// Reads the file once, so that it lies in the page cache.
fn warm(path: &Path) -> io::Result<()> {
    io::copy(&mut File::open(path)?, &mut io::sink())?;
    Ok(())
}

fn pin_self(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    // A machine with one core has nothing to pin to.
    let _ = set
        .set(core)
        .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set));
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn spread(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, 0.0), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}
