//! Whether the address that clients use leads here.

use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use super::Finding;
use crate::config::Config;
use crate::tls::{Pinned, Thumbprint, certificate};

const CHECK: &str = "public address";
const PATIENCE: Duration = Duration::from_secs(5);

/// What a handshake with the address gave.
#[derive(Debug)]
enum Seen {
    /// Our certificate.
    Ours,
    /// Another one.
    Foreign,
    /// No handshake.
    Nothing(io::Error),
}

pub(super) fn examine(public: &str, config: &Config) -> Finding {
    let ours = certificate::load(&config.tls.certificate, &config.tls.key, &config.tls.policy.provider());
    let Some(leaf) =
        ours.ok().and_then(|certified| certified.cert.first().map(|leaf| Thumbprint::sha256(leaf)))
    else {
        return Finding::warn(
            CHECK,
            format!("{public}: not tried"),
            "repair the certificate first; it is what this host is known by",
        );
    };
    judge(public, &probe(public, leaf, config))
}

fn probe(public: &str, leaf: Thumbprint, config: &Config) -> Seen {
    handshake(public, leaf, config).unwrap_or_else(|error| {
        let foreign = matches!(
            error.get_ref().and_then(|inner| inner.downcast_ref()),
            Some(rustls::Error::InvalidCertificate(_))
        );
        if foreign { Seen::Foreign } else { Seen::Nothing(error) }
    })
}

fn handshake(public: &str, leaf: Thumbprint, config: &Config) -> io::Result<Seen> {
    let tls = Pinned::config(vec![leaf], config.tls.policy.provider()).map_err(io::Error::other)?;
    let address = public.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let host = public.rsplit_once(':').map_or(public, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let client = ClientConnection::new(Arc::new(tls), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(client, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    stream.conn.send_close_notify();
    let _ = stream.flush();
    Ok(Seen::Ours)
}

fn judge(public: &str, seen: &Seen) -> Finding {
    match seen {
        Seen::Ours => {
            Finding::ok(CHECK, format!("{public}: TLS ends here, or at a cell with the same certificate"))
        }
        Seen::Foreign => Finding::fail(
            CHECK,
            format!("{public}: shows another certificate"),
            "a load balancer ends TLS, or the address is not ours: pass TCP through (with PROXY protocol, its address in proxy_protocol.from)",
        ),
        Seen::Nothing(error) => Finding::fail(
            CHECK,
            format!("{public}: {error}"),
            "look at the load balancer's pool and health check, at NAT, and at firewalls; from inside, hairpin NAT may be missing",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::doctor::Verdict;
    use crate::tls::{Presented, server_config};

    fn pair(dir: &std::path::Path) -> Config {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["gate.example".into()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let text = "[listen]\ntls = [\"127.0.0.1:443\"]\n[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n[tickets]\nkeys = \"d\"\n";
        Config::parse(&dir.join("mksgate.toml"), text, &Default::default()).unwrap()
    }

    /// Answers one handshake with the certificate of `config`, then goes.
    fn serve(config: &Config) -> String {
        let provider = config.tls.policy.provider();
        let certified = certificate::load(&config.tls.certificate, &config.tls.key, &provider).unwrap();
        let tls = server_config(config.tls.policy, Presented::new(certified), None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut connection = rustls::ServerConnection::new(Arc::new(tls)).unwrap();
            while connection.is_handshaking() && connection.complete_io(&mut stream).is_ok() {}
        });
        address
    }

    #[test]
    fn the_certificate_tells_whether_it_is_us() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ours, other) = (pair(a.path()), pair(b.path()));
        let foreign = examine(&serve(&other), &ours);
        assert!(
            foreign.verdict == Verdict::Fail && foreign.found.contains("another certificate"),
            "{foreign:?}"
        );
        assert_eq!(examine(&serve(&ours), &ours).verdict, Verdict::Ok);
        std::fs::remove_file(a.path().join("cert.pem")).unwrap();
        assert_eq!(examine("127.0.0.1:1", &ours).verdict, Verdict::Warn, "nothing to know ourselves by");
        let ours = pair(a.path());
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        assert_eq!(examine(&gone, &ours).verdict, Verdict::Fail);
    }
}
