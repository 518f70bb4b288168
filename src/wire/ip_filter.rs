//! Lists of addresses to stay away from: the texts of PeerGuardian and eMule, and plain ranges, as sorted ranges. Layer 1.
//!
//! A list is read in parts of any size. Lines that are none of the known forms are counted and passed over.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges taken from one list: those that go round have up to a million. Eight bytes each, 32 of IPv6.
pub const RANGES_MAX: usize = 4_000_000;
/// Longest line read; descriptions are cut long before.
const LINE_BYTES_MAX: usize = 4_096;
/// Of eMule's levels, those below are blocked.
const LEVEL_ALLOWED: u32 = 128;

/// Addresses that are blocked.
///
/// Invariant: both lists are sorted, and neither ranges overlap nor do they touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpFilter {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

impl IpFilter {
    /// True when the address lies in one of the ranges. IPv4 is judged as IPv4 however it is written.
    pub fn is_blocked(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => has(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => has(&self.v6, ip.to_bits()),
        }
    }

    /// Ranges of both families, after those that touch became one.
    pub fn range_count(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

fn has<T: Ord + Copy>(ranges: &[(T, T)], ip: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= ip);
    let before = behind.checked_sub(1).and_then(|at| ranges.get(at));
    before.is_some_and(|(_, last)| ip <= *last)
}

/// What a list holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpList {
    pub filter: IpFilter,
    /// Lines that were understood, those that allow something included; comments and empty ones are neither.
    pub good_lines: u64,
    pub bad_lines: u64,
    /// The first bad one, counted from 1.
    pub first_bad_line: Option<u64>,
}

/// Why a list is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpListError {
    #[error("more than {RANGES_MAX} ranges")]
    TooManyRanges,
}

/// Reads a list.
#[derive(Debug, Default)]
pub struct Reader {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    list: IpList,
    /// The line under way, at most [`LINE_BYTES_MAX`].
    line: Vec<u8>,
    is_long: bool,
    line_number: u64,
}

impl Reader {
    /// Takes the next bytes of it.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), IpListError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = bytes.split_at(end);
            self.gather(head);
            self.end_line()?;
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.gather(bytes);
        Ok(())
    }

    /// The list is over.
    ///
    /// # Errors
    /// There is no room for its last line.
    pub fn finish(mut self) -> Result<IpList, IpListError> {
        if !self.line.is_empty() || self.is_long {
            self.end_line()?;
        }
        let v4_step = |last: u32| last.checked_add(1);
        let v6_step = |last: u128| last.checked_add(1);
        self.list.filter = IpFilter {
            v4: merged(self.v4, v4_step),
            v6: merged(self.v6, v6_step),
        };
        Ok(self.list)
    }

    fn gather(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        self.is_long |= bytes.len() > room;
        self.line.extend(bytes.iter().take(room));
    }

    fn end_line(&mut self) -> Result<(), IpListError> {
        self.line_number += 1;
        let line = std::mem::take(&mut self.line);
        let is_long = std::mem::take(&mut self.is_long);
        let parsed = match self.line_number {
            1 => parse(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line)),
            _ => parse(&line),
        };
        match parsed {
            Line::Nothing => return Ok(()),
            _ if is_long => self.is_bad(),
            Line::Bad => self.is_bad(),
            Line::Allowed => self.list.good_lines += 1,
            Line::Blocked(range) => {
                if self.v4.len() + self.v6.len() >= RANGES_MAX {
                    return Err(IpListError::TooManyRanges);
                }
                self.list.good_lines += 1;
                match range {
                    Range::V4(first, last) => self.v4.push((first, last)),
                    Range::V6(first, last) => self.v6.push((first, last)),
                }
            }
        }
        // The next one needs no new memory.
        self.line = line;
        self.line.clear();
        Ok(())
    }

    fn is_bad(&mut self) {
        self.list.bad_lines += 1;
        self.list.first_bad_line.get_or_insert(self.line_number);
    }
}

