//! What the world reaches a session by: listeners, the UDP port, the sockets of trackers and of the local network. Layer 5.
//!
//! With `--bind` a watch looks once a second whether anything can leave through the interface or from the address. When
//! nothing can, everything waits and nothing is sent elsewhere: the kernel refuses what is bound to an interface that is
//! down or gone. When it works again the sockets are opened anew on the same port, because SO_BINDTODEVICE means the
//! interface by its number, and one that was removed and made again has another. Looking is a few system calls; rtnetlink
//! would tell sooner, but loses messages when its queue is full, and what it told would have to be looked at all the same.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::config::{BindTo, PortChoice, SessionConfig, SessionEvent};
use super::contain::Serves::Strangers;
use super::contain::keep_up;
use super::error::SessionError;
use super::lsd::Lsd;
use super::shared::Shared;
use super::udp_port::{self, UdpPort};
use super::udp_tracker::OwnSockets;
use super::{connect, metadata};
use crate::uring::interfaces::{self, NoWay};
use crate::uring::listener::Listener;
use crate::uring::socket::SocketOptions;
use crate::uring::udp::Udp;
use crate::wire::tracker::Family;

/// The port of `PortChoice::Default`.
pub const PORT_DEFAULT: u16 = 6881;
/// Ports tried from there on.
const PORTS_TRIED: u16 = 10;
/// Tries to find one free port for all sockets when any port will do.
const ANY_PORT_TRIES: u32 = 50;
/// What the kernel keeps of datagrams for the port and from it, where it is allowed to: uTP's windows arrive at once.
const UDP_BUFFER_BYTES: i32 = 4 * 1024 * 1024;
/// How often it is looked whether there is a way out.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Tasks of closed sockets end at once; one that hangs is not waited for longer.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// Peers that did not see us go refuse a second connection until the first one has died on their side: they are dialed
/// again so long after the way came back.
const DIAL_AGAIN: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// The sockets of the peer port; none where nobody is to connect.
#[derive(Default)]
pub struct Sockets {
    listeners: Vec<Rc<Listener>>,
    udp: Vec<(Family, Udp)>,
    pub port: u16,
}

impl Sockets {
    /// Opens them as the settings say.
    ///
    /// # Errors
    /// In words for the user.
    pub fn open(config: &SessionConfig, options: &SocketOptions) -> Result<Sockets, SessionError> {
        let ips = listen_addrs(config);
        let ports: Vec<u16> = match config.port {
            PortChoice::Default => (PORT_DEFAULT..PORT_DEFAULT + PORTS_TRIED).collect(),
            PortChoice::Exactly(0) => vec![0; ANY_PORT_TRIES as usize],
            PortChoice::Exactly(port) => vec![port],
            PortChoice::Nowhere => return Ok(Sockets::default()),
        };
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in &ports {
            match Sockets::on(&ips, *port, config, options) {
                Ok(sockets) => return Ok(sockets),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                Err(error) => return Err(cannot_listen(&config.bind, *port, &error)),
            }
        }
        let what = match ports.as_slice() {
            [0, ..] | [] => format!("no free port was found: {last}"),
            [port] => format!("port {port} is taken"),
            [first, .., end] => format!("ports {first} to {end} are taken"),
        };
        Err(SessionError::new(
            what,
            "choose another with --port, or any free one with --port 0",
        ))
    }

    /// Where they listen.
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn addrs(&self) -> Result<Vec<SocketAddr>, SessionError> {
        let addrs = self.udp.iter().map(|(_, udp)| udp.local_addr());
        let addrs: io::Result<Vec<SocketAddr>> = addrs.collect();
        addrs.map_err(|error| SessionError::new(format!("cannot listen: {error}"), "try again"))
    }

    /// The datagram half, taken out.
    pub fn take_udp(&mut self) -> Vec<(Family, Udp)> {
        std::mem::take(&mut self.udp)
    }

    fn on(
        ips: &[IpAddr],
        port: u16,
        config: &SessionConfig,
        options: &SocketOptions,
    ) -> io::Result<Sockets> {
        let mut sockets = Sockets {
            listeners: Vec::new(),
            udp: Vec::new(),
            port,
        };
        for ip in ips {
            match sockets.open_on(*ip, config, options) {
                // A kernel without IPv6 still has IPv4.
                Err(error) if ip.is_ipv6() && !sockets.udp.is_empty() && is_no_family(&error) => {}
                opened => opened?,
            }
        }
        Ok(sockets)
    }

    fn open_on(
        &mut self,
        ip: IpAddr,
        config: &SessionConfig,
        options: &SocketOptions,
    ) -> io::Result<()> {
        if config.tcp {
            let listener = Listener::bind(SocketAddr::new(ip, self.port), options)?;
            self.port = listener.local_addr()?.port();
            self.listeners.push(Rc::new(listener));
        }
        let udp = Udp::bind(SocketAddr::new(ip, self.port), options)?;
        self.port = udp.local_addr()?.port();
        if config.utp {
            udp.gather(ip, UDP_BUFFER_BYTES)?;
        }
        let family = match ip.is_ipv4() {
            true => Family::V4,
            false => Family::V6,
        };
        self.udp.push((family, udp));
        Ok(())
    }
}

