//! `mksgate console`: from whatever a portal hands out to an open viewer, logging in where that is needed.

use std::io::IsTerminal;
use std::path::{Path as FilePath, PathBuf};

use clap::Args;
use thiserror::Error;
use zeroize::Zeroizing;

use super::connect::{ConnectCommandError, Viewing, read_console, serve};
use crate::client::cell::{self, CellError, Credentials, Secret};
use crate::client::url::{Address, ConsoleUrl, UrlError};
use crate::client::vsphere::{self, VsphereError};
use crate::client::{
    ConnectError, Door, Path, Server, Target, Ticket, Trust, TrustError, Trusting, Way, WebTarget,
};
use crate::tls::Thumbprint;

/// Viewers that are looked for where none is named.
const VIEWERS: [&str; 5] = ["vncviewer", "xtigervncviewer", "xtightvncviewer", "gvncviewer", "vinagre"];
/// Where the password may stand.
const PASSWORD: &str = "MKSGATE_PASSWORD";

/// `mksgate console …`
#[derive(Debug, Args)]
pub struct ConsoleCommand {
    /// https://CELL/api/vApp/vm-61/screen/action/acquireTicket (or acquireMksTicket), mks://…, vmrc://…, wss://…; "-" reads it from
    /// standard input, where other users of this host cannot see it
    #[arg(value_name = "URL")]
    url: String,
    /// Who logs in at the cell. With a password behind it other users of this host can see that: better leave it out, and
    /// it is read from --password-file, from MKSGATE_PASSWORD, or asked for
    #[arg(long, short, value_name = "USER@ORG[:PASSWORD]")]
    credentials: Option<Hidden>,
    /// A file with the password
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A file with an identity provider's token, in place of a password
    #[arg(long, value_name = "FILE", conflicts_with = "password_file")]
    token_file: Option<PathBuf>,
    /// The cell's API version; the newest that both know where absent
    #[arg(long, value_name = "VERSION")]
    api_version: Option<String>,
    /// What to ask for, where it is not the URL's: the VM's id or configuration file
    #[arg(long)]
    vm: Option<String>,
    /// Run no viewer; say where one may connect
    #[arg(long, conflicts_with = "viewer")]
    no_viewer: bool,
    #[command(flatten)]
    viewing: Viewing,
}

