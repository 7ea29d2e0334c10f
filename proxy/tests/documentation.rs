//! What the documentation shows is what the appliance takes.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use support::{Setup, mksgate};

const CONFIGURATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md"));

const DESK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/desk.md"));
/// Of "password".
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$k9b5i7yRdZjUrNMzdEp1+w";
/// The example of RFC 7517, A.1.
const JWKS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM", "use": "sig", "kid": "1"}]}"#;

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

#[test]
fn the_documented_configuration_is_accepted_as_it_stands() {
    let setup = Setup::new();
    let dir = setup.dir.path();
    fs::create_dir(dir.join("tls")).unwrap();
    for file in ["cert.pem", "key.pem"] {
        fs::rename(dir.join(file), dir.join("tls").join(file)).unwrap();
    }
    let shown = blocks(CONFIGURATION, "toml");
    assert!(!shown.is_empty(), "docs/configuration.md shows a configuration");
    let [desk, users] = blocks(DESK, "toml")[..] else { panic!("docs/desk.md shows two files") };
    for (file, text) in [
        ("vcenter.secret", "secret\n".to_owned()),
        ("portal.token", "secret\n".to_owned()),
        ("portals.pem", fs::read_to_string(dir.join("tls/cert.pem")).unwrap()),
        ("idp-jwks.json", JWKS.to_owned()),
        ("desk-users.toml", users.replace("$argon2id$v=19$…", HASH)),
    ] {
        fs::write(dir.join(file), text).unwrap();
        fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0o600)).unwrap();
    }
    for text in shown {
        fs::write(setup.config_path(), format!("{text}\n{desk}")).unwrap();
        let check = mksgate().args(["check", "--config"]).arg(setup.config_path()).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}
