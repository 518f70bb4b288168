//! Downloads that are stopped and killed, and all that reached the disk meanwhile.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::disk::PowerDisk;
use crate::support::fake_peer::{Behaviour, Content, FakeSeeder};
use crate::support::{Gyre, Sample, sample::text};
use crate::tree::{Op, Tree};

/// Payload a second while a trace is made: slow enough for the records of every ten seconds.
const RATE: u64 = 512 << 10;

/// How one run of a trace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Stopped, with so many pieces.
    Stopped(u64),
    /// Killed, with so many pieces.
    Killed(u64),
    Complete,
}

/// One run: what is asked for, and its end.
pub struct Run {
    pub more: &'static [&'static str],
    pub end: End,
}

/// A torrent on its way to a disk.
pub struct Bench {
    pub disk: PowerDisk,
    pub sample: Sample,
    seeder: FakeSeeder,
    quick: FakeSeeder,
    out: &'static str,
}

impl Bench {
    /// Downloads go to the folder `out` of the disk, which need not be there.
    pub fn new(
        test: &str,
        last_byte: u8,
        files: &[(&str, usize)],
        out: &'static str,
    ) -> Option<Bench> {
        let disk = PowerDisk::new(test)?;
        let sample = Sample::tree(files, 16_384, &[]);
        let content = Content::of(&sample);
        let mut slow = Behaviour::honest(last_byte);
        slow.bytes_per_s = Some(RATE);
        let seeder = FakeSeeder::start(&content, slow);
        let quick = FakeSeeder::start(&content, Behaviour::honest(last_byte));
        std::fs::create_dir(disk.path().join("state")).unwrap();
        Some(Bench {
            disk,
            sample,
            seeder,
            quick,
            out,
        })
    }

    pub fn out(&self) -> PathBuf {
        self.disk.path().join(self.out)
    }

    pub fn state(&self) -> PathBuf {
        self.disk.path().join("state")
    }

    fn start(&self, seeder: &FakeSeeder, more: &[&str]) -> Gyre {
        let mut arguments = vec!["download".to_owned(), text(&self.sample.torrent)];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("-o", text(&self.out()));
        option("--state", text(&self.state()));
        option("--peer", seeder.addr.to_string());
        option("--port", "0".to_owned());
        arguments.push("--no-trackers".to_owned());
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        Gyre::start(&arguments)
    }

    /// A download that is slow enough to be met at work.
    pub fn slow(&self, more: &[&str]) -> Gyre {
        self.start(&self.seeder, more)
    }

    /// A download that is to end soon.
    pub fn quick(&self, more: &[&str]) -> Gyre {
        self.start(&self.quick, more)
    }

    /// Runs one after the other; what was on the disk before, and all that reached it.
    pub fn trace(&self, runs: &[Run]) -> (Tree, Vec<Op>) {
        let before = self.disk.begin();
        for run in runs {
            let mut gyre = self.slow(run.more);
            match run.end {
                End::Complete => {
                    gyre.event("complete");
                    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 0);
                }
                End::Stopped(pieces) => {
                    self.wait_for(&mut gyre, pieces);
                    gyre.signal(Signal::SIGTERM);
                    assert_eq!(gyre.wait_exit(Duration::from_secs(20)), 143);
                }
                End::Killed(pieces) => {
                    self.wait_for(&mut gyre, pieces);
                    gyre.kill9();
                }
            }
        }
        (before, self.disk.ops())
    }

    fn wait_for(&self, gyre: &mut Gyre, pieces: u64) {
        gyre.wait_for("a part", |event| {
            event["pieces_have"].as_u64() >= Some(pieces) && event["state"] != "checking"
        });
    }

    /// The selected files of the sample are in the output folder as they should be.
    pub fn has_files(&self, files: &[&str]) -> bool {
        let root = |folder: &Path| folder.join(self.sample.content.file_name().unwrap());
        files.iter().all(|file| {
            let got = std::fs::read(root(&self.out()).join(file));
            let wanted = std::fs::read(self.sample.content.join(file));
            matches!((got, wanted), (Ok(got), Ok(wanted)) if got == wanted)
        })
    }
}
