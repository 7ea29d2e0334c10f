//! The doors' certificate: readable, fitting its key, in time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::Finding;
use crate::config::Config;
use crate::tls::certificate;

const CHECK: &str = "certificate";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Public authorities' certificates live 47 to 398 days and are renewed when a third of that is left.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// When a certificate holds, seconds since the epoch.
struct Validity {
    from: i64,
    until: i64,
    self_signed: bool,
}

pub(super) fn examine(config: &Config, now: SystemTime) -> Vec<Finding> {
    let path = config.tls.certificate.display();
    let certified =
        match certificate::load(&config.tls.certificate, &config.tls.key, &config.tls.policy.provider()) {
            Ok(certified) => certified,
            Err(error) => {
                return vec![Finding::fail(
                    CHECK,
                    error.to_string(),
                    "put a chain and its key where [tls] says; the key: owner root, group mksgate, mode 0640",
                )];
            }
        };
    let Some(validity) = certified.cert.first().and_then(|leaf| read(leaf)) else {
        return vec![Finding::fail(CHECK, format!("{path}: not an X.509 certificate"), "put the leaf first")];
    };
    judge(&path.to_string(), &validity, now)
}

fn read(leaf: &[u8]) -> Option<Validity> {
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    Some(Validity {
        from: leaf.validity().not_before.timestamp(),
        until: leaf.validity().not_after.timestamp(),
        self_signed: leaf.subject() == leaf.issuer(),
    })
}

fn judge(path: &str, validity: &Validity, now: SystemTime) -> Vec<Finding> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
    let left = validity.until - now;
    let days = left / DAY.as_secs() as i64;
    if now < validity.from {
        let remedy = "look at this host's clock, or wait";
        return vec![Finding::fail(CHECK, format!("{path}: not valid yet"), remedy)];
    }
    if left <= 0 {
        let remedy = "renew it; a replaced file is noticed without a reload";
        return vec![Finding::fail(CHECK, format!("{path}: expired {} days ago", -days), remedy)];
    }
    let mut findings = vec![if left < SOON.as_secs() as i64 {
        Finding::warn(CHECK, format!("{path}: expires in {days} days"), "renew it")
    } else {
        Finding::ok(CHECK, format!("{path}: fits its key, holds for {days} days"))
    }];
    if validity.self_signed {
        findings.push(Finding::warn(
            CHECK,
            format!(
                "{path}: self-signed; browsers will warn, clients of the raw doors pin it and do not care"
            ),
            "for browsers, put a certificate of an authority there",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Verdict, worst};

    #[test]
    fn time_decides() {
        let day = |n: u64| UNIX_EPOCH + DAY * n as u32;
        let validity = Validity { from: 10 * 86_400, until: 110 * 86_400, self_signed: false };
        for (now, verdict, said) in [
            (9, Verdict::Fail, "not valid yet"),
            (11, Verdict::Ok, "holds for 99 days"),
            (100, Verdict::Warn, "expires in 10 days"),
            (120, Verdict::Fail, "expired 10 days ago"),
        ] {
            let findings = judge("c.pem", &validity, day(now));
            assert_eq!(worst(&findings), verdict);
            assert!(findings[0].found.contains(said), "{findings:?}");
        }
        let own = judge("c.pem", &Validity { self_signed: true, ..validity }, day(11));
        assert_eq!(worst(&own), Verdict::Warn);
    }

    #[test]
    fn another_ones_key_is_found_and_the_right_one_repairs_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pair = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let cert = rcgen::CertificateParams::new(vec!["gate.example".into()])
                .unwrap()
                .self_signed(&key)
                .unwrap();
            (cert.pem(), key.serialize_pem())
        };
        let write = |cert: &str, key: &str| {
            std::fs::write(dir.path().join("cert.pem"), cert).unwrap();
            std::fs::write(dir.path().join("key.pem"), key).unwrap();
            let mode = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(dir.path().join("key.pem"), mode).unwrap();
        };
        let text = "[listen]\ntls = [\"127.0.0.1:443\"]\n[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n[tickets]\nkeys = \"d\"\n";
        let config = Config::parse(&dir.path().join("mksgate.toml"), text, &Default::default()).unwrap();
        let found = || examine(&config, SystemTime::now());
        assert_eq!(worst(&found()), Verdict::Fail, "no file");
        let (a, b) = (pair(), pair());
        write(&a.0, &b.1);
        assert!(found()[0].found.contains("is not the key of"), "{:?}", found());
        write(&a.0, &a.1);
        assert_eq!(found()[0].verdict, Verdict::Ok);
    }
}
