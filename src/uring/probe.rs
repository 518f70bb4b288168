//! What this kernel offers, as plain data for `gyre doctor` (layer 4).

use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::limits::{self, Limit};
use super::ring;

/// An operation of the ring and whether the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode {
    /// Name as in io_uring_enter(2), without the prefix.
    pub name: &'static str,
    /// Gyre cannot run without it.
    pub is_required: bool,
    /// The kernel has it.
    pub is_supported: bool,
}

/// What a trial ring showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingFacts {
    /// The operations Gyre uses.
    pub opcodes: Vec<Opcode>,
    /// Completions are never dropped (IORING_FEAT_NODROP).
    pub is_nodrop: bool,
    /// Sockets wait without worker threads (IORING_FEAT_FAST_POLL).
    pub is_fast_poll: bool,
    /// COOP_TASKRUN is accepted (Linux 5.19).
    pub is_coop_taskrun: accepts(tokio_uring::uring_builder().setup_coop_taskrun()),
        is_single_issuer: accepts(tokio_uring::uring_builder().setup_single_issuer()),
    })
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_of_distributions_are_understood() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("5.15-rc1"), Some((5, 15)));
        assert_eq!(version(""), None);
    }

    #[test]
    fn this_machine_has_every_required_operation() {
        let ring = facts().ring.unwrap();
        assert!(
            ring.opcodes
                .iter()
                .all(|o| o.is_supported || !o.is_required)
        );
    }
}
