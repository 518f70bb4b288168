//! Who may download from us: tit-for-tat while leeching, a fair rota while seeding (BEP 3, "Choking"). Layer 2.
//!
//! Holds the slot count, the optimistic slot and the round's clock. Does not hold peers: each call brings their figures.

use std::time::Duration;

use super::PeerKey;
use crate::base::{Now, Rng};

/// A full round ranks everybody; BEP 3 asks for 10 s so that TCP has time to reach its rate.
const ROUND: Duration = Duration::from_secs(10);
/// An unchoked peer keeps its slot this long: a choke before that wastes what is on the way.
const SLOT_HELD_MIN: Duration = Duration::from_secs(10);
/// The optimistic slot moves on every third round (BEP 3).
const OPTIMISTIC_TURN: Duration = Duration::from_secs(30);
/// A peer counts as new, and thrice as likely to get the optimistic slot, for this long.
const NEW_PEER: Duration = Duration::from_secs(60);
/// Chances of a new peer against an old one (BEP 3: "three times as likely").
const NEW_PEER_WEIGHT: u64 = 3;
/// While peers wait for automatic slots, the slot count is looked at this often: it must not take a round to find
/// out that the line is fast.
const GROWTH_STEP: Duration = Duration::from_secs(1);
/// Fewer slots than this make tit-for-tat a lottery.
const AUTO_SLOTS_MIN: u32 = 4;
/// More slots than this only split a fast line into ever more sockets.
const AUTO_SLOTS_MAX: u32 = 100;
/// A peer must beat the holder of a slot by an eighth: rates are noisy and every change costs both sides.
const INCUMBENT_BONUS_DIVISOR: u64 = 8;
/// A turn of the seeder's rota ends after this much time, once [`TURN_BYTES`] went out …
const TURN_MIN: Duration = Duration::from_secs(60);
/// … or after this much time whatever went out, so that slow readers do not keep their slots for good.
const TURN_MAX: Duration = Duration::from_secs(180);
/// An unchoked peer that takes next to nothing for this long leaves its automatic slot to others as well: an honest one
/// asks within a round trip.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// However many of those there are; each costs a queue.
const UNCHOKED_MAX: usize = 2_000;
/// One that takes nothing for this long comes after everybody who waits (HOSTILE.md C6).
const IDLE_TURN_MAX: Duration = Duration::from_secs(15);
/// What one turn of the seeder's rota is worth.
const TURN_BYTES: u64 = 16 * 1024 * 1024;

/// How many peers may be unchoked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadSlots {
    /// As many as the upload rate carries, at least 4.
    Auto,
    /// Exactly this many; 0 never uploads.
    Fixed(u32),
}

/// Who gets the slots of a seeder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeedChoker {
    /// Everybody in turn.
    RoundRobin,
    /// Those who take the fastest, plus one optimistic slot.
    FastestUpload,
}

/// How a [`Choker`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChokerConfig {
    pub slots: UploadSlots,
    pub seed_choker: SeedChoker,
}

/// What the choker must know of one connected peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChokeInput {
    pub peer: PeerKey,
    /// It wants something that we have (`peer_interested`).
    pub is_interested: bool,
    /// We are not choking it now.
    pub is_unchoked: bool,
    /// Payload it sends us.
    pub down_bytes_per_s: u64,
    /// Payload we send it.
    pub up_bytes_per_s: u64,
    /// When its last turn began; [`Now::ZERO`] if it never had one.
    pub unchoked_at: Now,
    /// Payload sent to it in the turn that began then.
    pub sent_since_unchoke_bytes: u64,
    /// When it last made use of being unchoked; [`Now::ZERO`] if it never did.
    pub used_at: Now,
    /// It owes us blocks and sends none.
    pub is_snubbed: bool,
    pub connected_at: Now,
}

/// One decision: the peer is to be unchoked or choked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChokeChange {
    pub peer: PeerKey,
    pub unchoke: bool,
}

/// The choker of one torrent.
#[derive(Clone, Debug)]
pub struct Choker {
    config: ChokerConfig,
    slots: u32,
    /// No more than these, whoever holds some.
    slots_max: Option<u32>,
    next_round: Now,
    optimistic: Option<PeerKey>,
    optimistic_until: Now,
    deadline: Option<Now>,
}

