//! Where the control server listens, and the token that opens it. Layer 6.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tracing::{info, warn};

use super::backend::Backend;
use super::guard::Credentials;
use super::live::Live;
use super::qbt::Qbt;
use super::roots::Roots;
use super::rpc::Rpc;
use super::server::{self, Access, Shared};
use super::web_ui::WebUi;
use crate::daemon::{Control, Service};
use crate::session::SessionConfig;
use crate::uring::inherited;
use crate::uring::random::random;

/// The longest password that a file may hold.
const PASSWORD_BYTES_MAX: usize = 1_024;

/// `FileDescriptorName=` of sockets that a service manager hands over for it.
const PURPOSE: &str = "control";

/// What the server is told.
#[derive(Clone, Debug, Default)]
pub struct ControlSettings {
    /// `None` listens on no address.
    pub listen: Option<SocketAddr>,
    /// The unix socket; `None` is `control.sock` in the state folder.
    pub socket: Option<PathBuf>,
    /// With a password of one's own; `None` takes any name.
    pub user: Option<String>,
    /// A file whose first line is the password; `None` has a token made, in `control.token` of the state folder.
    pub password_file: Option<PathBuf>,
    /// Names besides addresses and `localhost` that the server answers to.
    pub host_names: Vec<String>,
    /// Folders besides the one for downloads that data may lie in.
    pub roots: Vec<PathBuf>,
    /// A folder that is served in place of the page.
    pub web_ui: Option<PathBuf>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("the control server may not listen on {0} without a password")]
    Open(SocketAddr),
    #[error("cannot listen on {0}: {1}")]
    Address(SocketAddr, #[source] io::Error),
    #[error("cannot listen on {}: {error}", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error("cannot use {}: {error}", path.display())]
    Secret { path: PathBuf, error: io::Error },
    #[error("cannot serve {} as the page: {error}", path.display())]
    WebUi { path: PathBuf, error: io::Error },
}

impl ListenError {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            ListenError::Open(_) => "name a file with a password: --api-password-file",
            ListenError::Address(..) => "choose another address with --api, or none: --api off",
            ListenError::Socket { .. } => "choose another place with --api-socket",
            ListenError::WebUi { .. } => "name a folder with an index.html with --web-ui",
            ListenError::Secret { .. } => {
                "the file holds one line and is for its owner only: chmod 600"
            }
        }
    }
}

/// Sockets that are open, before anything is served.
pub struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    access: Access,
    roots: Roots,
    web_ui: Option<WebUi>,
    session: SessionConfig,
    session_id: String,
}

