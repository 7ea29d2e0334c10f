//! TLS as an auditor sees it: testssl.sh at the TLS door finds nothing that is worse than LOW, under either policy.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use serde_json::Value;
use support::Setup;

/// Findings about the machine that looks, not about the appliance.
const OF_THE_AUDITOR: [&str; 1] = ["engine_problem"];

#[test]
fn testssl_finds_nothing_above_low_under_the_policy_modern() {
    audit("modern", &["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "X25519"], &[]);
}

#[test]
fn testssl_finds_nothing_above_low_under_the_policy_fips() {
    audit("fips", &["TLS_AES_256_GCM_SHA384", "prime256v1"], &["CHACHA20", "X25519"]);
}

/// Runs it; its findings hold all of `has` and none of `lacks`.
fn audit(policy: &str, has: &[&str], lacks: &[&str]) {
    if Command::new("testssl").arg("--version").output().is_err() {
        let full = std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|value| value == "1");
        assert!(!full, "testssl is missing; Debian package testssl.sh");
        return eprintln!("skipped: testssl is missing; Debian package testssl.sh");
    }
    let setup = Setup::new().with(&format!(
        "[tls]\npolicy = \"{policy}\"\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n\
         [limits]\nsource_rate = 100000\nsource_burst = 100000"
    ));
    certify(setup.dir.path());
    let gate = setup.start();
    let findings = gate.dir.path().join("findings.json");
    let output = Command::new("testssl")
        .args(["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "min", "--ip", "127.0.0.1"])
        // Protocols, ciphers, forward secrecy, the server's preference and defaults, HTTP's fields, every known weakness.
        .args(["--protocols", "--std", "--fs", "--server-preference", "--server-defaults", "--headers"])
        .args(["--vulnerable", "--add-ca"])
        .arg(gate.dir.path().join("ca.pem"))
        .arg("--jsonfile")
        .arg(&findings)
        .arg(format!("console.example:{}", gate.tls.port()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let findings = fs::read_to_string(&findings).unwrap_or_else(|error| panic!("{error}: {said}"));
    let findings: Vec<Value> = serde_json::from_str(&findings).unwrap();
    assert!(findings.len() > 60, "it looked at little: {said}");
    let bad: Vec<&Value> = findings
        .iter()
        .filter(|f| !matches!(f["severity"].as_str(), Some("OK" | "INFO" | "LOW")))
        .filter(|f| !OF_THE_AUDITOR.contains(&f["id"].as_str().unwrap()))
        .collect();
    assert!(bad.is_empty(), "{policy}: {bad:#?}");

    let finding = |id: &str| {
        let found = findings.iter().find(|f| f["id"] == id).unwrap_or_else(|| panic!("no {id}: {said}"));
        found["finding"].as_str().unwrap().to_owned()
    };
    for old in ["SSLv2", "SSLv3", "TLS1", "TLS1_1"] {
        assert_eq!(finding(old), "not offered", "{old}");
    }
    for new in ["TLS1_2", "TLS1_3"] {
        assert!(finding(new).starts_with("offered"), "{new}: {}", finding(new));
    }
    let all: String = findings.iter().filter_map(|f| f["finding"].as_str()).collect::<Vec<_>>().join("\n");
    for word in has {
        assert!(all.contains(word), "{policy} lacks {word}:\n{all}");
    }
    for word in lacks {
        assert!(!all.contains(word), "{policy} has {word}:\n{all}");
    }
}

/// A certificate as an authority gives it: what testssl says of the appliance's own is that nobody vouches for it.
fn certify(dir: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "The test's authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(authority, key);

    let mut params = CertificateParams::new(vec!["console.example".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "console.example");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.crl_distribution_points =
        vec![CrlDistributionPoint { uris: vec!["http://authority.example/crl".to_owned()] }];
    let now = SystemTime::now();
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after = (now + Duration::from_secs(90 * 86_400)).into();
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &issuer).unwrap();
    fs::write(dir.join("cert.pem"), leaf.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    fs::set_permissions(dir.join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
}
