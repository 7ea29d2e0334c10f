//! `mksgate ticket`: makes keys, seals tickets, shows what is in them.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

use super::output::Outcome;
use super::revoke::RevokeCommand;
use crate::client::url::{host_and_port, mks_url};
use crate::ticket::{Claims, KeyError, KeyRing, MAX_SEALED, SealError, TicketError, create_key_file};

/// The longest ticket that fits into a line of the raw doors' dialogue, `PASS ` included.
const MAX_RAW_DOORS: usize = crate::protocol::line::MAX_LINE - "PASS ".len();
/// Longest claims file that is read, in bytes.
const MAX_CLAIMS: u64 = 64 * 1024;

/// `mksgate ticket …`
#[derive(Debug, Args)]
pub struct TicketCommand {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a new key; from the next reload on, it seals
    Keygen(Keygen),
    /// Seal a ticket with the newest key and print it
    Seal(Box<Seal>),
    /// Print the claims of a ticket, secrets masked
    Open(Open),
    /// Refuse tickets from now on and close the consoles they opened
    Revoke(RevokeCommand),
}

#[derive(Debug, Args)]
struct Keygen {
    /// The key directory; made if it is missing
    dir: PathBuf,
    /// The key's name; random if not given
    #[arg(long)]
    kid: Option<String>,
}

#[derive(Debug, Args)]
struct Keys {
    /// The key directory
    #[arg(long, value_name = "DIR", env = "MKSGATE_KEYS", default_value = "/etc/mksgate/keys")]
    keys: PathBuf,
}

#[derive(Debug, Args)]
struct Seal {
    #[command(flatten)]
    keys: Keys,
    /// Claims as JSON (docs/ticket-format.md), "-" for standard input; the options below win over it
    #[arg(long, value_name = "FILE")]
    claims: Option<PathBuf>,
    /// Whose limits and targets apply
    #[arg(long)]
    tenant: Option<String>,
    /// The person
    #[arg(long)]
    user: Option<String>,
    /// What the client asks for: the VM's id or configuration file
    #[arg(long)]
    vm: Option<String>,
    /// The target's protocol: esxi-mks, esxi-webmks, esx-two-pass, vnc, vcenter
    #[arg(long)]
    kind: Option<String>,
    /// The target's name or address
    #[arg(long)]
    host: Option<String>,
    /// The target's port
    #[arg(long)]
    port: Option<u16>,
    /// A file with the target's own ticket or password, "-" for standard input
    #[arg(long, value_name = "FILE")]
    target_ticket_file: Option<PathBuf>,
    /// The target's own ticket or password; other users of this host can read it in the process list
    #[arg(long, value_name = "TICKET", conflicts_with = "target_ticket_file")]
    target_ticket: Option<String>,
    /// The VM's configuration file as the target knows it, where that is not VM
    #[arg(long, value_name = "PATH")]
    cfg_file: Option<String>,
    /// An accepted certificate's SHA-1 or SHA-256; may be given several times
    #[arg(long, value_name = "HEX")]
    thumbprint: Vec<String>,
    /// Whether the target speaks TLS, where that is not the kind's usual way
    #[arg(long)]
    tls: Option<bool>,
    /// The only address it may come from
    #[arg(long, value_name = "IP")]
    source: Option<IpAddr>,
    /// Connections at once, up to the gate's own limit
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// Longest life of a session
    #[arg(long, value_name = "SECONDS")]
    session_seconds: Option<u64>,
    /// Who mints it
    #[arg(long)]
    iss: Option<String>,
    /// The cell it is meant for
    #[arg(long)]
    aud: Option<String>,
    /// The ticket's own name; random if not given
    #[arg(long)]
    jti: Option<String>,
    /// Seconds until exp, where the claims do not name it; the gate's first-use and reconnect times still apply
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    lifetime: u64,
    /// Print an mks:// URL for the gate at this address instead of the bare ticket
    #[arg(long, value_name = "HOST[:PORT]")]
    url: Option<String>,
}

#[derive(Debug, Args)]
struct Open {
    #[command(flatten)]
    keys: Keys,
    /// The ticket; read from standard input if not given
    ticket: Option<String>,
    /// Print the target's ticket too
    #[arg(long)]
    show_secrets: bool,
}

/// Why a ticket command failed.
#[derive(Debug, Error)]
pub enum TicketCommandError {
    /// The key directory or a file of it.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The claims cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The ticket cannot be opened.
    #[error(transparent)]
    Open(#[from] TicketError),
    /// Claims that are not the JSON of docs/ticket-format.md.
    #[error(
        "{whence}: {why}; docs/ticket-format.md lists the claims, `mksgate ticket seal --help` their options"
    )]
    Claims {
        /// Where they came from.
        whence: String,
        /// What is wrong.
        why: String,
    },
    /// A file or a standard stream.
    #[error("{what}: {error}")]
    Io {
        /// Which.
        what: String,
        /// The system's answer.
        error: io::Error,
    },
}

