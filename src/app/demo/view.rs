//! How the demo looks: a bar a program on a terminal, a line a second elsewhere. Layer 7.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::figures::PeerFigures;
use super::program::Role;
use super::{Phase, Swarm};
use crate::app::{output, signals, size};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// On a terminal with fewer columns the bars are short, so that the figures fit.
const NARROW_BELOW: u16 = 70;

/// Where the demo is shown.
pub enum View {
    Quiet,
    Lines { next: Instant },
    Terminal { bars: Option<Bars> },
}

/// The bars of a running swarm.
pub struct Bars {
    all: MultiProgress,
    tracker: ProgressBar,
    seeder: ProgressBar,
    leechers: [ProgressBar; 2],
}

impl View {
    /// From the options and from what stdout is.
    pub fn choose(is_quiet: bool) -> View {
        match (is_quiet, std::io::stdout().is_terminal()) {
            (true, _) => View::Quiet,
            (_, true) => View::Terminal { bars: None },
            _ => View::Lines {
                next: Instant::now(),
            },
        }
    }

    pub const fn is_quiet(&self) -> bool {
        matches!(self, View::Quiet)
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        if !self.is_quiet() {
            output::stdout_line(line);
        }
    }

    /// Shows the swarm as it is now.
    pub fn show(&mut self, swarm: &Swarm) {
        match self {
            View::Quiet => {}
            View::Lines { next } => {
                let now = Instant::now();
                if now >= *next && swarm.phase == Phase::Sharing {
                    // From the last one on, so that being late does not add up.
                    *next = (*next + LINE_EVERY).max(now);
                    output::stdout_line(&line(swarm));
                }
            }
            View::Terminal { bars } => {
                bars.get_or_insert_with(|| Bars::new(swarm.total_bytes))
                    .show(swarm);
            }
        }
    }

