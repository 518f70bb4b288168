//! `gyre bench hash`: SHA-1 on one core and on all, and `gyre verify` beside it. Layer 7.

use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use sha1::{Digest, Sha1};

use super::args::{HashBench, Temperature};
use super::figures::Figures;
use super::sample::{Folder, Sample};
use super::{failed, place, plan, print};
use crate::app::exit::{Exit, Failure};
use crate::app::size;

/// Hashed at a time, as a re-check reads it.
const READ_BYTES: usize = 256 * 1024;

/// Runs the verb.
///
/// # Errors
/// Something cannot be set up, or `gyre verify` fails.
pub fn run(args: &HashBench) -> Result<Exit, Failure> {
    let shape = plan::shape(1, 1, args.size, args.piece_length, false)?;
    let cores = place::allowed_cores();
    let sample = match args.verify {
        Some(_) => {
            let folder = Folder::open(args.dir.as_deref())?;
            let sample = Sample::make(&folder, shape)?;
            Some((sample, folder))
        }
        None => None,
    };
    let mut figures = Figures::default();
    for _ in 0..args.rounds {
        let one = sha1_rate(&cores[..1.min(cores.len())], args).map_err(failed)?;
        let all = sha1_rate(&cores, args).map_err(failed)?;
        figures.add("one_core_mb_per_s", "one core MB/s", 0, Some(one));
        figures.add("all_cores_mb_per_s", "all cores MB/s", 0, Some(all));
        if let (Some((sample, _)), Some(how)) = (&sample, args.verify) {
            let rate = verify_rate(sample, how).map_err(failed)?;
            let ideal = one * cores.len() as f64;
            figures.add("verify_mb_per_s", "gyre verify MB/s", 0, Some(rate));
            figures.add(
                "verify_of_ideal",
                "verify ÷ (cores × one core)",
                3,
                Some(rate / ideal),
            );
        }
    }
    let verify = args.verify.map(|how| match how {
        Temperature::Warm => "warm",
        Temperature::Cold => "cold",
    });
    let line = format!(
        "SHA-1 of pieces of {} on {}",
        size::bytes(args.piece_length),
        size::plural(cores.len() as u64, "core"),
    );
    let settings = json!({
        "piece_length_bytes": args.piece_length, "cores": cores.len(), "verify": verify, "torrent_bytes": args.size,
    });
    print(
        "hash",
        args.json,
        &settings,
        &figures,
        &json!({"line": line}),
    );
    Ok(Exit::Done)
}

/// Bytes hashed by a thread on each of these cores, from memory that is in the cache.
fn sha1_rate(cores: &[usize], args: &HashBench) -> io::Result<f64> {
    let stop = AtomicBool::new(false);
    let hashed = AtomicU64::new(0);
    let piece = usize::try_from(args.piece_length).map_err(io::Error::other)?;
    let mut seconds = 0.0;
    std::thread::scope(|scope| {
        for core in cores {
            let (stop, hashed) = (&stop, &hashed);
            scope.spawn(move || {
                let _ = place::stay_on(&[*core]);
                let buffer = vec![0x5a_u8; READ_BYTES.min(piece)];
                while !stop.load(Ordering::Relaxed) {
                    let mut sha1 = Sha1::new();
                    for _ in 0..piece.div_ceil(buffer.len().max(1)) {
                        sha1.update(&buffer);
                    }
                    std::hint::black_box(sha1.finalize());
                    hashed.fetch_add(piece as u64, Ordering::Relaxed);
                }
            });
        }
        let start = Instant::now();
        std::thread::sleep(args.seconds.max(Duration::from_millis(10)));
        stop.store(true, Ordering::Relaxed);
        seconds = start.elapsed().as_secs_f64();
    });
    Ok(hashed.load(Ordering::Relaxed) as f64 / seconds / 1e6)
}

/// `gyre verify` over the sample, its start included.
fn verify_rate(sample: &Sample, how: Temperature) -> io::Result<f64> {
    match how {
        Temperature::Warm => sample.warm()?,
        Temperature::Cold => sample.chill()?,
    }
    let torrent = sample.torrents.first().ok_or(io::ErrorKind::NotFound)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("verify").arg(&torrent.file).arg("--data");
    command
        .arg(&sample.data)
        .arg("--json")
        .stdout(Stdio::null());
    place::clean_environment(&mut command);
    let start = Instant::now();
    let status = command.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("gyre verify ended with {status}")));
    }
    Ok(sample.total_bytes() as f64 / start.elapsed().as_secs_f64() / 1e6)
}
