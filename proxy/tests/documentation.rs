//! What the documentation shows is what the appliance takes.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use support::{Setup, mksgate};

const CONFIGURATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md"));

const DESK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/desk.md"));
/// Of "password".
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$k9b5i7yRdZjUrNMzdEp1+w";
/// The example of RFC 7517, A.1.
const JWKS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM", "use": "sig", "kid": "1"}]}"#;

const SPECIFICATION: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../SPECIFICATION.md"));

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

/// The Rust files below a folder of this workspace.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false if path.extension().is_some_and(|ending| ending == "rs") => vec![path],
            false => Vec::new(),
        })
        .collect()
}

/// The names of all test functions below `folder`.
fn tests(folder: &Path) -> BTreeSet<String> {
    let name = |code: &str| {
        let rest = code.split_once("fn ")?.1;
        Some(rest.split_once('(')?.0.to_owned())
    };
    let texts = sources(folder).into_iter().map(|file| fs::read_to_string(file).unwrap());
    texts.flat_map(|text| text.split("#[test]").skip(1).filter_map(name).collect::<Vec<_>>()).collect()
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let all: BTreeSet<_> = ["proxy/src", "proxy/tests", "proxy-common", "bench"]
        .iter()
        .flat_map(|f| tests(&workspace.join(f)))
        .collect();
    let rows = SPECIFICATION.lines().filter(|line| line.starts_with('|'));
    let named = rows.filter_map(|row| row.trim_end_matches('|').rsplit_once('|')).flat_map(|(_, by)| {
        by.split('`').skip(1).step_by(2).filter(|name| !name.contains('/')).collect::<Vec<_>>()
    });
    let missing: Vec<_> = named.filter(|name| !all.contains(*name)).collect();
    assert!(missing.is_empty(), "SPECIFICATION.md names tests that are not there: {missing:?}");
}

/// Every `mksgate …` of a text: the words of its command, and the options that follow.
fn commands(text: &str) -> BTreeSet<(Vec<String>, Vec<String>)> {
    let indented =
        text.lines().filter(|line| line.starts_with("    ")).flat_map(|line| line.split(['#', '|', ';']));
    let quoted =
        text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).flat_map(|code| code.split('|'));
    let code = indented.chain(quoted).flat_map(|code| code.split("&&").collect::<Vec<_>>());
    let is_word =
        |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    code.filter_map(|code| {
        let mut all = code.split_whitespace().skip_while(|word| *word != "mksgate").skip(1).peekable();
        all.peek()?;
        let all: Vec<&str> = all.collect();
        // Two spaces and more are between a command and what a table says of it.
        let end = code.split("mksgate ").nth(1).and_then(|rest| rest.split("  ").next()).unwrap_or_default();
        let all = &all[..end.split_whitespace().count().min(all.len())];
        let path = all.iter().copied().take_while(is_word).map(str::to_owned).collect();
        let trim =
            |word: &str| word.trim_matches(['[', ']', '…']).split('=').next().unwrap_or_default().to_owned();
        let options = all.iter().map(|word| trim(word)).filter(|word| word.starts_with("--")).collect();
        Some((path, options))
    })
    .collect()
}

#[test]
fn every_command_that_the_operators_are_told_exists_with_its_options() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut seen = BTreeSet::new();
    for file in
        ["operations.md", "xdp.md", "browser.md", "vcenter.md", "desk.md", "ticket-format.md", "../README.md"]
    {
        let text = fs::read_to_string(docs.join(file)).unwrap();
        for (path, options) in commands(&text) {
            let help = mksgate().args(&path).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&help.stderr).into_owned();
            assert!(help.status.success(), "{file}: mksgate {}: {said}", path.join(" "));
            let help = String::from_utf8(help.stdout).unwrap();
            for option in options {
                assert!(help.contains(&option), "{file}: mksgate {} has no {option}", path.join(" "));
            }
            seen.insert(path.first().cloned());
        }
    }
    assert!(seen.len() > 12, "{seen:?}");
}