type Result<T> = std::result::Result<T, TicketCommandError>;

impl TicketCommand {
    /// Runs it; what was asked for goes to standard output, remarks to standard error.
    pub fn run(self) -> Outcome {
        let now = SystemTime::now();
        match self.verb {
            Verb::Keygen(keygen) => Ok(keygen.run(now)?),
            Verb::Seal(seal) => Ok(seal.run(now)?),
            Verb::Open(open) => Ok(open.run(now)?),
            Verb::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Keygen {
    fn run(self, now: SystemTime) -> Result<()> {
        let (kid, path) = create_key_file(&self.dir, self.kid.as_deref(), now)?;
        eprintln!("wrote {}", path.display());
        print(&kid)
    }
}

impl Seal {
    fn run(mut self, now: SystemTime) -> Result<()> {
        let ring = KeyRing::load(&self.keys.keys)?;
        let url = self.url.take();
        if url.as_deref().is_some_and(|gate| host_and_port(gate).is_err()) {
            let why = "--url takes HOST[:PORT], an IPv6 address in brackets".to_owned();
            return Err(TicketCommandError::Claims { whence: "the options".to_owned(), why });
        }
        let claims = self.claims(now)?;
        let sealed = ring.seal(&claims)?;
        eprintln!("ticket {:?}, sealed with key {:?}", claims.jti, ring.newest());
        if sealed.len() > MAX_RAW_DOORS {
            eprintln!(
                "remark: {} bytes long; the doors on TCP 902 and GET /mks take tickets of up to {MAX_RAW_DOORS}",
                sealed.len()
            );
        }
        match url {
            Some(gate) => print(&mks_url(&gate, &claims.vm, &sealed)),
            None => print(&sealed),
        }
    }

    /// The claims file, the options over it, and what neither names.
    fn claims(mut self, now: SystemTime) -> Result<Claims> {
        let (whence, mut claims) = match self.claims.take() {
            Some(path) => (display(&path), read_claims(&path)?),
            None => ("the options".to_owned(), Map::new()),
        };
        if let Some(path) = self.target_ticket_file.take() {
            self.target_ticket = Some(read_text(&path, MAX_CLAIMS)?.trim_end().to_owned());
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let lifetime = self.lifetime;
        self.overlay(&mut claims)?;
        if !claims.contains_key("jti") {
            claims.insert("jti".to_owned(), random_name()?);
        }
        let iat = claims.entry("iat").or_insert_with(|| now.into()).clone();
        let from = claims.entry("nbf").or_insert(iat).as_u64().unwrap_or(now);
        claims.entry("exp").or_insert_with(|| from.saturating_add(lifetime).into());
        serde_json::from_value(Value::Object(claims))
            .map_err(|error| TicketCommandError::Claims { whence, why: error.to_string() })
    }

    fn overlay(self, claims: &mut Map<String, Value>) -> Result<()> {
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                claims.insert(name.to_owned(), value);
            }
        };
        put("tenant", self.tenant.map(Into::into));
        put("user", self.user.map(Into::into));
        put("vm", self.vm.map(Into::into));
        put("source", self.source.map(|ip| ip.to_string().into()));
        put("max_connections", self.max_connections.map(Into::into));
        put("session_seconds", self.session_seconds.map(Into::into));
        put("iss", self.iss.map(Into::into));
        put("aud", self.aud.map(Into::into));
        put("jti", self.jti.map(Into::into));
        let target = claims.entry("target").or_insert_with(|| Map::new().into());
        let Some(target) = target.as_object_mut() else {
            let why = "target is no JSON object".to_owned();
            return Err(TicketCommandError::Claims { whence: "the claims file".to_owned(), why });
        };
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                target.insert(name.to_owned(), value);
            }
        };
        put("kind", self.kind.map(Into::into));
        put("host", self.host.map(Into::into));
        put("port", self.port.map(Into::into));
        put("ticket", self.target_ticket.map(Into::into));
        put("cfg_file", self.cfg_file.map(Into::into));
        put("thumbprints", (!self.thumbprint.is_empty()).then(|| self.thumbprint.into()));
        put("tls", self.tls.map(Into::into));
        Ok(())
    }
}

impl Open {
    fn run(self, now: SystemTime) -> Result<()> {
        let ring = KeyRing::load(&self.keys.keys)?;
        let sealed = match self.ticket {
            Some(ticket) => ticket,
            None => read_text(Path::new("-"), MAX_SEALED as u64 + 1)?.to_string(),
        };
        let (mut claims, kid) = ring.inspect(sealed.trim())?;
        if let Some(ticket) = &mut claims.target.ticket
            && !self.show_secrets
        {
            *ticket = "(secret; --show-secrets prints it)".to_owned();
        }
        eprintln!("sealed with key {kid:?}; {}", when(&claims, now));
        let json = serde_json::to_string_pretty(&claims);
        print(&json.map_err(|error| TicketCommandError::Io { what: "JSON".to_owned(), error: error.into() })?)
    }
}