/// What may hold a password; never printed.
#[derive(Clone)]
struct Hidden(Zeroizing<String>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

/// Why there is no console.
#[derive(Debug, Error)]
pub enum ConsoleCommandError {
    /// The URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The certificates.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The way there.
    #[error(transparent)]
    Way(#[from] ConnectError),
    /// The cell.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// The vCenter.
    #[error(transparent)]
    Vsphere(#[from] VsphereError),
    /// The viewing.
    #[error(transparent)]
    Viewing(#[from] ConnectCommandError),
    /// Something is missing or does not fit.
    #[error("{0}")]
    Usage(String),
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl ConsoleCommand {
    /// Runs until the consoles end, the ticket is of no more use, or Ctrl-C.
    pub fn run(mut self) -> Result<(), ConsoleCommandError> {
        let url = Zeroizing::new(std::mem::take(&mut self.url));
        let url = if *url == "-" { read_console()? } else { url };
        let address = Address::parse(&url)?;
        if self.viewing.viewer.is_none() && !self.no_viewer {
            self.viewing.viewer = find_viewer();
        }
        let serving = self.viewing.serving()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match address {
                Address::Console(url) => serve(Way::Mks(self.target(url)?), serving).await?,
                Address::Web { host, port, path } => {
                    let (server, vm) = (self.server(host, port)?, self.vm.clone());
                    serve(Way::Web(WebTarget { server, path: Path(path.0), vm }), serving).await?;
                }
                Address::Cell { host, port, path } => {
                    let who = self.credentials()?;
                    let server = self.server(host, port)?;
                    let url = cell::acquire(&server, &path, &who, self.api_version.as_deref()).await?;
                    drop(who);
                    serve(Way::Mks(self.target(url)?), serving).await?;
                }
                Address::Clone { host, port, ticket, moref } => {
                    let server = self.server(host, port)?;
                    let session = vsphere::clone_session(&server, &ticket.0).await?;
                    let served = async {
                        let target = self.target_of(&server, session.console(&moref).await?)?;
                        Ok::<_, ConsoleCommandError>(serve(Way::Mks(target), serving).await?)
                    };
                    let served = served.await;
                    // Its tickets may be good for as long as it lives.
                    session.log_out().await;
                    served?;
                }
            }
            Ok(())
        })
    }

    /// The gate that a URL names.
    fn target(&self, url: ConsoleUrl) -> Result<Target, ConsoleCommandError> {
        let door = if url.port == Some(902) { Door::Authd } else { Door::Mks };
        let port = url.port.unwrap_or(door.port());
        let proxy = self.viewing.proxy(variable, &url.host, port)?;
        let trust = Trusting::new(self.viewing.trust(url.thumbprint))?;
        let vm = self.vm.clone().unwrap_or(url.vm);
        let (host, ticket, sha256) = (url.host, Ticket(url.ticket), self.viewing.sha256);
        Ok(Target { host, port, door, proxy, trust, vm, ticket, sha256 })
    }

    /// The host that a vCenter names, known by the thumbprint in its answer. A host on the vCenter's own port is a gate's TLS door.
    fn target_of(
        &self,
        server: &Server,
        mut given: crate::protocol::soap::ticket::ConsoleTicket,
    ) -> Result<Target, ConsoleCommandError> {
        let port = given.port.unwrap_or(Door::Authd.port());
        let door = if port == server.port { Door::Mks } else { Door::Authd };
        let host = given.host.clone().unwrap_or_else(|| server.host.clone());
        let prints: Vec<Thumbprint> = given.thumbprints.iter().filter_map(|text| text.parse().ok()).collect();
        let trust = match self.viewing.trust(None) {
            Trust::Roots(None) if !prints.is_empty() => Trust::Thumbprints(prints),
            said => said,
        };
        let proxy = self.viewing.proxy(variable, &host, port)?;
        let vm = self.vm.clone().unwrap_or_else(|| std::mem::take(&mut given.cfg_file));
        let ticket = Ticket(Zeroizing::new(std::mem::take(&mut given.ticket)));
        let trust = Trusting::new(trust)?;
        Ok(Target { host, port, door, proxy, trust, vm, ticket, sha256: self.viewing.sha256 })
    }

    fn server(&self, host: String, port: u16) -> Result<Server, ConsoleCommandError> {
        let proxy = self.viewing.proxy(variable, &host, port)?;
        let trust = Trusting::new(self.viewing.trust(None))?;
        Ok(Server { host, port, proxy, trust })
    }

    /// Who logs in, and with what: the command line, a file, the environment, the terminal, in this order.
    fn credentials(&self) -> Result<Credentials, ConsoleCommandError> {
        let wanted = || {
            ConsoleCommandError::Usage(
                "a cell wants to know who you are: -c USER@ORG, and the password is asked for".into(),
            )
        };
        let given = self.credentials.as_ref().ok_or_else(wanted)?;
        let (name, password) = match given.0.split_once(':') {
            Some((name, password)) => (name, Some(Zeroizing::new(password.to_owned()))),
            None => (given.0.as_str(), None),
        };
        let name = name.to_owned();
        if !name.contains('@') {
            return Err(ConsoleCommandError::Usage("write the credentials as USER@ORG".into()));
        }
        if let Some(file) = &self.token_file {
            return Ok(Credentials { name, secret: Secret::Token(read_secret(file)?) });
        }
        let password = match (password, &self.password_file) {
            (Some(password), _) => {
                eprintln!(
                    "mksgate: a password on the command line can be seen by every user of this host; leave it out and it is asked for, or use --password-file or {PASSWORD}"
                );
                password
            }
            (None, Some(file)) => read_secret(file)?,
            (None, None) => match std::env::var(PASSWORD) {
                Ok(password) => Zeroizing::new(password),
                Err(_) if std::io::stdin().is_terminal() => {
                    Zeroizing::new(rpassword::prompt_password(format!("Password of {name}: "))?)
                }
                Err(_) => {
                    return Err(ConsoleCommandError::Usage(format!(
                        "no password: give --password-file or {PASSWORD}, or run this on a terminal and it is asked for"
                    )));
                }
            },
        };
        Ok(Credentials { name, secret: Secret::Password(password) })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The secret without the line end behind it.
fn read_secret(path: &FilePath) -> Result<Zeroizing<String>, ConsoleCommandError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| {
        ConsoleCommandError::Usage(format!("{}: cannot be read ({error})", path.display()))
    })?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(ConsoleCommandError::Usage(format!("{}: is empty", path.display())));
    }
    Ok(Zeroizing::new(secret.to_owned()))
}

/// The first viewer on the PATH, if there is one.
fn find_viewer() -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    VIEWERS.iter().find(|name| places.iter().any(|place| place.join(name).is_file())).map(|&name| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        console: ConsoleCommand,
    }

    fn command(args: &[&str]) -> ConsoleCommand {
        Cli::try_parse_from([&["c", "https://h/", "--insecure-accept-any-certificate"], args].concat())
            .unwrap()
            .console
    }

    #[test]
    fn a_password_is_looked_for_in_order_and_never_printed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from:the file\n").unwrap();
        let path = file.path().to_str().unwrap();
        let password = |args: &[&str]| {
            let who = command(args).credentials()?;
            let Secret::Password(password) = who.secret else { panic!() };
            Ok::<_, ConsoleCommandError>((who.name, password.to_string()))
        };
        assert_eq!(password(&["-c", "ann@acme:se:cret"]).unwrap(), ("ann@acme".into(), "se:cret".into()));
        let from_file = password(&["-c", "ann@acme", "--password-file", path]).unwrap();
        assert_eq!(from_file, ("ann@acme".into(), "from:the file".into()));
        for args in [&[][..], &["-c", "ann:x"], &["-c", "ann@acme", "--password-file", "/nonexistent"]] {
            assert!(password(args).is_err(), "{args:?}");
        }
        let printed = format!("{:?}", command(&["-c", "ann@acme:very-secret"]));
        assert!(!printed.contains("very-secret"), "{printed}");
        let token = command(&["-c", "ann@acme", "--token-file", path]).credentials().unwrap();
        assert!(matches!(token.secret, Secret::Token(token) if *token == "from:the file"));
    }
}
