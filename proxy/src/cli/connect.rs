//! `mksgate connect`: its options, made into a [`Target`].

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::client::url::{ConsoleUrl, UrlError, host_and_port, is_url};
use crate::client::{
    self, ClientError, ConnectError, Door, HttpProxy, Serving, Target, Ticket, Trust, TrustError, Trusting,
    Way,
};
use crate::ticket::MAX_SEALED;
use crate::tls::Thumbprint;

/// `mksgate connect …`
#[derive(Debug, Args)]
pub struct ConnectCommand {
    /// An mks:// or vmrc:// URL, or a sealed ticket (then --address and --vm too); "-" reads it from standard input, where other
    /// users of this host cannot see it
    #[arg(value_name = "URL|TICKET")]
    console: String,
    /// Which door of the gate: authd on TCP 902, or mks on TLS 443; by the port if not given
    #[arg(long, value_enum)]
    door: Option<Door>,
    /// The gate, where it is not the URL's
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<String>,
    /// What to ask for, where it is not the URL's: the VM's id or configuration file, as in the ticket
    #[arg(long)]
    vm: Option<String>,
    #[command(flatten)]
    viewing: Viewing,
}

/// What `mksgate connect` and `mksgate console` have in common.
#[derive(Debug, Args)]
pub(super) struct Viewing {
    /// Where the viewer connects
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:5900")]
    pub(super) listen: SocketAddr,
    /// Let viewers of other hosts connect; there is no password
    #[arg(long)]
    allow_remote_viewers: bool,
    /// A viewer to run; {host} and {port} stand for the address, or HOST::PORT is appended
    #[arg(long, value_name = "CMD")]
    pub(super) viewer: Option<String>,
    /// End with the first console
    #[arg(long)]
    once: bool,
    /// Accept the gate's certificate with this SHA-1 or SHA-256, whatever its chain; may be given several times
    #[arg(long, value_name = "HEX", conflicts_with_all = ["ca", "insecure_accept_any_certificate"])]
    thumbprint: Vec<Thumbprint>,
    /// Accept certificates that chain to a root of this PEM file instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure_accept_any_certificate")]
    ca: Option<PathBuf>,
    /// Send the ticket to whoever answers
    #[arg(long)]
    insecure_accept_any_certificate: bool,
    /// An HTTP proxy in place of the environment's HTTPS_PROXY, or "none"
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Ask for the SHA-256 of the VM's certificate (THUMBPRINT_SHA2) instead of its SHA-1
    #[arg(long)]
    pub(super) sha256: bool,
    /// How long a console that cannot be opened is tried again
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

/// Why `mksgate connect` did not do, or ended.
#[derive(Debug, Error)]
pub enum ConnectCommandError {
    /// The URL.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// The certificates.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ConnectError),
    /// The run.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something is missing or does not fit.
    #[error("{0}")]
    Usage(&'static str),
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl ConnectCommand {
    /// Runs until the consoles end, the ticket is of no more use, or Ctrl-C.
    pub fn run(self) -> Result<(), ConnectCommandError> {
        let serving = self.viewing.serving()?;
        let target = self.target(|name| std::env::var(name).ok())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(Way::Mks(target), serving))
    }

    fn target(mut self, variable: impl Fn(&str) -> Option<String>) -> Result<Target, ConnectCommandError> {
        let console = Zeroizing::new(std::mem::take(&mut self.console));
        let console = if *console == "-" { read_console()? } else { console };
        let url = is_url(&console).then(|| ConsoleUrl::parse(&console)).transpose()?;
        let named = self.address.as_deref().map(host_and_port).transpose()?;
        let missing = ConnectCommandError::Usage("a bare ticket needs --address HOST[:PORT] and --vm");
        let (host, port, vm, pinned, ticket) = match (url, named) {
            (Some(url), Some((host, port))) => (host, port, Some(url.vm), url.thumbprint, url.ticket),
            (Some(url), None) => (url.host, url.port, Some(url.vm), url.thumbprint, url.ticket),
            (None, Some((host, port))) => (host, port, None, None, Zeroizing::new(console.trim().to_owned())),
            (None, None) => return Err(missing),
        };
        let vm = self.vm.take().or(vm).ok_or(missing)?;
        let door = self.door.unwrap_or(if port == Some(902) { Door::Authd } else { Door::Mks });
        let port = port.unwrap_or(door.port());
        let proxy = self.viewing.proxy(variable, &host, port)?;
        let (sha256, trust) = (self.viewing.sha256, Trusting::new(self.viewing.trust(pinned))?);
        Ok(Target { host, port, door, proxy, trust, vm, ticket: Ticket(ticket), sha256 })
    }
}

/// Serves viewers until the consoles end, the ticket is of no more use, or Ctrl-C.
pub(super) async fn serve(way: Way, serving: Serving) -> Result<(), ConnectCommandError> {
    let served = client::serve(way, serving, |address| {
        println!("viewers connect to {}::{} (RFB, no password)", address.ip(), address.port());
    });
    tokio::select! {
        served = served => Ok(served?),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

impl Viewing {
    pub(super) fn serving(&self) -> Result<Serving, ConnectCommandError> {
        if !self.listen.ip().is_loopback() && !self.allow_remote_viewers {
            return Err(ConnectCommandError::Usage(
                "--listen is no loopback address, and whoever reaches it gets the console without a password; \
                 add --allow-remote-viewers if that is wanted",
            ));
        }
        Ok(Serving {
            listen: self.listen,
            viewer: self.viewer.clone(),
            once: self.once,
            patience: Duration::from_secs(self.patience),
        })
    }

    /// The proxy on the way to a server: the command line's, else the environment's.
    pub(super) fn proxy(
        &self,
        variable: impl Fn(&str) -> Option<String>,
        host: &str,
        port: u16,
    ) -> Result<Option<HttpProxy>, ConnectError> {
        match self.proxy.as_deref() {
            Some("none") => Ok(None),
            Some(text) => HttpProxy::parse(text).map(Some),
            None => HttpProxy::from_environment(variable, host, port),
        }
    }

    /// What the command line says, else what the URL says, else the system's roots.
    pub(super) fn trust(&self, pinned: Option<Thumbprint>) -> Trust {
        if self.insecure_accept_any_certificate {
            Trust::Anything
        } else if !self.thumbprint.is_empty() {
            Trust::Thumbprints(self.thumbprint.clone())
        } else if let (None, Some(pinned)) = (&self.ca, pinned) {
            Trust::Thumbprints(vec![pinned])
        } else {
            Trust::Roots(self.ca.clone())
        }
    }
}

pub(super) fn read_console() -> Result<Zeroizing<String>, std::io::Error> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().lock().take(4 * MAX_SEALED as u64).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        connect: ConnectCommand,
    }

    fn target(args: &str) -> Result<Target, ConnectCommandError> {
        let args = format!("c --insecure-accept-any-certificate {args}");
        let cli = Cli::try_parse_from(args.split_whitespace()).unwrap();
        cli.connect.target(|name| (name == "HTTPS_PROXY").then(|| "http://proxy:8080".into()))
    }

    fn where_to(args: &str) -> (String, u16, Door, String) {
        let target = target(args).unwrap();
        (target.host, target.port, target.door, target.vm)
    }

    #[test]
    fn urls_tickets_and_options_name_the_console() {
        let is = |host: &str, port, door, vm: &str| (host.to_owned(), port, door, vm.to_owned());
        for (args, expected) in [
            ("mks://gate/vm-61?ticket=t", is("gate", 443, Door::Mks, "vm-61")),
            ("mks://gate:902/vm-61?ticket=t", is("gate", 902, Door::Authd, "vm-61")),
            ("mks://gate/vm-61?ticket=t --door authd", is("gate", 902, Door::Authd, "vm-61")),
            ("mks://gate:902/vm-61?ticket=t --door mks", is("gate", 902, Door::Mks, "vm-61")),
            ("mks://gate:902/vm-61?ticket=t --address [::1]:9443", is("::1", 9443, Door::Mks, "vm-61")),
            ("mks://gate/vm-61?ticket=t --vm other", is("gate", 443, Door::Mks, "other")),
            ("e.y.J --address gate:8443 --vm vm-1", is("gate", 8443, Door::Mks, "vm-1")),
            ("vmrc://esx:902/?mksticket=t&path=/a.vmx", is("esx", 902, Door::Authd, "/a.vmx")),
        ] {
            assert_eq!(where_to(args), expected, "{args}");
        }
        for args in ["e.y.J", "e.y.J --vm x", "e.y.J --address gate", "mks://gate/?ticket=t"] {
            assert!(target(args).is_err(), "{args}");
        }
    }

    #[test]
    fn the_proxy_is_the_environments_unless_named() {
        let proxy = |args: &str| target(args).unwrap().proxy.map(|proxy| proxy.to_string());
        assert_eq!(proxy("mks://g/v?ticket=t").as_deref(), Some("proxy:8080"));
        assert_eq!(proxy("mks://g/v?ticket=t --proxy other:1").as_deref(), Some("other:1"));
        assert_eq!(proxy("mks://g/v?ticket=t --proxy none"), None);
    }

    #[test]
    fn the_ticket_is_not_printed() {
        let target = target("mks://g/v?ticket=very-secret").unwrap();
        assert!(!format!("{target:?}").contains("very-secret"));
    }
}
