//! `gyre download` and `gyre seed`: from the options to a session, from its end to the exit code. Layer 7.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::cli::{self, DownloadArgs, SeedArgs, SessionArgs};
use super::exit::{Exit, Failure, io_cause};
use super::fetch::{self, Route};
use super::metadata::{self, Asking};
use super::render::{Mode, Renderer};
use super::source::Given;
use super::{escape, ignored, info, json, output, plain, select, signals, size, source, verify};
use crate::session::ip_filter::{self, IpFilterSettings, Reloader};
use crate::session::tune::Tuning;
use crate::session::{
    self, BindTo, CheckMode, DhtSettings, Encryption, Job, Outcome, PortChoice, PortMapSettings,
    Preallocate, SeedAfter, SendEngine, SessionConfig, Stopper, TorrentConfig, WriteEngine,
};
use crate::swarm::choker::SeedChoker;
use crate::uring::{files, limits, ring};
use crate::wire::magnet::Magnet;
use crate::wire::metainfo::Metainfo;

/// Smaller buffers cannot assemble pieces and serve at once.
const BUFFERS_BYTES_MIN: u64 = 2 * 1024 * 1024;

/// How long a command waits for the first look at its data.
const FIRST_LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs `gyre download`.
///
/// # Errors
/// A source cannot be loaded, or the session cannot run.
pub fn download(args: &DownloadArgs) -> Result<Exit, Failure> {
    ignored::by_one_shot(&args.session)?;
    check_buffers(args.session.buffers)?;
    let mut asking = asking(&args.session)?;
    let given = load_all(&args.sources, &args.session)?;
    check_links(args, &given, &asking)?;
    if args.list {
        asking.ip_filter = ip_filter(&args.session)?;
        return list_all(args, given, &asking);
    }
    let selections = select_known(&given, &args.select)?;
    let mut jobs = Vec::new();
    for (given, selected) in given.into_iter().zip(selections) {
        let (output, session) = (args.output.clone(), args.session.clone());
        let (is_sequential, preallocate) = (args.sequential, preallocate(args));
        let shape = move |metainfo: Metainfo, selected: Option<Vec<usize>>| {
            let mut torrent = torrent_config(metainfo, &output, &session)?;
            torrent.fetches = true;
            torrent.selected_files = selected;
            torrent.is_sequential = is_sequential;
            torrent.preallocate = preallocate;
            Ok(torrent)
        };
        jobs.push(match given {
            Given::Torrent(metainfo) => Job::Torrent(shape(*metainfo, selected)?),
            Given::Link(link) => {
                let save = args.save_torrent.as_deref();
                let on_metadata = metadata::shaped(shape, &link, &args.select, save);
                Job::Magnet(metadata::magnet_config(*link, &asking, on_metadata))
            }
        });
    }
    make_folder(&args.output, "--output")?;
    run(&args.session, jobs)
}

const fn preallocate(args: &DownloadArgs) -> Preallocate {
    match args.preallocate {
        cli::Preallocate::None => Preallocate::None,
        cli::Preallocate::Sparse => Preallocate::Sparse,
        cli::Preallocate::Full => Preallocate::Full,
    }
}

/// Whom to ask for metadata.
fn asking(args: &SessionArgs) -> Result<Asking, Failure> {
    Ok(Asking {
        peers: args.peer.clone(),
        trackers: !args.no_trackers,
        exchanges_peers: !args.no_pex,
        searches_locally: !args.no_lsd,
        dht: dht(args.no_dht, &args.dht_bootstrap),
        encryption: encryption(args.encryption),
        give_up: args.give_up,
        announce_interval_min: args.announce_interval_min,
        route: route(args)?,
        ip_filter: None,
    })
}

/// What can be said of links before anybody is asked.
fn check_links(args: &DownloadArgs, given: &[Given], asking: &Asking) -> Result<(), Failure> {
    let links = given.iter().filter_map(|given| match given {
        Given::Link(link) => Some(&**link),
        Given::Torrent(_) => None,
    });
    let links: Vec<&Magnet> = links.collect();
    if let Some(lost) = links.iter().find(|link| !asking.knows_anybody(link)) {
        return Err(metadata::leads_nowhere(lost));
    }
    let Some(path) = &args.save_torrent else {
        return Ok(());
    };
    match (&links[..], given.len()) {
        ([link], 1) => metadata::check_place(path, link.info_hash),
        _ => Err(Failure::usage(
            "--save-torrent is for one magnet link or info_hash",
            "name one link, or leave it out",
        )),
    }
}

