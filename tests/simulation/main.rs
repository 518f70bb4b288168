//! The deterministic swarm simulation: many real `swarm::Torrent`s in virtual time, over a seeded network and seeded
//! disks, with real wire bytes between them. No sleeps, sockets or threads; one seed repeats a whole run.
//!
//! `GYRE_SIM_SEED=n` repeats one seed of every scenario. A quick run takes 200 seeds of the scenario in which everything
//! goes wrong, and fewer of the others; `GYRE_SIM_SEEDS=n` takes n seeds of that one, and of the others in proportion.
//! `GYRE_SIM_TRACE=1` prints every event. Payload is not moved: a block is a tag, good or not.

mod disk;
mod driver;
mod faults;
mod first_seeder;
mod leaves;
mod links;
mod net;
mod node;
mod observer;
mod outage;
mod plan;
mod reader;
mod scenarios;
mod spec;
mod world;
