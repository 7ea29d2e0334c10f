//! Who ends TLS in front of the generator's backend: our engine, HAProxy, nginx, stunnel, websockify; one proxy thread each,
//! where it can be told so. All show the same certificate and speak TLS 1.3 with the suite and curve that the clients offer.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};

use super::contender::stream_module;
use crate::run::Process;
use crate::run::process::{find, own, version};

/// A kind of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256.
    Ecdsa,
    /// RSA, 2048 bits.
    Rsa,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Ecdsa { "ECDSA P-256" } else { "RSA-2048" })
    }
}

/// A self-signed certificate and its key, as files.
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both, one after the other.
    pub combined: PathBuf,
}

impl Identity {
    /// Makes one.
    pub fn make(kind: KeyKind, dir: &Path) -> Result<Self> {
        let key = match kind {
            KeyKind::Ecdsa => KeyPair::generate()?,
            KeyKind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
        };
        let certificate = CertificateParams::new(vec!["console.example".into()])?.self_signed(&key)?;
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        let file = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(format!("{kind:?}-{name}.pem"));
            fs::write(&path, text)?;
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            Ok(path)
        };
        let combined = file("combined", certificate.clone() + &key)?;
        Ok(Self { certificate: file("certificate", certificate)?, key: file("key", key)?, combined })
    }
}

/// One who ends TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminator {
    /// The flow engine with TLS on the client's leg.
    Mksgate,
    /// The flow engine with WebSocket in it.
    MksgateWeb,
    /// HAProxy in TCP mode.
    Haproxy,
    /// nginx's stream module.
    Nginx,
    /// stunnel.
    Stunnel,
    /// websockify, for WebSocket.
    Websockify,
}

impl fmt::Display for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MksgateWeb => "mksgate wss",
            other => other.peer_name(),
        })
    }
}

/// One that takes connections; stopped when dropped.
pub struct Terminating {
    /// Which.
    pub terminator: Terminator,
    /// Where clients connect.
    pub address: SocketAddr,
    process: Process,
}

impl Terminating {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl fmt::Display for Terminating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.terminator.fmt(f)
    }
}

impl Terminator {
    /// The name for `--peers`.
    pub fn peer_name(self) -> &'static str {
        match self {
            Self::Mksgate | Self::MksgateWeb => "mksgate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Stunnel => "stunnel",
            Self::Websockify => "websockify",
        }
    }

    /// Whether its clients speak WebSocket.
    pub fn is_web(self) -> bool {
        matches!(self, Self::MksgateWeb | Self::Websockify)
    }

    /// Its version, for the report.
    pub fn version(self) -> String {
        match (self, self.program()) {
            (Self::Mksgate | Self::MksgateWeb, _) => env!("CARGO_PKG_VERSION").into(),
            (_, None) => "not installed".into(),
            (Self::Websockify, Some(_)) => "as installed".into(),
            (Self::Stunnel, Some(program)) => version(&program, "-version"),
            (_, Some(program)) => version(&program, "-v"),
        }
    }

    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Mksgate | Self::MksgateWeb => own("relay").ok(),
            Self::Stunnel => find("stunnel4").or_else(|| find("stunnel")),
            other => find(other.peer_name()),
        }
    }

    /// Starts it in front of `backend`, its files in `dir`. `None` if the program is not installed.
    pub fn start(self, backend: SocketAddr, identity: &Identity, dir: &Path) -> Result<Option<Terminating>> {
        let Some(program) = self.program() else { return Ok(None) };
        let name = self.to_string().replace(' ', "-");
        let log = dir.join(format!("tls-{name}.log"));
        if matches!(self, Self::Mksgate | Self::MksgateWeb) {
            let mut command = Command::new(program);
            command.args(["--connect", &backend.to_string()]);
            command.arg("--certificate").arg(&identity.certificate).arg("--key").arg(&identity.key);
            if self == Self::MksgateWeb {
                command.arg("--websocket");
            }
            let mut process = Process::start("relay", &command, &log)?;
            let line = process.first_line()?;
            let address = line.parse().with_context(|| format!("the relay says {line:?}"))?;
            return Ok(Some(Terminating { terminator: self, address, process }));
        }
        let (process, address) = Process::listening(&name, &log, |listen| {
            let file = dir.join(format!("tls-{name}.conf"));
            let mut command = Command::new(&program);
            match self {
                Self::Haproxy => {
                    fs::write(&file, haproxy(listen, backend, identity))?;
                    command.arg("-db").arg("-f").arg(&file);
                }
                Self::Nginx => {
                    fs::write(&file, nginx(listen, backend, identity, dir))?;
                    command.arg("-e").arg("stderr").arg("-p").arg(dir).arg("-c").arg(&file);
                }
                Self::Stunnel => {
                    fs::write(&file, stunnel(listen, backend, identity))?;
                    command.arg(&file);
                }
                _ => {
                    command.arg("--cert").arg(&identity.certificate).arg("--key").arg(&identity.key);
                    command.args(["--ssl-only", &listen.to_string(), &backend.to_string()]);
                }
            }
            Ok(command)
        })?;
        Ok(Some(Terminating { terminator: self, address, process }))
    }
}

fn haproxy(listen: SocketAddr, backend: SocketAddr, identity: &Identity) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 5500\n  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  bind {listen} ssl crt {} ciphersuites TLS_AES_128_GCM_SHA256 curves P-256 backlog 4096\n  \
         server backend {backend}\n",
        identity.combined.display()
    )
}

fn nginx(listen: SocketAddr, backend: SocketAddr, identity: &Identity, dir: &Path) -> String {
    format!(
        "{}daemon off;\nmaster_process off;\nworker_processes 1;\npid {};\nerror_log stderr crit;\n\
         events {{ worker_connections 16384; }}\n\
         stream {{ server {{ listen {listen} ssl backlog=4096; ssl_certificate {}; ssl_certificate_key {};\n\
         ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off; ssl_ecdh_curve prime256v1;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n\
         proxy_pass {backend}; proxy_timeout 1h; tcp_nodelay on; }} }}\n",
        stream_module(),
        dir.join("tls-nginx.pid").display(),
        identity.certificate.display(),
        identity.key.display(),
    )
}

fn stunnel(listen: SocketAddr, backend: SocketAddr, identity: &Identity) -> String {
    format!(
        "foreground = yes\npid =\nsyslog = no\ndebug = 3\nsslVersionMin = TLSv1.3\n\
         ciphersuites = TLS_AES_128_GCM_SHA256\ncurves = prime256v1\noptions = NO_TICKET\n\
         socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
         [bench]\naccept = {listen}\nconnect = {backend}\ncert = {}\nkey = {}\nTIMEOUTidle = 3600\n",
        identity.certificate.display(),
        identity.key.display(),
    )
}
