//! The search for metadata under virtual time: a real `MetadataSwarm` among peers that are honest, lie, reject, stall or
//! have nothing, with real wire bytes between them. No sleeps, sockets or threads; one seed repeats a run, and a failure
//! prints it. `GYRE_SIM_SEEDS=n` takes n seeds of each scenario.

mod scenarios;
mod world;