/// Lists files; of links the metadata is fetched first.
fn list_all(args: &DownloadArgs, given: Vec<Given>, asking: &Asking) -> Result<Exit, Failure> {
    let links: Vec<Magnet> = given
        .iter()
        .filter_map(|given| match given {
            Given::Link(link) => Some((**link).clone()),
            Given::Torrent(_) => None,
        })
        .collect();
    let mut fetched = match links.is_empty() {
        true => Vec::new(),
        false => metadata::fetch(&links, asking)?,
    }
    .into_iter();
    let metainfos = given.into_iter().filter_map(|given| match given {
        Given::Torrent(metainfo) => Some(*metainfo),
        Given::Link(_) => fetched.next(),
    });
    let metainfos: Vec<Metainfo> = metainfos.collect();
    let mut selections = select::select_all(&metainfos, &args.select)?;
    for (metainfo, selection) in metainfos.iter().zip(&mut selections) {
        let link = links
            .iter()
            .find(|link| link.info_hash == metainfo.info_hash);
        if let Some(link) = link {
            *selection = select::of_link(metainfo, link, &args.select)?;
            if let Some(path) = &args.save_torrent {
                metadata::save_torrent(path, metainfo)?;
            }
        }
    }
    list(&metainfos, &selections, args.session.json);
    Ok(Exit::Done)
}

/// The files selected of each torrent whose metadata is here. What links bring may match too, so that a text need not
/// match where there are any.
fn select_known(given: &[Given], texts: &[String]) -> Result<Vec<Option<Vec<usize>>>, Failure> {
    let known: Vec<Metainfo> = given
        .iter()
        .filter_map(|given| match given {
            Given::Torrent(metainfo) => Some((**metainfo).clone()),
            Given::Link(_) => None,
        })
        .collect();
    let mut selections = if known.len() == given.len() {
        select::select_all(&known, texts)?
    } else {
        let each = known
            .iter()
            .map(|metainfo| select::of_link(metainfo, &Magnet::new(metainfo.info_hash), texts));
        each.collect::<Result<_, _>>()?
    }
    .into_iter();
    let of = |given: &Given| match given {
        Given::Torrent(_) => selections.next().flatten(),
        Given::Link(_) => None,
    };
    Ok(given.iter().map(of).collect())
}

/// Runs `gyre seed`.
///
/// # Errors
/// A torrent cannot be loaded, or the session cannot run.
pub fn seed(args: &SeedArgs) -> Result<Exit, Failure> {
    ignored::by_one_shot(&args.session)?;
    check_buffers(args.session.buffers)?;
    let route = route(&args.session)?;
    let mut torrents = Vec::new();
    let mut seen = BTreeSet::new();
    for argument in &args.torrents {
        let metainfo = source::load_torrent(argument, &route)?;
        tell_warnings(argument, &metainfo);
        if !seen.insert(metainfo.info_hash) {
            continue;
        }
        let mut torrent = torrent_config(metainfo, &args.data, &args.session)?;
        torrent.seed_after.seeds = true;
        torrent.tuning.super_seeds = args.super_seed;
        torrents.push(torrent);
    }
    let (data, of) = (args.data.clone(), torrents.clone());
    let (sender, looked) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(first_look(&data, &of)));
    // A file system that hangs holds the look, not the torrents elsewhere: the session tells of it.
    if let Ok(looked) = looked.recv_timeout(FIRST_LOOK_TIMEOUT) {
        looked?;
    }
    run(
        &args.session,
        torrents.into_iter().map(Job::Torrent).collect(),
    )
}