/// What the times of a ticket mean now. First use and reconnect are the gate's to judge.
fn when(claims: &Claims, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (from, minted) = (claims.nbf.max(claims.iat), claims.iat);
    if now < from {
        format!("valid in {} s", from - now)
    } else if now >= claims.exp {
        format!("expired {} s ago", now - claims.exp)
    } else {
        format!("minted {} s ago, expires in {} s", now - minted, claims.exp - now)
    }
}

fn random_name() -> Result<Value> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
}

fn read_claims(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path, MAX_CLAIMS)?;
    serde_json::from_str(&text)
        .map_err(|error| TicketCommandError::Claims { whence: display(path), why: error.to_string() })
}

/// A whole small file, or standard input for "-".
fn read_text(path: &Path, longest: u64) -> Result<Zeroizing<String>> {
    let io_error = |error| TicketCommandError::Io { what: display(path), error };
    let mut text = Zeroizing::new(String::new());
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(longest + 1).read_to_string(&mut text),
        _ => std::fs::File::open(path).and_then(|file| file.take(longest + 1).read_to_string(&mut text)),
    };
    match read {
        Ok(len) if len as u64 <= longest => Ok(text),
        Ok(_) => Err(io_error(io::Error::other(format!("longer than {longest} bytes")))),
        Err(error) => Err(io_error(error)),
    }
}

fn display(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// One line on standard output; a reader that is gone is no panic.
fn print(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}")
        .map_err(|error| TicketCommandError::Io { what: "standard output".to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ticket: TicketCommand,
    }

    fn seal(args: &[&str]) -> Result<Claims> {
        let cli = Cli::try_parse_from(["t", "seal"].iter().chain(args)).unwrap();
        let Verb::Seal(seal) = cli.ticket.verb else { panic!("seal") };
        seal.claims(UNIX_EPOCH + std::time::Duration::from_secs(1000))
    }

    const LEAST: [&str; 10] =
        ["--tenant", "acme", "--user", "ada", "--vm", "vm-61", "--kind", "esxi-mks", "--host", "esx1"];

    #[test]
    fn options_are_enough() {
        let claims = seal(&LEAST).unwrap();
        assert_eq!((claims.iat, claims.nbf, claims.exp), (1000, 1000, 4600));
        assert_eq!((&*claims.tenant, &*claims.target.host, claims.jti.len()), ("acme", "esx1", 32));
        assert_ne!(seal(&LEAST).unwrap().jti, claims.jti);
        assert!(claims.validate().is_ok());
    }

    #[test]
    fn options_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let json = r#"{"jti":"j","iat":5,"user":"bob","tenant":"t","vm":"v","source":"::1",
                       "target":{"kind":"vnc","host":"h","ticket":"pw","thumbprints":[]}}"#;
        std::fs::write(file.path(), json).unwrap();
        let path = file.path().to_str().unwrap();
        let claims =
            seal(&["--claims", path, "--user", "ada", "--port", "5901", "--lifetime", "10"]).unwrap();
        assert_eq!((claims.iat, claims.nbf, claims.exp), (5, 5, 15));
        assert_eq!((&*claims.user, &*claims.jti, claims.target.port), ("ada", "j", Some(5901)));
        assert_eq!(claims.target.ticket.as_deref(), Some("pw"));
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "from-file\n").unwrap();
        let claims =
            seal(&["--claims", path, "--target-ticket-file", secret.path().to_str().unwrap()]).unwrap();
        assert_eq!(claims.target.ticket.as_deref(), Some("from-file"));
    }

    #[test]
    fn what_is_missing_or_odd_is_named() {
        let error = seal(&["--tenant", "acme"]).unwrap_err().to_string();
        assert!(error.contains("missing field") && error.contains("ticket-format.md"), "{error}");
        let mut odd = LEAST;
        odd[7] = "telnet";
        let error = seal(&odd).unwrap_err().to_string();
        assert!(error.contains("telnet") && error.contains("esxi-mks"), "{error}");
        let error = seal(&["--claims", "/nonexistent/claims.json"]).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/claims.json"), "{error}");
    }

    #[test]
    fn times_are_told_in_words() {
        let claims = seal(&LEAST).unwrap();
        let at = |s| when(&claims, UNIX_EPOCH + std::time::Duration::from_secs(s));
        assert_eq!(at(900), "valid in 100 s");
        assert_eq!(at(1010), "minted 10 s ago, expires in 3590 s");
        assert_eq!(at(4600), "expired 0 s ago");
    }
}
