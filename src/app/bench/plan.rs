//! What `gyre bench seed` is asked to do: a preset, changed by the options beside it. Layer 7.

use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::args::{Order, Preset, SeedBench, Veiled};
use super::place::Confinement;
use super::sample::Shape;
use crate::app::cli::SendEngine;
use crate::app::exit::Failure;
use crate::app::size;
use crate::base::{BLOCK_BYTES, PIECE_LENGTH_BYTES_MAX};

/// The user that nothing belongs to.
const NOBODY: u32 = 65_534;
const MIB: u64 = 1 << 20;
/// Synthetic peers have that many addresses and ports.
const CONNECTIONS_MAX: u32 = 100_000;

/// Everything that decides a run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub connections: u32,
    pub depth: u32,
    pub shape: Shape,
    pub order: Order,
    pub run_blocks: u32,
    pub cold: bool,
    pub seconds: Duration,
    pub idle: u32,
    pub idle_seconds: Duration,
    pub send_engine: SendEngine,
    pub encryption: Veiled,
    pub limit_up: Option<u64>,
    pub upload_slots: String,
    pub limits: Confinement,
}

/// What a preset changes of the defaults.
struct Defaults {
    connections: u32,
    depth: u32,
    torrents: u32,
    files: u32,
    size: u64,
    order: Order,
    cold: bool,
    seconds: u64,
    limit_up: Option<u64>,
    idle: u32,
    idle_seconds: u64,
    user: Option<u32>,
    memlock: Option<u64>,
}

impl Defaults {
    const fn plain() -> Defaults {
        Defaults {
            connections: 8,
            depth: 64,
            torrents: 1,
            files: 1,
            size: 1024 * MIB,
            order: Order::Sequential,
            cold: false,
            seconds: 4,
            limit_up: None,
            idle: 0,
            idle_seconds: 10,
            user: None,
            memlock: None,
        }
    }

    const fn of(preset: Option<Preset>) -> Defaults {
        let plain = Defaults::plain();
        match preset {
            None | Some(Preset::Warm) => plain,
            Some(Preset::Warm50) => Defaults {
                connections: 50,
                depth: 16,
                ..plain
            },
            Some(Preset::Warm500) => Defaults {
                connections: 500,
                depth: 4,
                torrents: 20,
                files: 100,
                size: 64 * MIB,
                ..plain
            },
            Some(Preset::Cold) => Defaults {
                depth: 32,
                size: 8192 * MIB,
                order: Order::Runs,
                cold: true,
                seconds: 60,
                ..plain
            },
            Some(Preset::ColdBlocks) => Defaults {
                depth: 32,
                size: 8192 * MIB,
                order: Order::Blocks,
                cold: true,
                seconds: 6,
                ..plain
            },
            Some(Preset::Limit) => Defaults {
                limit_up: Some(100_000_000),
                seconds: 10,
                ..plain
            },
            Some(Preset::Idle10k) => Defaults {
                connections: 1,
                idle: 10_000,
                idle_seconds: 600,
                ..plain
            },
            Some(Preset::Memlock) => Defaults {
                user: Some(NOBODY),
                memlock: Some(8 * MIB),
                ..plain
            },
        }
    }
}

/// Checks what describes a sample.
///
/// # Errors
/// It makes no torrent.
pub fn shape(
    torrents: u32,
    files: u32,
    size: u64,
    piece_length: u64,
    is_v2: bool,
) -> Result<Shape, Failure> {
    let range = u64::from(BLOCK_BYTES)..=u64::from(PIECE_LENGTH_BYTES_MAX);
    let piece_length_bytes = u32::try_from(piece_length)
        .ok()
        .filter(|_| piece_length.is_power_of_two() && range.contains(&piece_length))
        .ok_or_else(|| {
            Failure::usage(
                format!("a piece length of {piece_length} bytes cannot be used"),
                "choose a power of two from 16KiB to 512MiB, such as 1MiB",
            )
        })?;
    if size == 0 || torrents == 0 || files == 0 {
        return Err(Failure::usage(
            "a sample needs at least a byte, a file and a torrent",
            "give --size, --files and --torrents above 0",
        ));
    }
    if is_v2 && files > 1 {
        // The synthetic peers know pieces that run through files.
        return Err(Failure::usage(
            "a sample of BitTorrent v2 has one file",
            "leave out --files, or --v2",
        ));
    }
    Ok(Shape {
        torrents,
        files,
        total_bytes: size,
        piece_length_bytes,
        is_v2,
    })
}

/// Checks a number of synthetic peers.
///
/// # Errors
/// It is zero or beyond what there are addresses for.
pub fn connections(count: u32) -> Result<u32, Failure> {
    if (1..=CONNECTIONS_MAX).contains(&count) {
        return Ok(count);
    }
    Err(Failure::usage(
        format!("{count} synthetic peers cannot be had"),
        format!("give --connections from 1 to {CONNECTIONS_MAX}"),
    ))
}