impl Choker {
    /// A choker that has unchoked nobody; its first call is a full round.
    pub fn new(config: ChokerConfig) -> Self {
        Choker {
            config,
            slots: initial_slots(config.slots),
            slots_max: None,
            next_round: Now::ZERO,
            optimistic: None,
            optimistic_until: Now::ZERO,
            deadline: None,
        }
    }

    /// Changes the rules at run time; the next call is a full round.
    pub fn configure(&mut self, config: ChokerConfig) {
        if config.slots != self.config.slots {
            self.slots = initial_slots(config.slots);
        }
        self.config = config;
        self.next_round = Now::ZERO;
    }

    /// Puts a lid on the slots, or lifts it; false when it is that already. With fewer than before the next call is a full
    /// round, in which nobody keeps a slot above it.
    pub fn set_slots_max(&mut self, slots_max: Option<u32>) -> bool {
        if self.slots_max == slots_max {
            return false;
        }
        let most = |lid: Option<u32>| lid.unwrap_or(u32::MAX);
        if most(slots_max) < most(self.slots_max) {
            self.next_round = Now::ZERO;
        }
        self.slots_max = slots_max;
        true
    }

    /// The lid on the slots.
    pub const fn slots_max(&self) -> Option<u32> {
        self.slots_max
    }

    /// Peers that may be unchoked at once, the optimistic one included.
    pub const fn slots(&self) -> u32 {
        match self.slots_max {
            Some(most) if most < self.slots => most,
            _ => self.slots,
        }
    }

    /// True when one more peer could be unchoked at once, given how many interested peers are unchoked now. Then a
    /// newly interested peer need not wait: call [`Choker::rechoke`].
    pub const fn has_free_slot(&self, unchoked_interested_count: u32) -> bool {
        unchoked_interested_count < self.slots()
    }

    /// Somebody waits for a slot: automatic ones are looked at soon.
    pub fn on_waiting(&mut self, now: Now) {
        if self.config.slots == UploadSlots::Auto {
            let soon = now + GROWTH_STEP;
            self.deadline = Some(self.deadline.map_or(soon, |at| at.min(soon)));
        }
    }

    /// Slots for now: those of unchoked peers that take nothing are had by others too, while slots are automatic, and
    /// by as many again, so that a crowd of such peers is got past in a few steps.
    fn slots_now(&self, now: Now, peers: &[&ChokeInput]) -> usize {
        let slots = self.slots as usize;
        let most = self.slots_max.map_or(usize::MAX, |most| most as usize);
        if self.config.slots != UploadSlots::Auto {
            return slots.min(most);
        }
        let is_idle = |p: &&&ChokeInput| idle_for(p, now) >= IDLE_AFTER;
        let idle_count = peers.iter().filter(is_idle).count();
        (slots + 2 * idle_count).min(UNCHOKED_MAX).min(most)
    }

    /// When [`Choker::rechoke`] is due; `None` while the last call saw no interested peer.
    pub const fn next_deadline(&self) -> Option<Now> {
        self.deadline
    }

    /// Decides who is unchoked. May be called at any time: a full round happens when one is due, otherwise only free
    /// slots are filled. `peers` are all connected peers in any stable order.
    pub fn rechoke(
        &mut self,
        now: Now,
        is_seeding: bool,
        peers: &[ChokeInput],
        total_up_bytes_per_s: u64,
        limit_up_bytes_per_s: Option<u64>,
        rng: &mut Rng,
    ) -> Vec<ChokeChange> {
        let is_round = now >= self.next_round;
        self.size_slots(is_round, total_up_bytes_per_s, limit_up_bytes_per_s);
        let mut ranked: Vec<&ChokeInput> = peers.iter().filter(|p| p.is_interested).collect();
        self.rank(now, is_seeding, &mut ranked);
        let changes = if is_round {
            self.next_round = now + ROUND;
            self.full_round(now, is_seeding, peers, &ranked, rng)
        } else {
            self.fill(now, peers, &ranked)
        };
        let unchoked_count = ranked.iter().filter(|p| p.is_unchoked).count();
        let grown = changes.iter().filter(|change| change.unchoke).count();
        let is_short = ranked.len() > unchoked_count + grown;
        self.deadline = (!ranked.is_empty()).then_some(self.next_round);
        let may_grow = self.slots < AUTO_SLOTS_MAX && limit_up_bytes_per_s.is_none();
        let is_any_idle = || ranked.iter().any(|p| !idle_for(p, now).is_zero());
        if is_short && self.config.slots == UploadSlots::Auto && (may_grow || is_any_idle()) {
            self.deadline = Some((now + GROWTH_STEP).min(self.next_round));
        }
        changes
    }