/// All of it, and the tasks that hear what comes.
pub struct Reach {
    shared: Rc<Shared>,
    listeners: RefCell<Vec<Rc<Listener>>>,
    udp_port: Rc<UdpPort>,
    /// None where datagrams go through a proxy.
    trackers: Option<OwnSockets>,
    lsd: RefCell<Option<Rc<Lsd>>>,
    tasks: RefCell<Vec<JoinHandle<()>>>,
    /// The number of the interface that the sockets are bound to.
    index: Cell<Option<u32>>,
}

impl Reach {
    /// Takes opened sockets. Nothing is heard before [`Reach::begin`].
    pub fn new(
        shared: &Rc<Shared>,
        sockets: Sockets,
        udp_port: Rc<UdpPort>,
        trackers: Option<OwnSockets>,
    ) -> Rc<Self> {
        Rc::new(Reach {
            shared: shared.clone(),
            listeners: RefCell::new(sockets.listeners),
            udp_port,
            trackers,
            lsd: RefCell::default(),
            tasks: RefCell::default(),
            index: Cell::new(None),
        })
    }

    /// Begins to listen, and looks for the first time whether anything can leave.
    pub fn begin(&self) {
        self.listen();
        match self.look() {
            Ok(index) => self.index.set(index),
            Err(why) => self.on_shut(&why),
        }
    }

    /// Closes everything.
    pub fn close(&self) {
        self.listeners
            .take()
            .iter()
            .for_each(|listener| listener.close());
        self.udp_port.close();
        if let Some(trackers) = &self.trackers {
            trackers.close();
        }
        if let Some(lsd) = self.lsd.take() {
            lsd.close();
        }
    }

    /// Ends the tasks.
    pub fn abort(&self) {
        self.tasks.take().iter().for_each(JoinHandle::abort);
    }

    fn listen(&self) {
        let shared = &self.shared;
        let mut tasks = Vec::new();
        for listener in self.listeners.borrow().iter() {
            let (listener, pending) = (listener.clone(), Rc::default());
            let what = "taking connections";
            tasks.push(keep_up(shared, what, Strangers, move |shared| {
                let (listener, pending) = (listener.clone(), Rc::clone(&pending));
                async move {
                    shared.admitting().await;
                    connect::accept_loop(shared, listener, pending).await;
                }
            }));
        }
        for udp in self.udp_port.sockets() {
            let port = self.udp_port.clone();
            let what = "hearing the UDP port";
            tasks.push(keep_up(shared, what, Strangers, move |shared| {
                let (port, udp) = (port.clone(), udp.clone());
                async move {
                    shared.admitting().await;
                    udp_port::receive(shared, port, udp).await;
                }
            }));
        }
        let lsd = shared.config.lsd.then(|| Lsd::open(shared)).flatten();
        if let Some(lsd) = lsd.clone() {
            let what = "looking for peers on the local network";
            let work = move |_| lsd.clone().run();
            tasks.push(keep_up(shared, what, Strangers, work));
        }
        *self.lsd.borrow_mut() = lsd;
        for receiver in self.trackers.iter().flat_map(OwnSockets::receivers) {
            let work = move |_| receiver.clone().run();
            tasks.push(keep_up(shared, "hearing UDP trackers", Strangers, work));
        }
        *self.tasks.borrow_mut() = tasks;
    }

