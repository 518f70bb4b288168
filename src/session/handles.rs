//! How the limit of open files is shared out, so that neither peers nor files can take what the other needs
//! (HOSTILE.md L5). Layer 5. Pure.

/// What the program itself has open: ring, sockets that listen, threads' wake-ups, logs, folders, with some to spare.
const RESERVED: u64 = 32;
/// Ring operations under way on one device at once: keeps an NVMe drive busy and leaves a slow disk no more than
/// 16 MiB of the pool.
pub const OPERATIONS_MAX: usize = 64;
/// Inbound connections in handshake at once; further ones are closed at once (HOSTILE.md H4).
const PENDING_MAX: u64 = 512;

/// What a running torrent has open beside its files: its folder, and what locks its root.
const OF_A_RUN: u64 = 3;
/// Torrents that may run at once, however few handles there are.
const RUNS_MIN: u64 = 8;

/// Connections to web seeds at once: a few torrents' worth.
const WEB_MAX: u64 = 64;

/// The shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handles {
    /// Files kept open between operations.
    pub files: usize,
    /// Operations under way on one device; each may have two files open.
    pub operations: usize,
    /// Connections, those being dialed included.
    pub connections: u32,
    /// Connections to web seeds.
    pub web: usize,
    /// Inbound connections whose handshake is not done.
    pub pending: u32,
    /// Torrents of a daemon that run at once; others wait, and seeds sleep.
    pub runs: usize,
}

impl Handles {
    /// Shares out a limit (`RLIMIT_NOFILE`): a quarter to files, a sixth to what runs, an eighth each to operations and
    /// handshakes as far as they can use it, and the rest to connections, which is nearly a third of it or more.
    pub fn divide(limit: u64) -> Handles {
        let free = limit.saturating_sub(RESERVED).max(8);
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let files = free / 4;
        let operations = (free / 16).clamp(2, OPERATIONS_MAX as u64);
        let pending = (free / 8).clamp(1, PENDING_MAX);
        let web = (free / 32).clamp(1, WEB_MAX);
        let runs = free / 6 / OF_A_RUN;
        let connections =
            free.saturating_sub(files + 2 * operations + pending + web + OF_A_RUN * runs);
        Handles {
            files: usize::try_from(files).unwrap_or(usize::MAX),
            operations: operations as usize,
            connections: narrow(connections.max(2)),
            web: web as usize,
            pending: narrow(pending),
            runs: usize::try_from(runs.max(RUNS_MIN)).unwrap_or(usize::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_stay_within_the_limit() {
        for limit in [64, 100, 256, 1_024, 4_096, 1 << 20] {
            let shares = Handles::divide(limit);
            let open = shares.files as u64
                + 2 * shares.operations as u64
                + u64::from(shares.connections)
                + shares.web as u64
                + u64::from(shares.pending)
                + OF_A_RUN
                    * if shares.runs as u64 > RUNS_MIN {
                        shares.runs as u64
                    } else {
                        0
                    };
            assert!(open + RESERVED <= limit, "{limit}: {shares:?}");
        }
    }

    #[test]
    fn what_files_and_handshakes_cannot_use_is_for_connections() {
        assert_eq!(Handles::divide(1_024).connections, 300);
        assert!(Handles::divide(20_000).connections > 10_000);
        assert_eq!(Handles::divide(20_000).runs, 1_109);
    }

    #[test]
    fn the_smallest_limit_leaves_a_little_of_everything() {
        let shares = Handles::divide(0);
        assert!(shares.files > 0 && shares.connections > 1 && shares.pending > 0);
    }
}