    /// Takes the bars off the terminal. After a signal they stay as they are: the terminal has written `^C` below them
    /// and what they would take off is no longer where they left it.
    pub fn clear(&mut self) {
        let View::Terminal { bars } = self else {
            return;
        };
        let Some(bars) = bars.take() else {
            return;
        };
        output::set_live_bars(None);
        match signals::received() {
            None => {
                // Only a closed terminal refuses.
                let _ = bars.all.clear();
            }
            Some(_) => {
                bars.all.set_draw_target(ProgressDrawTarget::hidden());
                output::stdout_line("");
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Bars {
    fn new(total_bytes: u64) -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        output::set_live_bars(Some(all.clone()));
        let add = |role: Role, template: &str| {
            let bar = all.add(ProgressBar::new(total_bytes));
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(format!("{:<9}", role.label()));
            bar
        };
        let columns = match console::Term::stdout().size() {
            (_, 0..NARROW_BELOW) => 6,
            _ => 20,
        };
        let with_bar = format!("{{prefix}} [{{bar:{columns}}}] {{percent:>3}}% {{wide_msg}}");
        let alone = format!("{{prefix}} [{{bar:{columns}}}] {{wide_msg}}");
        Bars {
            tracker: add(Role::Tracker, "{prefix} {wide_msg}"),
            // What it has sent may be more than all of it, so the percents are in the message.
            seeder: add(Role::Seeder, &alone),
            leechers: [
                add(Role::Leecher1, &with_bar),
                add(Role::Leecher2, &with_bar),
            ],
            all,
        }
    }

    fn show(&self, swarm: &Swarm) {
        let tracker = &swarm.tracker;
        self.tracker.set_message(format!(
            "{}, {}, {}",
            size::plural(tracker.seeders, "seeder"),
            size::plural(tracker.leechers, "leecher"),
            size::plural(tracker.announces, "announce"),
        ));
        self.seeder.set_position(seeder_bytes(&swarm.seeder));
        self.seeder.set_message(seeder_message(swarm));
        for (bar, leecher) in self.leechers.iter().zip(&swarm.leechers) {
            bar.set_position(leecher.have_bytes);
            bar.set_message(leecher_message(leecher, swarm.phase));
        }
    }
}

/// What the seeder's bar stands at: the bytes it has checked, then those it has sent.
fn seeder_bytes(seeder: &PeerFigures) -> u64 {
    match seeder.state.as_str() {
        "checking" => seeder.checked_bytes,
        _ => seeder.sent_bytes,
    }
}

fn seeder_message(swarm: &Swarm) -> String {
    let seeder = &swarm.seeder;
    let percent = percent(seeder_bytes(seeder), swarm.total_bytes);
    match seeder.state.as_str() {
        "" => "  0% starting".to_owned(),
        "checking" => format!("{percent:>3}% of its data checked"),
        _ if swarm.phase != Phase::Sharing => format!("{percent:>3}% of a copy sent"),
        _ => format!(
            "{percent:>3}% of a copy sent  ↑ {}  {}",
            size::rate(seeder.up_bytes_per_s),
            size::plural(seeder.peers, "peer"),
        ),
    }
}

fn leecher_message(leecher: &PeerFigures, phase: Phase) -> String {
    match (leecher.state.as_str(), leecher.complete_after) {
        ("", _) => "starting".to_owned(),
        (_, Some(seconds)) if phase == Phase::Leaving => {
            format!("complete after {seconds:.1} s, saying goodbye")
        }
        (_, Some(seconds)) if phase == Phase::Verifying => {
            format!("complete after {seconds:.1} s, verifying")
        }
        (_, Some(seconds)) => format!(
            "complete after {seconds:.1} s  ↑ {}",
            size::rate(leecher.up_bytes_per_s)
        ),
        _ => format!(
            "↓ {}  ↑ {}  {}",
            size::rate(leecher.down_bytes_per_s),
            size::rate(leecher.up_bytes_per_s),
            size::plural(leecher.peers, "peer"),
        ),
    }
}

fn percent(bytes: u64, total_bytes: u64) -> u128 {
    u128::from(bytes) * 100 / u128::from(total_bytes.max(1))
}

/// All programs in one line.
fn line(swarm: &Swarm) -> String {
    let total = swarm.total_bytes;
    let mut line = format!(
        "{:>5.1} s | tracker {}",
        swarm.since.elapsed().as_secs_f64(),
        size::plural(swarm.tracker.seeders + swarm.tracker.leechers, "peer"),
    );
    let seeder = &swarm.seeder;
    line += &match seeder.state.as_str() {
        "" => " | seeder starting".to_owned(),
        "checking" => format!(
            " | seeder checking {}%",
            percent(seeder.checked_bytes, total)
        ),
        _ => format!(
            " | seeder sent {}% ↑ {}",
            percent(seeder.sent_bytes, total),
            size::rate(seeder.up_bytes_per_s)
        ),
    };
    for (role, leecher) in [Role::Leecher1, Role::Leecher2].iter().zip(&swarm.leechers) {
        line += &format!(
            " | {} {}%",
            role.label(),
            percent(leecher.have_bytes, total)
        );
        if leecher.complete_after.is_none() {
            line += &format!(" ↓ {}", size::rate(leecher.down_bytes_per_s));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_has_all_four_programs() {
        let mut swarm = Swarm::new(1_000);
        assert!(line(&swarm).ends_with(
            "| tracker 0 peers | seeder starting | leecher 1 0% ↓ 0 B/s | leecher 2 0% ↓ 0 B/s"
        ));
        swarm.seeder.state = "seeding".into();
        swarm.seeder.sent_bytes = 1_100;
        swarm.leechers[0].have_bytes = 1_000;
        swarm.leechers[0].complete_after = Some(2.0);
        assert!(
            line(&swarm)
                .ends_with("| seeder sent 110% ↑ 0 B/s | leecher 1 100% | leecher 2 0% ↓ 0 B/s")
        );
    }
}
