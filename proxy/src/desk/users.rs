//! The users' file: `name@org` and the argon2id hash of a password (`mksgate desk password` makes one).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use serde::Deserialize;

use crate::tls::certificate;

/// Longest password that is looked at, bytes.
pub const MAX_PASSWORD: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsersFile {
    #[serde(default)]
    users: BTreeMap<String, UserFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UserFile {
    password: String,
    #[serde(default)]
    disabled: bool,
}

/// Reads the file; how many users it has. What is wrong names the file and the remedy.
pub fn read(path: &Path) -> Result<usize, String> {
    load(path).map(|file| file.users.len())
}

/// Whether this is the user's password. Takes as long for a user there is not. Read afresh each time, so that a change is in
/// force at once. Blocks for tens of milliseconds.
pub fn check(path: &Path, name: &str, password: &str) -> Result<bool, String> {
    let file = load(path)?;
    let user = file.users.get(name);
    let hash = user.map_or(nobody(), |user| user.password.as_str());
    let hash =
        PasswordHash::new(hash).map_err(|_| format!("{}: the hash of `{name}` is none", path.display()))?;
    let right = password.len() <= MAX_PASSWORD
        && Argon2::default().verify_password(password.as_bytes(), &hash).is_ok();
    Ok(right && user.is_some_and(|user| !user.disabled))
}

/// The argon2id hash of a password with a fresh salt, as the file wants it.
pub fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| "no random bytes".to_owned())?;
    let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

fn load(path: &Path) -> Result<UsersFile, String> {
    certificate::check_secret(path).map_err(|error| error.to_string())?;
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{}: cannot be read ({error})", path.display()))?;
    let file: UsersFile =
        toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))?;
    for (name, user) in &file.users {
        let is_argon2id =
            PasswordHash::new(&user.password).is_ok_and(|hash| hash.algorithm.as_str() == "argon2id");
        if !is_argon2id {
            return Err(format!(
                "{}: the password of `{name}` is no argon2id hash; `mksgate desk password` makes one",
                path.display()
            ));
        }
        if !name.contains('@') {
            return Err(format!("{}: `{name}` names no org; write user@org", path.display()));
        }
    }
    Ok(file)
}

/// A hash of nobody's password, so that an unknown name takes as long as a wrong password.
fn nobody() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| hash("nobody").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn the_right_password_of_an_enabled_user_and_nothing_else() {
        let hash = hash("pass:word").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m="), "{hash}");
        let users = file(
            &format!(
                "[users.\"ann@acme\"]\npassword = \"{hash}\"\n[users.\"bob@acme\"]\npassword = \"{hash}\"\ndisabled = true\n"
            ),
            0o600,
        );
        let check = |name, password| check(users.path(), name, password).unwrap();
        assert!(check("ann@acme", "pass:word"));
        for (name, password) in [
            ("ann@acme", "password"),
            ("ann@acme", ""),
            ("ann@other", "pass:word"),
            ("bob@acme", "pass:word"),
            ("eve@acme", "nobody"),
        ] {
            assert!(!check(name, password), "{name} {password}");
        }
        assert!(!check("ann@acme", &"x".repeat(MAX_PASSWORD + 1)));
    }

    #[test]
    fn a_file_that_will_not_do_says_why() {
        let hash = hash("x").unwrap();
        for (text, mode, said) in [
            (format!("[users.\"a@b\"]\npassword = \"{hash}\"\n"), 0o644, "chmod 600"),
            ("[users.\"a@b\"]\npassword = \"secret\"\n".into(), 0o600, "no argon2id hash"),
            (format!("[users.ann]\npassword = \"{hash}\"\n"), 0o600, "names no org"),
            ("[users".into(), 0o600, ""),
        ] {
            let error = read(file(&text, mode).path()).unwrap_err();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