impl Listeners {
    /// Opens them, and takes those that a service manager hands over.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn open(
        settings: &ControlSettings,
        session: &SessionConfig,
    ) -> Result<Listeners, ListenError> {
        let state = &session.state_dir;
        let (mut tcp, mut unix) = inherited_sockets();
        let is_own = settings.password_file.is_some();
        for listener in &tcp {
            check_exposed(listener.local_addr().ok(), is_own)?;
        }
        if let Some(addr) = settings.listen.filter(|_| tcp.is_empty()) {
            check_exposed(Some(addr), is_own)?;
            let bound = TcpListener::bind(addr);
            tcp.push(bound.map_err(|error| ListenError::Address(addr, error))?);
        }
        if unix.is_empty() {
            let path = settings.socket.clone();
            let path = path.unwrap_or_else(|| socket_path(state));
            let bound = bind_unix(&path);
            unix.push(bound.map_err(|error| ListenError::Socket { path, error })?);
        }
        let password = match &settings.password_file {
            Some(path) => read_password(path),
            None => token(&state.join("control.token")),
        };
        let password = password.map_err(|(path, error)| ListenError::Secret { path, error })?;
        let web_ui = settings.web_ui.as_ref().map(|path| {
            WebUi::open(path).map_err(|error| ListenError::WebUi {
                path: path.clone(),
                error,
            })
        });
        let no_id = |error| ListenError::Secret {
            path: state.clone(),
            error,
        };
        Ok(Listeners {
            tcp,
            unix,
            access: Access {
                credentials: Credentials {
                    user: settings.user.clone().filter(|_| is_own),
                    password,
                },
                host_names: settings.host_names.clone(),
            },
            roots: Roots::new(settings.roots.clone()),
            web_ui: web_ui.transpose()?,
            session: session.clone(),
            session_id: random_text().map_err(no_id)?,
        })
    }

    /// Where it listens over TCP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.tcp.iter().map(TcpListener::local_addr);
        addresses.filter_map(Result::ok).collect()
    }

    /// What a daemon runs on its control thread.
    pub fn service(self) -> Service {
        Box::new(|control| Box::pin(self.serve(control)))
    }

    async fn serve(self, control: Control) {
        let live = Rc::new(Live::new(control, &self.session));
        let facts = live.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn_local(async move {
            facts.known().await;
            facts.read_facts().await;
        });
        let rpc = Rpc::new(live, self.roots, self.session_id);
        let qbt = Qbt::open(&self.session.state_dir);
        let shared = Shared::new(rpc, qbt, self.access, self.web_ui);
        for listener in self.tcp {
            let listener = listener
                .set_nonblocking(true)
                .and_then(|()| tokio::net::TcpListener::from_std(listener));
            match listener {
                Ok(listener) => {
                    tasks.spawn_local(server::serve_tcp(shared.clone(), listener));
                }
                Err(error) => warn!(%error, "a control socket cannot be used"),
            }
        }
        for listener in self.unix {
            let listener = listener
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixListener::from_std(listener));
            match listener {
                Ok(listener) => {
                    tasks.spawn_local(server::serve_unix(shared.clone(), listener));
                }
                Err(error) => warn!(%error, "a control socket cannot be used"),
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// Where `gyre ctl` finds the daemon of a state folder.
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("control.sock")
}

fn check_exposed(addr: Option<SocketAddr>, is_own: bool) -> Result<(), ListenError> {
    match addr {
        Some(addr) if !addr.ip().is_loopback() && !is_own => Err(ListenError::Open(addr)),
        _ => Ok(()),
    }
}

fn inherited_sockets() -> (Vec<TcpListener>, Vec<UnixListener>) {
    let (mut tcp, mut unix) = (Vec::new(), Vec::new());
    for socket in inherited::take() {
        if !socket.is_for(PURPOSE) || !socket.takes_connections() {
            warn!(
                name = ?socket.name,
                "a socket that was handed over is no listener of the control server: it is left alone"
            );
            continue;
        }
        // Each kind tells its address only if it is of that kind.
        let as_unix = UnixListener::from(socket.fd);
        if as_unix.local_addr().is_ok() {
            unix.push(as_unix);
            continue;
        }
        let as_tcp = TcpListener::from(std::os::fd::OwnedFd::from(as_unix));
        match as_tcp.local_addr() {
            Ok(_) => tcp.push(as_tcp),
            Err(_) => info!(name = ?socket.name, "a socket of another kind is left alone"),
        }
    }
    (tcp, unix)
}

/// A socket for the owner alone. One that nobody listens on any more is replaced; the state folder's lock keeps two
/// daemons apart.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = fs::symlink_metadata(path)
        && found.file_type().is_socket()
    {
        if UnixStream::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    // Until here others may have connected: who they are is asked at each connection.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

type Secret = Result<String, (PathBuf, io::Error)>;

fn read_password(path: &Path) -> Secret {
    let failed = |error: io::Error| (path.to_owned(), error);
    let found = fs::metadata(path).map_err(failed)?;
    if found.permissions().mode() & 0o077 != 0 {
        return Err(failed(io::Error::other("others may read it")));
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let line = text.lines().next().unwrap_or_default().trim();
    match line.len() {
        1..=PASSWORD_BYTES_MAX => Ok(line.to_owned()),
        _ => Err(failed(io::Error::other("its first line is no password"))),
    }
}

/// The token that was made once, or a new one.
fn token(path: &Path) -> Secret {
    let failed = |error: io::Error| (path.to_owned(), error);
    // An empty one is what is left where there was no room for it.
    if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
        return read_password(path);
    }
    let token = random_text().map_err(failed)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let _ = fs::remove_file(new);
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(new);
    let written = file.and_then(|mut file| {
        writeln!(file, "{token}")?;
        file.sync_all()
    });
    // Under its name only when it is whole.
    let placed = written.and_then(|()| fs::rename(new, path));
    placed.map_err(failed)?;
    info!(path = %path.display(), "a token for the control server was made");
    Ok(token)
}

/// 192 bits as text.
fn random_text() -> io::Result<String> {
    let bytes = random::<24>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.token");
        let first = token(&path).unwrap();
        assert_eq!(first.len(), 48);
        assert_eq!(token(&path).unwrap(), first);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(token(&path).is_err(), "others may have read it");
        // Where there was no room for the first.
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let second = token(&path).unwrap();
        assert!(second.len() == 48 && second != first);
        assert_eq!(token(&path).unwrap(), second);
    }

    #[test]
    fn other_machines_need_a_password_and_a_live_socket_is_not_taken_over() {
        let addr: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert!(check_exposed(Some(addr), false).is_err());
        assert!(check_exposed(Some(addr), true).is_ok());
        assert!(check_exposed(Some("[::1]:0".parse().unwrap()), false).is_ok());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind_unix(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(bind_unix(&path).is_err());
        drop(listener);
        assert!(bind_unix(&path).is_ok());
    }
}
