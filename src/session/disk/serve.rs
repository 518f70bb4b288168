//! From files to runs for sending: out of the page cache where all of a run lies there, else through memory of ours.
//! Layer 5.
//!
//! What is not resident is read past the page cache the first time: of a large torrent most is asked for once in a long
//! while, and pages for it would push out what is asked for often. What is asked for again soon is read through the page
//! cache and stays there.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::outgoing::Sources;
use super::{DiskError, DiskOp, DiskTorrent, ReadError, SendEngine};
use crate::base::PieceIndex;
use crate::session::peer_stream::PeerStream;
use crate::storage::direct::PAGE_BYTES;
use crate::storage::layout::Span;
use crate::swarm::effects::UploadRun;
use crate::uring::buffers::Pool;
use crate::uring::files::{File, FsKind};
use crate::uring::map::{self, FileMap};
use crate::uring::stream::{Outgoing, SendData};
use crate::wire::mse::Rc4;

/// How a run is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// As the send engine says.
    Engine,
    /// All of it in memory of ours, that may be changed.
    Memory,
}

/// A run ready to be sent, and its share of the memory for runs if it has one.
#[derive(Debug, Default)]
pub struct ReadRun {
    /// Headers, slices, memory.
    pub out: Outgoing,
    /// The disk had to be waited for: reads ahead pay.
    pub is_from_disk: bool,
    _memory: Option<OwnedSemaphorePermit>,
}

impl ReadRun {
    /// The run lies in memory of ours.
    pub fn is_copy(&self) -> bool {
        !self.out.segments.is_empty()
    }

    /// Encrypts it in place from byte `first` of the wire on.
    ///
    /// # Errors
    /// Some of it does not lie in memory of ours.
    pub fn encrypt(&mut self, first: usize, cipher: &mut Rc4) -> io::Result<()> {
        let mut skipped = first;
        let out = &mut self.out;
        let mut apply = |bytes: &mut [u8]| {
            let skip = skipped.min(bytes.len());
            skipped -= skip;
            cipher.apply(&mut bytes[skip..]);
        };
        for part in &out.parts {
            let header = out.headers.get_mut(part.header.clone());
            apply(header.unwrap_or_default());
            let SendData::Segment { index, range } = &part.data else {
                return Err(io::ErrorKind::Unsupported.into());
            };
            let segment = out.segments.get_mut(*index);
            let bytes = segment.and_then(|it| it.as_mut_slice().get_mut(range.clone()));
            apply(bytes.unwrap_or_default());
        }
        Ok(())
    }

    /// Sends what the socket takes at once, from byte `first` on; returns up to which byte it came. The memory is free
    /// then.
    ///
    /// # Errors
    /// As `PeerStream::send_run`.
    pub async fn send_now(self, stream: &PeerStream, first: usize) -> io::Result<usize> {
        stream.send_run_now(self.out, first).await.0
    }

    /// Sends it; drop what comes back once it is not needed.
    ///
    /// # Errors
    /// As `PeerStream::send_run`.
    pub async fn send(mut self, stream: &PeerStream) -> (io::Result<()>, ReadRun) {
        let result;
        (result, self.out) = stream.send_run(self.out).await;
        (result, self)
    }
}

/// Where a run lies in the torrent.
#[derive(Clone, Copy)]
struct RunPlace {
    piece: PieceIndex,
    /// First byte in the torrent.
    start: u64,
    length: usize,
}

/// One span of a run, and how it can be had.
struct Stretch {
    span: Span,
    /// The file and the offset in it; `None` for zeros.
    target: Option<(usize, u64)>,
    /// Set when all its pages are resident, or the engine does not care.
    map: Option<FileMap>,
}

impl DiskTorrent {
    /// A run ready to be sent.
    ///
    /// # Errors
    /// The disk's; or [`super::Changed`], told once a change.
    pub async fn read_run(&self, run: &UploadRun, via: Via) -> Result<ReadRun, ReadError> {
        let Some(place) = self.place_of(run) else {
            return Ok(ReadRun::default());
        };
        self.prove(place.piece).await?;
        let stretches = self.stretches(place).await?;
        self.hub.traffic.note_sent(place.length);
        let is_resident = stretches
            .iter()
            .all(|it| it.target.is_none() || it.map.is_some());
        let may_map = via == Via::Engine && self.hub.engines.send != SendEngine::Copy;
        if is_resident && may_map {
            let out = map_run(run, stretches);
            return Ok(ReadRun {
                out,
                ..ReadRun::default()
            });
        }
        let is_direct = !is_resident && self.kind == FsKind::Local;
        let bytes = memory_bytes(&stretches, is_direct);
        let memory = match is_resident {
            true => self.lane.copy_memory(bytes).await,
            false => self.lane.read_memory(bytes).await,
        };
        let sources = self.copy_run(place, &stretches, via, is_direct).await;
        let sources = sources.map_err(|error| {
            self.read_failed(place.piece, place.start, place.length as u64, error)
        })?;
        Ok(ReadRun {
            out: sources.shape(run),
            is_from_disk: !is_resident,
            _memory: Some(memory),
        })
    }

