//! What the documentation shows is what the appliance takes.

mod support;

use std::fs;

use support::{Setup, mksgate};

const CONFIGURATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md"));

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
    for text in shown {
        fs::write(setup.config_path(), text).unwrap();
        let check = mksgate().args(["check", "--config"]).arg(setup.config_path()).output().unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    }
}
