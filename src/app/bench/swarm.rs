//! Several load processes as one: the leechers of a run. Layer 7.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::args::{Order, Veiled};
use super::load::handle::{Load, Ready};
use super::load::{Connection, Content, Job, LeechJob, Report, Role};
use super::place::Net;
use crate::uring::limits;

/// Files a load process needs besides its connections.
const OTHER_FILES: u64 = 64;

/// What the leechers of a run do.
#[derive(Clone, Debug)]
pub struct Orders {
    pub addr: SocketAddr,
    pub connections: u32,
    /// Numbers below this belong to others.
    pub first_number: u32,
    pub role: Role,
    pub depth: u32,
    pub order: Order,
    pub run_blocks: u32,
    pub once: bool,
    pub encryption: Veiled,
    pub patience: Duration,
}

/// Leechers in as many processes as their cores and the limit of open files ask for.
pub struct Leechers {
    loads: Vec<Load>,
    patience: Duration,
}

impl Leechers {
    /// Starts them.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(
        orders: &Orders,
        contents: &[Content],
        net: Net,
        cores: &[usize],
    ) -> io::Result<Leechers> {
        let per_process = limits::nofile().1.saturating_sub(OTHER_FILES).max(1);
        let needed = u64::from(orders.connections).div_ceil(per_process);
        let useful = (cores.len() as u64).min(orders.connections.into());
        let processes = needed.max(useful).max(1) as u32;
        let mut loads = Vec::new();
        for process in 0..processes {
            let numbers = (process..orders.connections).step_by(processes as usize);
            let torrents = contents.len().max(1) as u32;
            let connection = |number: u32| Connection {
                from: SocketAddr::from((net.peer(orders.first_number + number, false), 0)),
                torrent: (number % torrents) as usize,
                number: number / torrents,
                of: orders.connections.div_ceil(torrents),
                id: orders.first_number + number,
            };
            let job = LeechJob {
                addr: orders.addr,
                torrents: contents.to_vec(),
                connections: numbers.map(connection).collect(),
                role: orders.role,
                depth: orders.depth,
                order: orders.order,
                run_blocks: orders.run_blocks,
                once: orders.once,
                encryption: orders.encryption,
                seed: 1,
                share: (process, processes),
                patience_s: orders.patience.as_secs(),
            };
            // Each on a core of its own when there are enough.
            let own: Vec<usize> = cores
                .iter()
                .copied()
                .skip(process as usize)
                .take(1)
                .collect();
            let place = match own.is_empty() || processes as usize > cores.len() {
                true => cores,
                false => &own,
            };
            loads.push(Load::start(&Job::Leech(job), place)?);
        }
        Ok(Leechers {
            loads,
            patience: orders.patience,
        })
    }

    /// Waits until they are served.
    ///
    /// # Errors
    /// A process fails or takes far too long.
    pub fn ready(&mut self) -> io::Result<Ready> {
        let limit = self.patience + Duration::from_secs(10);
        let mut all = Ready {
            served: 0,
            connected: 0,
            listening: Vec::new(),
            checked_blocks: 0,
        };
        for load in &mut self.loads {
            let ready = load.ready(limit)?;
            all.served += ready.served;
            all.connected += ready.connected;
            all.checked_blocks += ready.checked_blocks;
        }
        Ok(all)
    }

    /// Has all count from now on.
    pub fn measure(&mut self) -> io::Result<()> {
        self.loads.iter_mut().try_for_each(Load::measure)
    }

    /// What they counted.
    pub fn report(&mut self) -> io::Result<Report> {
        let mut all = Report::default();
        for load in &mut self.loads {
            all.merge(&load.report()?);
        }
        Ok(all)
    }

    /// Whether nothing is left to ask for.
    pub fn are_exhausted(&mut self) -> io::Result<bool> {
        self.loads.iter_mut().try_for_each(Load::look)?;
        Ok(self.loads.iter().all(|load| load.exhausted.is_some()))
    }
}
