//! Whether there is a way out of this machine: with `--bind`, what everything goes through may be gone for a while.
//! Layer 5. Only the state; who looks and what follows is in `reach.rs`.

use std::cell::Cell;

use tokio::sync::Notify;

/// Open from the start; without `--bind` it never shuts.
#[derive(Default)]
pub struct Way {
    is_shut: Cell<bool>,
    changed: Notify,
}

impl Way {
    /// Whether anything that is sent has a chance.
    pub fn is_open(&self) -> bool {
        !self.is_shut.get()
    }

    /// Completes once it is open.
    pub async fn opened(&self) {
        self.becomes(true).await;
    }

    /// Completes once it is shut.
    pub async fn shut(&self) {
        self.becomes(false).await;
    }

    /// It has opened, or it has shut.
    pub fn set_open(&self, is_open: bool) {
        self.is_shut.set(!is_open);
        self.changed.notify_waiters();
    }

    async fn becomes(&self, is_open: bool) {
        loop {
            let changed = self.changed.notified();
            if self.is_open() == is_open {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_waits_hears_of_each_change() {
        let way = Way::default();
        assert!(way.is_open());
        way.opened().await;
        way.set_open(false);
        way.shut().await;
        let opens = async { way.set_open(true) };
        tokio::join!(way.opened(), opens);
        assert!(way.is_open());
    }
}
