//! One torrent among drawn peers, in virtual time. `world` holds the drawings; the other files a subject each.

mod conduct;
mod exchange;
mod greet;
mod holepunch;
mod leaves;
mod memory;
mod peers;
mod poison;
mod requests;
mod selection;
mod sharing;
mod sift;
mod silence;
mod super_seed;
mod uploads;
mod web;
mod world;