/// Whether there is anything to seed. One that can be seeded is: the session tells of the others.
fn first_look(data: &Path, torrents: &[TorrentConfig]) -> Result<(), Failure> {
    std::fs::metadata(data).map_err(|error| no_data(data, &error))?;
    let mut first = None;
    for torrent in torrents {
        match session::find_data(torrent) {
            Ok(()) => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    let Some(first) = first else { return Ok(()) };
    let exit = exit_of(&[first.outcome()]);
    Err(Failure::new(&first, first.hint()).with_exit(exit))
}

/// Data that is not there is as incomplete as data can be.
fn no_data(path: &Path, error: &std::io::Error) -> Failure {
    if error.kind() != std::io::ErrorKind::NotFound {
        return super::walk::unreadable(path, error);
    }
    Failure::new(
        format!("{} does not exist", escape::terminal_path(path)),
        "give the folder that holds the data with --data",
    )
    .with_exit(Exit::Incomplete)
}

/// Loads every source; one that is named twice counts once.
fn load_all(sources: &[OsString], args: &SessionArgs) -> Result<Vec<Given>, Failure> {
    let route = route(args)?;
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for argument in sources {
        let given = source::load(argument, &route)?;
        let info_hash = match &given {
            Given::Torrent(metainfo) => {
                tell_warnings(argument, metainfo);
                metainfo.info_hash
            }
            Given::Link(link) => link.info_hash,
        };
        if seen.insert(info_hash) {
            all.push(given);
        }
    }
    Ok(all)
}

fn tell_warnings(argument: &OsString, metainfo: &Metainfo) {
    for warning in &metainfo.warnings {
        let name = escape::terminal(&argument.to_string_lossy());
        tracing::warn!("{name}: {}", escape::terminal(warning));
    }
}

fn list(metainfos: &[Metainfo], selections: &[Option<Vec<usize>>], as_json: bool) {
    for (metainfo, selection) in metainfos.iter().zip(selections) {
        let is_listed = |index: usize| {
            let selection = selection.as_ref();
            selection.is_none_or(|files| files.binary_search(&index).is_ok())
        };
        if as_json {
            json::print(&json!({
                "event": "files",
                "info_hash": metainfo.info_hash.to_string(),
                "name": metainfo.info.name,
                "files": info::files_json(metainfo, is_listed),
            }));
            continue;
        }
        if metainfos.len() > 1 {
            output::stdout_line(&plain::name(&metainfo.info.name));
        }
        info::list(metainfo, is_listed);
    }
}

/// A torrent that is only seeded; the caller changes the rest.
fn torrent_config(
    metainfo: Metainfo,
    folder: &Path,
    args: &SessionArgs,
) -> Result<TorrentConfig, Failure> {
    verify::layout(&metainfo)?;
    let web_seeds = match args.no_web_seeds {
        true => Vec::new(),
        false => metainfo.web_seeds.clone(),
    };
    Ok(TorrentConfig {
        metainfo: Arc::new(metainfo),
        folder: folder.to_owned(),
        place: crate::session::DataPlace::default(),
        fetches: false,
        check: match args.check {
            cli::Check::Auto => CheckMode::Auto,
            cli::Check::Full => CheckMode::Full,
            cli::Check::None => CheckMode::None,
        },
        preallocate: Preallocate::default(),
        is_sequential: false,
        selected_files: None,
        peers: args.peer.clone(),
        trackers: !args.no_trackers,
        web_seeds,
        seed_after: seed_after(args),
        tuning: Tuning::default(),
    })
}

const fn seed_after(args: &SessionArgs) -> SeedAfter {
    SeedAfter {
        seeds: args.seed || args.seed_ratio.is_some() || args.seed_time.is_some(),
        ratio: args.seed_ratio,
        time: args.seed_time,
        idle: None,
    }
}

/// How connections outside of the session go out.
fn route(args: &SessionArgs) -> Result<Route, Failure> {
    if let Some(BindTo::Addr(ip)) = args.bind
        && ip.is_ipv6()
        && args.no_ipv6
    {
        return Err(Failure::usage(
            format!("--bind {ip} is an IPv6 address, and --no-ipv6 rules those out"),
            "leave one of the two out",
        ));
    }
    Ok(Route {
        bind: args.bind.clone(),
        ipv6: !args.no_ipv6,
        proxy: args.proxy.clone(),
        tracker_ca: fetch::tracker_ca(args.tracker_ca.as_deref())?,
    })
}

/// Buffers are locked into memory: what is too much takes it from everybody else on the machine.
///
/// # Errors
/// It is too much, or too little to work with.
pub fn check_buffers(given: Option<u64>) -> Result<(), Failure> {
    let Some(bytes) = given else {
        return Ok(());
    };
    if bytes < BUFFERS_BYTES_MIN {
        return Err(Failure::usage(
            format!("--buffers of {bytes} bytes is too small"),
            "give at least 2MiB, or leave the option out",
        ));
    }
    let memory_bytes = limits::memory_bytes();
    if bytes > memory_bytes / 2 {
        return Err(Failure::usage(
            format!(
                "--buffers of {} is more than half of the {} of memory there is",
                size::bytes(bytes),
                size::bytes(memory_bytes)
            ),
            format!(
                "give at most {}MiB, or leave the option out",
                (memory_bytes / 2) >> 20
            ),
        ));
    }
    Ok(())
}

fn session_config(args: &SessionArgs) -> Result<SessionConfig, Failure> {
    Ok(SessionConfig {
        state_dir: state_dir(args.state.as_deref())?,
        port: match args.port {
            Some(port) => PortChoice::Exactly(port),
            // Where we can be reached is what a proxy is to hide.
            None if args.proxy.is_some() => PortChoice::Nowhere,
            None => PortChoice::Default,
        },
        bind: args.bind.clone(),
        ipv6: !args.no_ipv6,
        tcp: !args.no_tcp,
        utp: !args.no_utp,
        holepunch: !args.no_holepunch,
        lsd: !args.no_lsd,
        limit_up_bytes_per_s: args.limit_up.filter(|rate| *rate > 0),
        limit_down_bytes_per_s: args.limit_down.filter(|rate| *rate > 0),
        peers_max: args.max_peers,
        upload_slots: args.upload_slots,
        seed_choker: SeedChoker::RoundRobin,
        exchanges_peers: !args.no_pex,
        buffers_bytes: args.buffers,
        send_engine: match args.send_engine {
            cli::SendEngine::Auto => SendEngine::Auto,
            cli::SendEngine::Mapped => SendEngine::Mapped,
            cli::SendEngine::Copy => SendEngine::Copy,
        },
        encryption: encryption(args.encryption),
        write_engine: match args.write_engine {
            cli::WriteEngine::Auto => WriteEngine::Auto,
            cli::WriteEngine::Direct => WriteEngine::Direct,
            cli::WriteEngine::Buffered => WriteEngine::Buffered,
        },
        give_up: args.give_up,
        http_proxy: variable(&["http_proxy"]),
        no_proxy: no_proxy(),
        proxy: args.proxy.clone(),
        tracker_ca: fetch::tracker_ca(args.tracker_ca.as_deref())?,
        ip_filter: ip_filter(args)?,
        announce_interval_min: args.announce_interval_min,
        dht: dht(args.no_dht, &args.dht_bootstrap),
        port_map: (!args.no_port_map).then_some(PortMapSettings {
            gateway: args.port_map_gateway,
        }),
        tells_delays: args.lab,
    })
}

/// The list of `--ip-filter`, read; SIGHUP has it read anew.
fn ip_filter(args: &SessionArgs) -> Result<Option<IpFilterSettings>, Failure> {
    let Some(path) = args.ip_filter.clone() else {
        return Ok(None);
    };
    let filter = load_ip_filter(path)?;
    let on_hangup = filter.reloader.clone();
    signals::on_hangup(move || on_hangup.reload());
    Ok(Some(filter))
}

/// Reads the list at `path`. Blocks.
///
/// # Errors
/// It cannot be read, or is none.
pub fn load_ip_filter(path: PathBuf) -> Result<IpFilterSettings, Failure> {
    let list = ip_filter::load(&path).map_err(|error| {
        let shown = escape::terminal_path(&path);
        Failure::new(
            format!("cannot use {shown} as --ip-filter: {error}"),
            error.hint(),
        )
    })?;
    Ok(IpFilterSettings {
        path,
        list,
        reloader: Reloader::default(),
    })
}

const fn encryption(asked: cli::Encryption) -> Encryption {
    match asked {
        cli::Encryption::Prefer => Encryption::Prefer,
        cli::Encryption::Require => Encryption::Require,
        cli::Encryption::Off => Encryption::Off,
    }
}

/// Settings of the DHT node; `None` without one.
pub fn dht(is_off: bool, bootstrap: &[(String, u16)]) -> Option<DhtSettings> {
    (!is_off).then(|| DhtSettings {
        bootstrap: bootstrap.to_vec(),
    })
}

/// The first of these environment variables that is set and not empty.
pub fn variable(names: &[&str]) -> Option<String> {
    let value = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    names.iter().find_map(value)
}

/// Hosts named by `no_proxy`.
pub fn no_proxy() -> Vec<String> {
    let hosts = variable(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
    let hosts = hosts.split(',').map(str::trim);
    hosts
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The folder of the resume records: given, `$XDG_STATE_HOME/gyre`, or `~/.local/state/gyre`.
///
/// # Errors
/// None of them is known.
pub fn state_dir(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    // The XDG specification has relative paths ignored.
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|folder| folder.join("gyre"))
        .ok_or_else(|| {
            Failure::new(
                "no folder for resume records: neither XDG_STATE_HOME nor HOME is set",
                "name one with --state",
            )
        })
}

/// Makes the folder and those above it.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(folder: &Path, option: &str) -> Result<(), Failure> {
    files::make_folder(folder).map_err(|error| {
        Failure::new(
            format!(
                "cannot make the folder {}: {}",
                escape::terminal_path(folder),
                io_cause(&error)
            ),
            format!("name a folder you may write to with {option}"),
        )
    })
}

/// A ring for this thread.
///
/// # Errors
/// The kernel gives none; the hint says why.
pub fn start_ring() -> Result<ring::Ring, Failure> {
    ring::start(ring::RingConfig::default()).map_err(|error| Failure::new(&error, error.hint()))
}

fn run(args: &SessionArgs, jobs: Vec<Job>) -> Result<Exit, Failure> {
    let config = session_config(args)?;
    make_folder(&config.state_dir, "--state")?;
    limits::raise_nofile();
    let ring = start_ring()?;
    let mode = Mode::choose(args.json, args.quiet);
    let stopper = Stopper::default();
    let on_signal = stopper.clone();
    signals::on_first(move || {
        if mode == Mode::Bars {
            output::freeze_bars();
            output::stderr_line("stopping; once more leaves at once");
        }
        on_signal.stop();
    });
    let is_seeding_on = jobs.iter().any(|job| match job {
        Job::Torrent(torrent) => torrent.seed_after.seeds,
        Job::Magnet(_) => seed_after(args).seeds,
    });
    let renderer = Rc::new(RefCell::new(Renderer::new(mode, is_seeding_on)));
    let (shown, on_closed) = (Rc::clone(&renderer), stopper.clone());
    let result = ring.block_on(session::run(config, jobs, stopper, move |event| {
        shown.borrow_mut().on_event(&event);
        if output::is_stdout_broken() {
            on_closed.stop();
        }
    }));
    renderer.borrow_mut().finish();
    // The process ends now. Taking the runtime apart would wait for every blocking thread, and a file system that
    // hangs never lets them go (HOSTILE.md L13).
    std::mem::forget(ring);
    let summary = result.map_err(|error| Failure::new(&error, error.hint()))?;
    let outcomes: Vec<Outcome> = summary
        .outcomes
        .iter()
        .map(|(_, outcome)| *outcome)
        .collect();
    if signals::received().is_none() && outcomes.contains(&Outcome::Stopped) {
        // Nobody else asks a session to stop.
        return Err(Failure::new(
            "stopped: stdout is closed, nobody reads the progress any more",
            "run it again to go on, with --quiet where nothing is to be read",
        ));
    }
    Ok(exit_of(&outcomes))
}

/// A signal decides first, then the worst outcome.
fn exit_of(outcomes: &[Outcome]) -> Exit {
    if let Some(exit) = signals::received() {
        return exit;
    }
    if outcomes.contains(&Outcome::Failed) {
        return Exit::Failed;
    }
    match outcomes.contains(&Outcome::Incomplete) {
        true => Exit::Incomplete,
        false => Exit::Done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_outcome_decides() {
        assert_eq!(exit_of(&[Outcome::Done, Outcome::Stopped]), Exit::Done);
        assert_eq!(
            exit_of(&[Outcome::Done, Outcome::Incomplete]),
            Exit::Incomplete
        );
        assert_eq!(
            exit_of(&[Outcome::Incomplete, Outcome::Failed]),
            Exit::Failed
        );
    }
}