    /// Slots grow at any time and shrink only in a full round, by at most a quarter: one slow second is no slow line.
    fn size_slots(&mut self, is_round: bool, total_up: u64, limit_up: Option<u64>) {
        self.slots = match self.config.slots {
            UploadSlots::Fixed(slots) => slots,
            UploadSlots::Auto => {
                let target = auto_slots(limit_up.unwrap_or(total_up));
                match (limit_up.is_some() || target >= self.slots, is_round) {
                    (true, _) => target,
                    (false, true) => target.max(self.slots - self.slots / 4),
                    (false, false) => self.slots,
                }
            }
        };
    }

    /// Best first.
    fn rank(&self, now: Now, is_seeding: bool, ranked: &mut [&ChokeInput]) {
        match (is_seeding, self.config.seed_choker) {
            (false, _) => ranked.sort_by_key(|p| {
                let rate = with_bonus(p.down_bytes_per_s, p.is_unchoked);
                // Who gives keeps its slot even if it takes nothing just now: a choke would be answered in kind.
                let is_lazy = p.down_bytes_per_s == 0 && is_lazy(p, now);
                (
                    p.is_snubbed,
                    is_lazy,
                    u64::MAX - rate,
                    p.unchoked_at,
                    p.peer,
                )
            }),
            (true, SeedChoker::FastestUpload) => ranked.sort_by_key(|p| {
                let rate = with_bonus(p.up_bytes_per_s, p.is_unchoked);
                (is_lazy(p, now), u64::MAX - rate, p.unchoked_at, p.peer)
            }),
            (true, SeedChoker::RoundRobin) => ranked.sort_by_key(|p| {
                let turn = match (p.is_unchoked, is_turn_over(p, now)) {
                    (true, false) => 0u8,
                    (false, _) => 1,
                    (true, true) => 2,
                };
                (turn, p.unchoked_at, p.peer)
            }),
        }
    }

    fn full_round(
        &mut self,
        now: Now,
        is_seeding: bool,
        peers: &[ChokeInput],
        ranked: &[&ChokeInput],
        rng: &mut Rng,
    ) -> Vec<ChokeChange> {
        let slots = self.slots_now(now, ranked);
        let explores =
            slots > 1 && !(is_seeding && self.config.seed_choker == SeedChoker::RoundRobin);
        let is_held = |p: &ChokeInput| p.is_unchoked && now.since(p.unchoked_at) < SLOT_HELD_MIN;
        let regular_count = if explores { slots - 1 } else { slots };
        let held_count = ranked.iter().filter(|p| is_held(p)).count();
        let mut open_count = regular_count.saturating_sub(held_count);
        let mut chosen: Vec<PeerKey> = Vec::with_capacity(slots);
        let mut others: Vec<&ChokeInput> = Vec::new();
        for p in ranked {
            let is_full = self.slots_max.is_some() && chosen.len() >= slots;
            if slots > 0 && is_held(p) && !is_full {
                chosen.push(p.peer);
            } else if open_count > 0 {
                open_count -= 1;
                chosen.push(p.peer);
            } else {
                others.push(p);
            }
        }
        if others.iter().any(|p| !is_lazy(p, now)) {
            others.retain(|p| !is_lazy(p, now));
        }
        if explores && chosen.len() < slots {
            chosen.extend(self.choose_optimistic(now, &others, rng));
        }
        let mut free_count = slots.saturating_sub(chosen.len());
        let mut changes = Vec::new();
        for p in peers {
            let keeps_idle = !p.is_interested && p.is_unchoked && free_count > 0;
            free_count -= usize::from(keeps_idle);
            let unchoke = keeps_idle || chosen.contains(&p.peer);
            if unchoke != p.is_unchoked {
                changes.push(ChokeChange {
                    peer: p.peer,
                    unchoke,
                });
            }
        }
        changes
    }