    /// Looks for as long as the session runs; ends at once without `--bind`.
    pub async fn watch(self: Rc<Self>) {
        if self.shared.config.bind.is_none() {
            return;
        }
        // What the last look found while the way was shut: an interface that is being made goes up and down for a moment.
        let mut before = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let found = self.look();
            let is_steady = found.as_ref().ok() == before.as_ref();
            before = found.as_ref().ok().copied();
            match (found, self.shared.way.is_open()) {
                (Err(why), true) => self.on_shut(&why),
                // Removed and made again since the last look. The sockets are opened at the next one, when the
                // connections have ended.
                (Ok(index), true) if index != self.index.get() => {
                    if let Some(BindTo::Interface(name)) = &self.shared.config.bind {
                        self.on_shut(&NoWay::Gone(name.clone()));
                    }
                }
                (Ok(index), false) if is_steady => match self.reopen().await {
                    Ok(()) => self.on_open(index),
                    Err(error) => debug!(%error, "not listening yet"),
                },
                _ => {}
            }
        }
    }

    fn look(&self) -> Result<Option<u32>, NoWay> {
        match &self.shared.config.bind {
            None => Ok(None),
            Some(BindTo::Addr(ip)) => interfaces::from(*ip).map(|()| None),
            Some(BindTo::Interface(name)) => interfaces::through(name).map(Some),
        }
    }

    /// Nothing can leave any more.
    fn on_shut(&self, why: &NoWay) {
        warn!(%why, "nothing can leave");
        let shared = &self.shared;
        shared.way.set_open(false);
        shared.credits.borrow_mut().dials = 0;
        shared.trackers.http.forget_idle();
        for driver in self.drivers() {
            driver.close_all();
        }
        for search in self.searches() {
            search.on_way_shut();
        }
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message: format!("{why}: everything waits, nothing is sent any other way"),
            hint: "it goes on by itself when that works again (--bind)".to_owned(),
        });
    }

    /// Opens every socket anew, on the same port.
    async fn reopen(&self) -> io::Result<()> {
        self.close();
        for mut task in self.tasks.take() {
            if tokio::time::timeout(END_TIMEOUT, &mut task).await.is_err() {
                task.abort();
            }
        }
        self.udp_port.replace(Vec::new());
        let shared = &self.shared;
        let mut sockets = match shared.config.port {
            PortChoice::Nowhere => Sockets::default(),
            _ => Sockets::on(
                &listen_addrs(&shared.config),
                shared.port.get(),
                &shared.config,
                &shared.socket_options,
            )?,
        };
        // Behind a proxy datagrams go through its relay alone.
        if let Some(trackers) = &self.trackers {
            trackers.reopen()?;
            self.udp_port.replace(sockets.take_udp());
        }
        *self.listeners.borrow_mut() = sockets.listeners;
        self.listen();
        Ok(())
    }

    /// Things leave again.
    fn on_open(&self, index: Option<u32>) {
        let shared = &self.shared;
        self.index.set(index);
        shared.way.set_open(true);
        let what = match &shared.config.bind {
            Some(BindTo::Interface(name)) => format!("network interface {name}"),
            Some(BindTo::Addr(ip)) => ip.to_string(),
            None => return,
        };
        info!(what, "things leave again");
        shared.emit(SessionEvent::Warning {
            info_hash: None,
            message: format!("{what} works again: transfers go on"),
            hint: "nothing has to be done".to_owned(),
        });
        if let Some(dht) = shared.dht() {
            dht.on_way_back();
        }
        tell_all(&self.drivers(), &self.searches());
        let shared = shared.clone();
        tokio_uring::spawn(async move {
            for pause in DIAL_AGAIN {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = shared.way.shut() => return,
                    () = shared.stopping() => return,
                }
                let drivers: Vec<_> = shared.torrents.borrow().values().cloned().collect();
                let searches: Vec<_> = shared.searches.borrow().values().cloned().collect();
                tell_all(&drivers, &searches);
            }
        });
    }

    fn drivers(&self) -> Vec<Rc<super::driver::Driver>> {
        self.shared.torrents.borrow().values().cloned().collect()
    }

    fn searches(&self) -> Vec<Rc<metadata::Search>> {
        self.shared.searches.borrow().values().cloned().collect()
    }
}

fn tell_all(drivers: &[Rc<super::driver::Driver>], searches: &[Rc<metadata::Search>]) {
    drivers.iter().for_each(|driver| driver.on_way_back());
    searches.iter().for_each(|search| search.on_way_back());
}

fn cannot_listen(bind: &Option<BindTo>, port: u16, error: &io::Error) -> SessionError {
    let is = |errno| error.raw_os_error() == Some(errno);
    match bind {
        Some(BindTo::Interface(name)) if is(libc::ENODEV) => SessionError::new(
            format!("there is no network interface {name}"),
            "`ip link` lists those there are: name one with --bind",
        ),
        Some(BindTo::Addr(ip)) if is(libc::EADDRNOTAVAIL) => SessionError::new(
            format!("{ip} is no address of this machine"),
            "`ip addr` lists those there are: name one with --bind",
        ),
        _ if error.kind() == io::ErrorKind::PermissionDenied && (1..1024).contains(&port) => {
            SessionError::new(
                format!("port {port} is not open to this user: {error}"),
                "choose one from 1024 up with --port",
            )
        }
        Some(BindTo::Interface(name)) => SessionError::new(
            format!("cannot listen on interface {name}: {error}"),
            "check --bind and --port",
        ),
        Some(BindTo::Addr(ip)) => SessionError::new(
            format!("cannot listen on {ip}: {error}"),
            "check --bind and --port",
        ),
        None => SessionError::new(
            format!("cannot listen on port {port}: {error}"),
            "choose another with --port, or any free one with --port 0",
        ),
    }
}

fn listen_addrs(config: &SessionConfig) -> Vec<IpAddr> {
    match &config.bind {
        Some(BindTo::Addr(ip)) => vec![*ip],
        _ if config.ipv6 => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        _ => vec![Ipv4Addr::UNSPECIFIED.into()],
    }
}

fn is_no_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}
