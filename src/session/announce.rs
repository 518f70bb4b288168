//! Stub.
use std::rc::Rc;
use std::time::Duration;
use super::driver::Driver;
use super::config::TorrentConfig;
use crate::storage::resume::Counters;
#[derive(Default)]
pub struct AnnounceHandle {}
impl AnnounceHandle {
    pub fn want_peers(&self) {}
    pub fn completed(&self) {}
    pub async fn stop(&self, _limit: Duration) {}
}
pub fn start(_driver: &Rc<Driver>, _config: &TorrentConfig, _counters: &Counters, _is_complete: bool) {}