    /// The present holder until its turn is over, then another by lot.
    fn choose_optimistic(
        &mut self,
        now: Now,
        others: &[&ChokeInput],
        rng: &mut Rng,
    ) -> Option<PeerKey> {
        let holder = self
            .optimistic
            .filter(|_| now < self.optimistic_until)
            .filter(|holder| others.iter().any(|p| p.peer == *holder));
        if holder.is_some() {
            return holder;
        }
        self.optimistic = draw(now, others, self.optimistic, rng);
        self.optimistic_until = now + OPTIMISTIC_TURN;
        self.optimistic
    }

    /// Gives free slots to the best of those who wait; chokes nobody.
    fn fill(&self, now: Now, peers: &[ChokeInput], ranked: &[&ChokeInput]) -> Vec<ChokeChange> {
        // Under a lid those count too that want nothing just now: they may go on at any time.
        let is_used =
            |p: &&ChokeInput| p.is_unchoked && (p.is_interested || self.slots_max.is_some());
        let used_count = peers.iter().filter(is_used).count();
        let free_count = self.slots_now(now, ranked).saturating_sub(used_count);
        ranked
            .iter()
            .filter(|p| !p.is_unchoked)
            .take(free_count)
            .map(|p| ChokeChange {
                peer: p.peer,
                unchoke: true,
            })
            .collect()
    }
}

const fn initial_slots(slots: UploadSlots) -> u32 {
    match slots {
        UploadSlots::Auto => AUTO_SLOTS_MIN,
        UploadSlots::Fixed(slots) => slots,
    }
}

/// Slots grow with the root of the rate: ten times the line gives each peer three times the rate.
fn auto_slots(bytes_per_s: u64) -> u32 {
    let root = (bytes_per_s / 1_000).saturating_mul(6) / 10;
    u32::try_from(root.isqrt())
        .unwrap_or(AUTO_SLOTS_MAX)
        .clamp(AUTO_SLOTS_MIN, AUTO_SLOTS_MAX)
}

const fn with_bonus(bytes_per_s: u64, is_unchoked: bool) -> u64 {
    let bonus = if is_unchoked {
        bytes_per_s / INCUMBENT_BONUS_DIVISOR
    } else {
        0
    };
    bytes_per_s.saturating_add(bonus)
}

/// How long an unchoked peer has taken nothing; zero for a choked one.
fn idle_for(p: &ChokeInput, now: Now) -> Duration {
    match p.is_unchoked {
        true => now.since(p.unchoked_at.max(p.used_at)),
        false => Duration::ZERO,
    }
}

fn is_lazy(p: &ChokeInput, now: Now) -> bool {
    idle_for(p, now) >= IDLE_TURN_MAX
}

fn is_turn_over(p: &ChokeInput, now: Now) -> bool {
    let held = now.since(p.unchoked_at);
    is_lazy(p, now)
        || held >= TURN_MAX
        || (held >= TURN_MIN && p.sent_since_unchoke_bytes >= TURN_BYTES)
}

/// One of `others` by lot, not `last` if there is anybody else.
fn draw(now: Now, others: &[&ChokeInput], last: Option<PeerKey>, rng: &mut Rng) -> Option<PeerKey> {
    let weight = |p: &ChokeInput| match now.since(p.connected_at) < NEW_PEER {
        true => NEW_PEER_WEIGHT,
        false => 1,
    };
    let has_other = others.iter().any(|p| Some(p.peer) != last);
    let pool = || others.iter().filter(|p| !has_other || Some(p.peer) != last);
    let mut ticket = rng.below(pool().map(|p| weight(p)).sum());
    for p in pool() {
        match ticket.checked_sub(weight(p)) {
            Some(left) => ticket = left,
            None => return Some(p.peer),
        }
    }
    None
}

#[cfg(test)]
mod tests;