/// Sorts ranges and makes one of those that overlap or touch.
fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>, next: impl Fn(T) -> Option<T>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut kept: usize = 0;
    for at in 0..ranges.len() {
        let (first, last) = ranges[at];
        let before = kept.checked_sub(1).and_then(|index| ranges.get_mut(index));
        match before {
            Some((_, end)) if next(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => {
                ranges[kept] = (first, last);
                kept += 1;
            }
        }
    }
    ranges.truncate(kept);
    ranges.shrink_to_fit();
    ranges
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

impl Range {
    /// Both ends included; `None` when they are of two families or in the wrong order.
    fn new(first: IpAddr, last: IpAddr) -> Option<Range> {
        match (first.to_canonical(), last.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
                Some(Range::V4(first.to_bits(), last.to_bits()))
            }
            (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => {
                Some(Range::V6(first.to_bits(), last.to_bits()))
            }
            _ => None,
        }
    }

    /// All addresses that begin with the same bits.
    fn of_prefix(ip: IpAddr, bits: u32) -> Option<Range> {
        match ip {
            IpAddr::V4(ip) if bits <= 32 => {
                let rest = u32::MAX.checked_shr(bits).unwrap_or(0);
                Some(Range::V4(ip.to_bits() & !rest, ip.to_bits() | rest))
            }
            IpAddr::V6(ip) if bits <= 128 => {
                let rest = u128::MAX.checked_shr(bits).unwrap_or(0);
                let (first, last) = (ip.to_bits() & !rest, ip.to_bits() | rest);
                Range::new(Ipv6Addr::from(first).into(), Ipv6Addr::from(last).into())
            }
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Nothing,
    Blocked(Range),
    Allowed,
    Bad,
}

/// Reads one line without its end.
fn parse(line: &[u8]) -> Line {
    let line = line.trim_ascii();
    if line.is_empty()
        || line.starts_with(b"#")
        || line.starts_with(b"//")
        || line.starts_with(b";")
    {
        return Line::Nothing;
    }
    if let Some(line) = of_emule(line) {
        return line;
    }
    let bare = line.split(|byte| *byte == b'#').next().unwrap_or(line);
    match plain(bare).or_else(|| of_peerguardian(line)) {
        Some(range) => Line::Blocked(range),
        None => Line::Bad,
    }
}

/// `first - last , level , description`; `None` when it is no such line.
fn of_emule(line: &[u8]) -> Option<Line> {
    let mut parts = line.splitn(3, |byte| *byte == b',');
    let range = between(parts.next()?)?;
    let level: u32 = text(parts.next()?)?.parse().ok()?;
    Some(match level < LEVEL_ALLOWED {
        true => Line::Blocked(range),
        false => Line::Allowed,
    })
}

/// `first-last`, `address/bits` or `address`.
fn plain(bytes: &[u8]) -> Option<Range> {
    let bytes = bytes.trim_ascii();
    if let Some(at) = bytes.iter().position(|byte| *byte == b'/') {
        let (ip, bits) = bytes.split_at(at);
        let bits = text(bits.get(1..)?)?;
        let is_number = !bits.is_empty() && bits.bytes().all(|digit| digit.is_ascii_digit());
        return Range::of_prefix(address(ip)?, bits.parse().ok().filter(|_| is_number)?);
    }
    match address(bytes) {
        Some(ip) => Range::new(ip, ip),
        None => between(bytes),
    }
}

/// `name:first-last`, where the name may hold anything. Of two readings the one with the shorter name counts.
fn of_peerguardian(line: &[u8]) -> Option<Range> {
    let at = line.iter().rposition(|byte| *byte == b'-')?;
    let (before, last) = (line.get(..at)?, address(line.get(at + 1..)?)?);
    let colons = before.iter().enumerate().filter(|(_, byte)| **byte == b':');
    for (colon, _) in colons {
        if let Some(first) = before.get(colon + 1..).and_then(address) {
            return Range::new(first, last);
        }
    }
    None
}

/// `first-last`.
fn between(bytes: &[u8]) -> Option<Range> {
    let at = bytes.iter().position(|byte| *byte == b'-')?;
    Range::new(address(bytes.get(..at)?)?, address(bytes.get(at + 1..)?)?)
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.trim_ascii()).ok()
}

/// One address. Numbers of IPv4 may begin with zeros, as eMule writes them; they are decimal all the same.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let text = text(bytes)?;
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let is_number = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts
        .next()
        .is_none()
        .then(|| Ipv4Addr::from(octets).into())
}

#[cfg(test)]
mod tests;