    /// Whether a read of that many bytes would get its memory at once.
    pub fn may_read_ahead(&self, bytes: u32) -> bool {
        self.lane.may_read(bytes)
    }

    fn place_of(&self, run: &UploadRun) -> Option<RunPlace> {
        let (first, last) = (run.blocks.first()?, run.blocks.last()?);
        let piece = first.piece();
        Some(RunPlace {
            piece,
            start: self.geometry().piece_offset(piece) + u64::from(first.begin()),
            length: last.end().saturating_sub(first.begin()) as usize,
        })
    }

    async fn stretches(&self, place: RunPlace) -> Result<Vec<Stretch>, ReadError> {
        let mut stretches = Vec::new();
        for span in self.config.layout.spans(place.start, place.length as u64) {
            let target = self.target(place.piece, &span)?;
            let mut map = None;
            if let Some((file, offset)) = target {
                self.look_for_changes(file).await?;
                map = self.resident(file, offset, span.length).await?;
            }
            stretches.push(Stretch { span, target, map });
        }
        Ok(stretches)
    }

    /// The mapping to send from without waiting for the disk.
    async fn resident(
        &self,
        file: usize,
        offset: u64,
        length: u64,
    ) -> Result<Option<FileMap>, DiskError> {
        if self.kind != FsKind::Local {
            return Ok(None);
        }
        let Some((handle, map)) = self.mapping(file).await? else {
            return Ok(None);
        };
        let is_forced = self.hub.engines.send == SendEngine::Mapped;
        let range = offset..offset.saturating_add(length);
        let is_here = is_forced
            || self
                .hub
                .resident
                .holds(self.id, file, range, Instant::now(), |window| {
                    let end = window.end.min(map.len());
                    map::is_resident(handle.fd(), &map, window.start, end - window.start)
                });
        Ok(is_here.then_some(map))
    }

    /// Reads every stretch into memory of its own.
    async fn copy_run(
        &self,
        place: RunPlace,
        stretches: &[Stretch],
        via: Via,
        may_be_direct: bool,
    ) -> Result<Sources, DiskError> {
        let mut sources = Sources::default();
        for Stretch { span, target, .. } in stretches {
            let length = usize::try_from(span.length).unwrap_or(usize::MAX);
            let Some((file, offset)) = *target else {
                if via == Via::Engine {
                    sources.zeros(span.length);
                    continue;
                }
                let mut zeros = self.hub.pool.alloc_or_heap(length);
                zeros.as_mut_slice().fill(0);
                sources.segment(zeros, 0, span.length);
                continue;
            };
            let is_direct = may_be_direct && self.hub.recent.is_first(self.id, file, offset);
            if is_direct && let Some(handle) = self.direct_reader(file).await {
                self.read_direct(&handle, file, offset, span.length, &mut sources)
                    .await?;
                continue;
            }
            let buffer = self.hub.pool.alloc_or_heap(length);
            let (read, buffer) = self
                .read_range(place.piece, span.stream_offset, 0..length, buffer)
                .await;
            read?;
            sources.segment(buffer, 0, span.length);
        }
        Ok(sources)
    }

    /// Reads the pages that hold the range past the page cache.
    async fn read_direct(
        &self,
        handle: &File,
        file: usize,
        offset: u64,
        length: u64,
        sources: &mut Sources,
    ) -> Result<(), DiskError> {
        let page = PAGE_BYTES as u64;
        let first = offset / page * page;
        let into = (offset - first) as usize;
        let wanted = into + usize::try_from(length).unwrap_or(usize::MAX);
        let pages = wanted.next_multiple_of(PAGE_BYTES);
        let buffer = self.hub.pool.alloc_or_heap(pages);
        let _permit = self.lane.begin().await;
        let (read, buffer) = handle.read_at(buffer, 0..pages, first).await;
        let failed = match read {
            // The last page of a file may be short.
            Ok(got) if got >= wanted => {
                sources.segment(buffer, into, length);
                return Ok(());
            }
            Ok(_) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        };
        self.hub.budget.close(self.id, file);
        Err(self.error(DiskOp::Read, file, &failed))
    }
}

/// What the stretches take when they are read, pages around them included.
fn memory_bytes(stretches: &[Stretch], may_be_direct: bool) -> usize {
    let bytes = stretches.iter().map(|Stretch { span, target, .. }| {
        let length = usize::try_from(span.length).unwrap_or(usize::MAX);
        let into = target.map_or(0, |(_, offset)| offset % PAGE_BYTES as u64) as usize;
        Pool::capacity_of(if may_be_direct { into + length } else { length })
    });
    bytes.sum()
}

