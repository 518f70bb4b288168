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
    pub is_coop_taskrun: bool,
    /// SINGLE_ISSUER is accepted (Linux 6.0).
    pub is_single_issuer: bool,
}

/// What was found on this machine.
#[derive(Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel_release: String,
    /// Major and minor number of the release.
    pub kernel_version: Option<(u32, u32)>,
    /// `kernel.io_uring_disabled`, where the kernel has it.
    pub io_uring_disabled: Option<u8>,
    /// The trial ring, or why there is none.
    pub ring: Result<RingFacts, ring::RingError>,
    /// Locked memory allowed.
    pub memlock: Limit,
    /// Soft and hard limit of open files.
    pub nofile: (u64, u64),
    /// Congestion control in force for new TCP sockets.
    pub congestion: Option<String>,
    /// Upper bounds of SO_RCVBUF and SO_SNDBUF in bytes (net.core.rmem_max, wmem_max).
    pub socket_buffer_bytes_max: (Option<u64>, Option<u64>),
}

/// Looks at this machine.
pub fn facts() -> Facts {
    let kernel_release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    Facts {
        kernel_version: version(&kernel_release),
        kernel_release,
        io_uring_disabled: ring::disabled_setting(),
        ring: ring_facts().map_err(ring::RingError::from_io),
        memlock: limits::memlock(),
        nofile: limits::nofile(),
        congestion: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        socket_buffer_bytes_max: (
            read("/proc/sys/net/core/rmem_max").and_then(|s| s.parse().ok()),
            read("/proc/sys/net/core/wmem_max").and_then(|s| s.parse().ok()),
        ),
    }
}

fn ring_facts() -> io::Result<RingFacts> {
    let accepts = |builder: &io_uring::Builder| -> bool {
        let ring: io::Result<IoUring> = builder.build(8);
        ring.is_ok()
    };
    let trial = IoUring::new(8)?;
    let mut probe = Probe::new();
    trial.submitter().register_probe(&mut probe)?;
    let opcodes = [
        ("RECV", true, opcode::Recv::CODE),
        ("SEND", true, opcode::Send::CODE),
        ("SENDMSG", true, opcode::SendMsg::CODE),
        ("RECVMSG", true, opcode::RecvMsg::CODE),
        ("POLL_ADD", true, opcode::PollAdd::CODE),
        ("READ", true, opcode::Read::CODE),
        ("WRITE", true, opcode::Write::CODE),
        ("READ_FIXED", true, opcode::ReadFixed::CODE),
        ("WRITE_FIXED", true, opcode::WriteFixed::CODE),
        ("FSYNC", true, opcode::Fsync::CODE),
        ("FALLOCATE", true, opcode::Fallocate::CODE),
        ("ASYNC_CANCEL", true, opcode::AsyncCancel::CODE),
    ]
    .map(|(name, is_required, code)| Opcode {
        name,
        is_required,
        is_supported: probe.is_supported(code),
    });
    let parameters = trial.params();
    Ok(RingFacts {
        opcodes: opcodes.to_vec(),
        is_nodrop: parameters.is_feature_nodrop(),
        is_fast_poll: parameters.is_feature_fast_poll(),
        is_coop_taskrun: accepts(tokio_uring::uring_builder().setup_coop_taskrun()),
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
