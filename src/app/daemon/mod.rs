//! `gyre daemon`: from its settings to a running daemon. Layer 7.

pub mod args;
mod config;
mod lines;
mod policies;

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::exit::{Exit, Failure};
use super::{escape, json, output, run, signals};
use crate::daemon::control::Listeners;
use crate::daemon::{Control, Daemon, LiveSettings, Service};
use crate::session::SessionEvent;
use crate::session::ip_filter::Reloader;
use crate::uring::{limits, ring};
use args::DaemonArgs;
use config::{Loaded, Values};

/// Runs `gyre daemon`.
///
/// # Errors
/// The settings cannot be used, another daemon has the state, or the session cannot run.
pub fn run(args: &DaemonArgs) -> Result<Exit, Failure> {
    if args.print_config {
        for line in config::template().lines() {
            output::stdout_line(line);
        }
        return Ok(Exit::Done);
    }
    let Loaded {
        mut settings,
        values,
    } = config::load(args)?;
    settings.session.ip_filter = values.ip_filter()?;
    let reloader = settings.session.ip_filter.as_ref();
    let reloader = reloader.map(|filter| filter.reloader.clone());
    run::make_folder(&settings.session.state_dir, "--state")?;
    limits::raise_nofile();
    let ring = run::start_ring()?;
    let (controls, session) = (settings.control.clone(), settings.session.clone());
    let daemon = Daemon::open(settings).map_err(|error| Failure::new(&error, error.hint()))?;
    // Behind the state folder's lock: a second daemon does not take the first one's socket away.
    let listeners = Listeners::open(&controls, &session);
    let listeners = listeners.map_err(|error| Failure::new(&error, error.hint()))?;
    if args.lines {
        for addr in listeners.addresses() {
            json::print(&serde_json::json!({ "event": "control", "addr": addr.to_string() }));
        }
    }
    let control = daemon.control();
    on_signals(args, &control, values, reloader);
    let mut services: Vec<Service> = vec![listeners.service()];
    if args.lines {
        services.push(Box::new(|control| Box::pin(lines::serve(control))));
    }
    let tells = args.lines;
    let result = daemon.run(&ring, services, move |event| tell(&event, tells));
    // As at the end of a download: taking the runtime apart would wait for threads that may hang.
    std::mem::forget::<ring::Ring>(ring);
    result.map_err(|error| Failure::new(&error, error.hint()))?;
    Ok(Exit::Done)
}

/// SIGINT and SIGTERM end it in order, SIGHUP has the settings read anew.
///
/// `values` are those in force, as far as a restart alone changes them.
fn on_signals(args: &DaemonArgs, control: &Control, values: Values, ip_filter: Option<Reloader>) {
    let stopped = control.clone();
    signals::on_first(move || {
        info!("stopping");
        stopped.shut_down();
    });
    let (args, control) = (args.clone(), Arc::new(Mutex::new(control.clone())));
    signals::on_hangup(move || match config::load(&args) {
        Ok(new) => {
            let settings = new.settings;
            let control = control.lock().unwrap_or_else(PoisonError::into_inner);
            control.apply(LiveSettings::of(&settings));
            control.apply_policies(settings.policies);
            if let Some(list) = &ip_filter {
                list.reload();
            }
            info!("settings read anew");
            let waiting = new.values.changed_for_a_restart(&values);
            if !waiting.is_empty() {
                warn!(
                    "what was changed of these is in force after a restart: {}",
                    waiting.join(", ")
                );
            }
        }
        Err(failure) => warn!(
            "the settings are left as they were: {}; hint: {}",
            failure.message(),
            failure.hint()
        ),
    });
}

fn tell(event: &SessionEvent, as_json: bool) {
    match event {
        SessionEvent::Warning {
            info_hash,
            message,
            hint,
        }
        | SessionEvent::Error {
            info_hash,
            message,
            hint,
            ..
        } => {
            let of = info_hash
                .map(|info_hash| format!("{info_hash}: "))
                .unwrap_or_default();
            let (message, hint) = (escape::terminal(message), escape::terminal(hint));
            warn!("{of}{message}; hint: {hint}");
        }
        SessionEvent::Complete { info_hash, .. } => info!(%info_hash, "complete"),
        SessionEvent::Banned { info_hash, ip } => info!(%info_hash, %ip, "banned"),
        SessionEvent::Listening { .. } if as_json => {
            json::print(&json::event(event));
        }
        _ => {}
    }
}