fn map_run(run: &UploadRun, stretches: Vec<Stretch>) -> Outgoing {
    let mut sources = Sources::default();
    for Stretch { span, target, map } in stretches {
        match (target, map) {
            (Some((_, offset)), Some(map)) => sources.mapped(map, offset, span.length),
            _ => sources.zeros(span.length),
        }
    }
    sources.shape(run)
}

/// Stretches of files that were read past the page cache lately.
pub(super) struct Recent {
    /// By hash: a later stretch takes the place of an earlier one.
    seen: RefCell<Vec<u64>>,
}

impl Recent {
    /// Stretches remembered: 16 GiB of reads at most, in 512 KiB.
    const STRETCHES: usize = 65_536;
    /// Bytes of one stretch.
    const STRETCH_BYTES: u64 = 256 * 1024;

    pub fn new() -> Recent {
        Recent {
            seen: RefCell::default(),
        }
    }

    /// Whether this part of a file was not asked for lately; it counts as asked for from now on.
    pub fn is_first(&self, torrent: u64, file: usize, offset: u64) -> bool {
        let mut seen = self.seen.borrow_mut();
        if seen.is_empty() {
            seen.resize(Self::STRETCHES, 0);
        }
        let key = mix(torrent, file as u64, offset / Self::STRETCH_BYTES);
        let place = &mut seen[(key as usize) % Self::STRETCHES];
        std::mem::replace(place, key) != key
    }
}

/// Stretches of files that lay in the page cache a moment ago: asking for each run costs a system call.
pub(super) struct Residency {
    /// By hash: a later stretch takes the place of an earlier one.
    known: RefCell<Vec<Option<(u64, Instant)>>>,
}

impl Residency {
    /// Stretches remembered.
    const STRETCHES: usize = 4096;
    /// Bytes of one stretch.
    const STRETCH_BYTES: u64 = 1 << 20;
    /// For so long what was asked for is taken to stay: it was used just now, so other pages are dropped before.
    const FOR: Duration = Duration::from_millis(250);

    pub fn new() -> Residency {
        Residency {
            known: RefCell::default(),
        }
    }

    /// Whether the range is resident. `ask` is asked for the whole stretch around it, then for the range alone.
    pub fn holds(
        &self,
        torrent: u64,
        file: usize,
        range: Range<u64>,
        now: Instant,
        ask: impl Fn(Range<u64>) -> bool,
    ) -> bool {
        let number = range.start / Self::STRETCH_BYTES;
        let start = number * Self::STRETCH_BYTES;
        let stretch = start..start + Self::STRETCH_BYTES;
        if range.end > stretch.end {
            return ask(range);
        }
        let key = mix(torrent, file as u64, number);
        let place = (key as usize) % Self::STRETCHES;
        let mut known = self.known.borrow_mut();
        if known.is_empty() {
            known.resize(Self::STRETCHES, None);
        }
        if known[place].is_some_and(|(of, at)| of == key && now - at < Self::FOR) {
            return true;
        }
        if ask(stretch) {
            known[place] = Some((key, now));
            return true;
        }
        ask(range)
    }
}

/// A hash of the three, never 0 (the empty place).
fn mix(a: u64, b: u64, c: u64) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64;
    for part in [a, b, c] {
        hash = (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^= hash >> 32;
    }
    hash | 1 << 63
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_asked_for_once_a_moment_and_stretch() {
        let (residency, start) = (Residency::new(), Instant::now());
        let asked = RefCell::new(Vec::new());
        // The second MiB of the file is resident as far as 1.5 MiB.
        let resident = (1 << 20)..(3 << 19);
        let holds = |range: Range<u64>, ms| {
            let now = start + Duration::from_millis(ms);
            residency.holds(7, 3, range, now, |stretch| {
                asked.borrow_mut().push(stretch.clone());
                stretch.start < 1 << 20
                    || resident.start <= stretch.start && stretch.end <= resident.end
            })
        };
        assert!(holds(0..65_536, 0));
        assert!(holds(65_536..1 << 20, 249));
        let once = std::slice::from_ref(&(0..1 << 20));
        assert_eq!(*asked.borrow(), once, "the second was known");
        assert!(holds(0..65_536, 250), "asked again");
        assert!(
            holds(1 << 20..(1 << 20) + 65_536, 250),
            "a part of a stretch that is not resident whole"
        );
        assert!(!holds((3 << 19)..(3 << 19) + 1, 250));
        assert!(
            !holds((3 << 19) - 1..(2 << 20) + 1, 250),
            "over the end of a stretch"
        );
        assert_eq!(asked.borrow().len(), 7);
    }

    #[test]
    fn a_stretch_is_new_once_and_others_do_not_disturb_it() {
        let recent = Recent::new();
        assert!(recent.is_first(0, 0, 0));
        assert!(!recent.is_first(0, 0, 100_000), "the same stretch");
        assert!(recent.is_first(0, 0, 300_000));
        assert!(recent.is_first(0, 1, 0));
        assert!(recent.is_first(1, 0, 0));
        assert!(!recent.is_first(0, 0, 0));
    }
}