impl Plan {
    /// Puts preset and options together.
    ///
    /// # Errors
    /// They make no sense.
    pub fn new(args: &SeedBench) -> Result<Plan, Failure> {
        let defaults = Defaults::of(args.preset);
        let common = &args.common;
        let shape = shape(
            args.torrents.unwrap_or(defaults.torrents),
            common.files.unwrap_or(defaults.files),
            common.size.unwrap_or(defaults.size),
            common.piece_length.unwrap_or(MIB),
            common.v2,
        )?;
        let connections = connections(common.connections.unwrap_or(defaults.connections))?;
        let depth = args.depth.unwrap_or(defaults.depth);
        if depth == 0 {
            return Err(Failure::usage(
                "--depth 0 asks for nothing",
                "give at least 1",
            ));
        }
        let piece_blocks = shape.piece_length_bytes.div_ceil(BLOCK_BYTES);
        let seconds = Duration::from_secs(defaults.seconds);
        let idle_seconds = Duration::from_secs(defaults.idle_seconds);
        let slots = args.upload_slots.clone();
        Ok(Plan {
            connections,
            depth,
            shape,
            order: args.order.unwrap_or(defaults.order),
            run_blocks: args.run_blocks.unwrap_or(piece_blocks.min(16)).max(1),
            cold: args.cold || defaults.cold,
            seconds: args.seconds.unwrap_or(seconds),
            idle: args.idle.unwrap_or(defaults.idle),
            idle_seconds: args.idle_seconds.unwrap_or(idle_seconds),
            send_engine: args.send_engine.unwrap_or(SendEngine::Auto),
            encryption: args.encryption.unwrap_or_default(),
            limit_up: args.limit_up.or(defaults.limit_up),
            upload_slots: slots.unwrap_or_else(|| connections.to_string()),
            limits: Confinement {
                user: common.user.or(defaults.user),
                memlock_bytes: common.memlock.or(defaults.memlock),
            },
        })
    }

    pub fn order_word(&self) -> String {
        let word = self.order.to_possible_value();
        word.map_or_else(String::new, |word| word.get_name().to_owned())
    }

    pub fn engine_word(&self) -> String {
        let word = self.send_engine.to_possible_value();
        word.map_or_else(String::new, |word| word.get_name().to_owned())
    }

    /// For the JSON.
    pub fn json(&self) -> Value {
        json!({
            "connections": self.connections,
            "depth": self.depth,
            "torrents": self.shape.torrents,
            "files": self.shape.files,
            "torrent_bytes": self.shape.total_bytes,
            "piece_length_bytes": self.shape.piece_length_bytes,
            "v2": self.shape.is_v2,
            "order": self.order_word(),
            "run_blocks": self.run_blocks,
            "cold": self.cold,
            "seconds": self.seconds.as_secs_f64(),
            "idle": self.idle,
            "idle_seconds": self.idle_seconds.as_secs_f64(),
            "send_engine": self.engine_word(),
            "encryption": self.encryption,
            "limit_up_bytes_per_s": self.limit_up,
            "upload_slots": self.upload_slots,
            "user": self.limits.user,
            "memlock_bytes": self.limits.memlock_bytes,
        })
    }

    /// For people.
    pub fn line(&self) -> String {
        let mut line = format!(
            "seeding {}, {} × {} deep, {} of {} in {}, pieces of {}, {}, {}",
            match self.cold {
                true => "cold",
                false => "warm",
            },
            size::plural(self.connections.into(), "connection"),
            self.depth,
            size::plural(self.shape.torrents.into(), "torrent"),
            size::bytes(self.shape.total_bytes),
            size::plural(self.shape.files.into(), "file"),
            size::bytes(self.shape.piece_length_bytes.into()),
            self.order_word(),
            self.engine_word(),
        );
        match self.encryption {
            Veiled::Off => {}
            Veiled::Plaintext => line += ", handshakes hidden",
            Veiled::Rc4 => line += ", encrypted",
        }
        if self.idle > 0 {
            line += &format!(", {} idle beside", self.idle);
        }
        if let Some(limit) = self.limit_up {
            line += &format!(", limit {:.0} MB/s", limit as f64 / 1e6);
        }
        if let Some(bytes) = self.limits.memlock_bytes {
            line += &format!(", {} locked memory", size::bytes(bytes));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::bench::args::BenchVerb;
    use crate::app::cli::{self, Verb};

    fn plan(line: &str) -> Result<Plan, Failure> {
        let line = format!("gyre bench seed {line}");
        let cli = cli::parse(line.split_whitespace().map(Into::into)).unwrap();
        match cli.verb {
            Verb::Bench(args) => match args.what {
                BenchVerb::Seed(args) => Plan::new(&args),
                _ => panic!("another bench"),
            },
            _ => panic!("another verb"),
        }
    }

    #[test]
    fn options_beside_a_preset_change_it() {
        let plan = plan("--preset cold --depth 7 --size 2GiB").unwrap();
        assert!(plan.cold && plan.order == Order::Runs);
        assert_eq!((plan.depth, plan.connections), (7, 8));
        assert_eq!(plan.shape.total_bytes, 2 << 30);
    }

    #[test]
    fn plans_that_cannot_be_carried_out_are_refused() {
        for line in [
            "--depth 0",
            "--connections 0",
            "--size 0",
            "--piece-length 100000",
            "--files 0",
        ] {
            assert!(plan(line).is_err(), "{line}");
        }
    }
}
