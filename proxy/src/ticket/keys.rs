//! The key directory: one JWK (RFC 7517, `kty` = `oct`) per file `*.jwk`. The newest seals, all open.

use std::collections::hash_map::{DefaultHasher, Entry, HashMap};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::aead::RandomizedNonceKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use super::jwe::{self, KEY_LEN, MAX_KID};
use super::{Claims, JweError, SealError, since_epoch};

/// Longest key file, in bytes. An honest one has about 150.
const MAX_FILE: u64 = 16 * 1024;

/// Why a key directory, or a file of it, is not used. Says which file, and what to do.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The system refused.
    #[error("{}: cannot {what}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The attempt.
        what: &'static str,
        /// The system's answer.
        error: io::Error,
    },
    /// Others may read or write it.
    #[error("{}: mode {mode:04o} lets others at the key; run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else owns it.
    #[error("{}: owned by uid {owner}, not by root or uid {own} as which this runs; run: chown {own} {}", path.display(), path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// The directory is open for everybody to put keys into.
    #[error("{}: mode {mode:04o} lets others put keys there; run: chmod go-w {}", path.display(), path.display())]
    DirMode {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a JWK for A256GCM.
    #[error("{}: {why}; make a key with: mksgate ticket keygen DIR", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Two files name their key alike.
    #[error("{} and {} both hold kid {kid:?}; remove one", first.display(), second.display())]
    Duplicate {
        /// The name.
        kid: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// No key at all.
    #[error("{}: no *.jwk file there; make one with: mksgate ticket keygen {}", path.display(), path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// Not usable as a key's and a file's name.
    #[error("{kid:?} is no name for a key; use 1 to 64 of A-Z a-z 0-9 . _ - and no dot first")]
    Kid {
        /// The name.
        kid: String,
    },
    /// The cryptographic library failed.
    #[error("the random generator of the cryptographic library failed")]
    Random,
}

/// The keys of a directory. Clones share them; no key is ever printed.
#[derive(Clone)]
pub struct KeyRing(Arc<Ring>);

struct Ring {
    keys: HashMap<String, RandomizedNonceKey>,
    newest: String,
}

#[derive(Deserialize)]
struct Jwk<'a> {
    kty: &'a str,
    kid: String,
    k: &'a str,
    alg: Option<&'a str>,
    iat: Option<u64>,
}

struct Loaded {
    kid: String,
    iat: u64,
    key: RandomizedNonceKey,
}

impl KeyRing {
    /// Reads every `*.jwk` of `dir`. One bad file refuses all of them: half a key directory would refuse tickets silently.
    ///
    /// The newest key is the one with the greatest `iat` (a file without it counts from its modification time); among
    /// equals the one whose `kid` is the last in byte order.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let mode = fs::metadata(dir).map_err(io_error(dir, "read the directory"))?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(KeyError::DirMode { path: dir.to_owned(), mode });
        }
        let (mut keys, mut files) = (HashMap::new(), HashMap::new());
        let mut newest: Option<(u64, String)> = None;
        for path in key_files(dir)? {
            let Loaded { kid, iat, key } = read_key(&path)?;
            match files.entry(kid.clone()) {
                Entry::Occupied(first) => {
                    return Err(KeyError::Duplicate { kid, first: first.remove(), second: path });
                }
                Entry::Vacant(free) => free.insert(path),
            };
            newest = newest.max(Some((iat, kid.clone())));
            keys.insert(kid, key);
        }
        let (_, newest) = newest.ok_or_else(|| KeyError::Empty { path: dir.to_owned() })?;
        Ok(Self(Arc::new(Ring { keys, newest })))
    }

    /// A number that changes when a key file comes, goes or changes: what a watcher compares before it loads again.
    pub fn fingerprint(dir: &Path) -> Result<u64, KeyError> {
        let mut hasher = DefaultHasher::new();
        for path in key_files(dir)? {
            let meta = fs::metadata(&path).map_err(io_error(&path, "read"))?;
            path.hash(&mut hasher);
            (meta.ino(), meta.len(), meta.mode(), meta.uid()).hash(&mut hasher);
            (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// Seals a ticket with the newest key. Claims that the gate would refuse to read are not sealed.
    pub fn seal(&self, claims: &Claims) -> Result<String, SealError> {
        claims.validate()?;
        let json = serde_json::to_vec(claims).map_err(|_| SealError::Crypto)?;
        let key = self.find(&self.0.newest).ok_or(SealError::Crypto)?;
        jwe::seal(key, &self.0.newest, Zeroizing::new(json))
    }

    /// Seals a note of the gate's own to itself, which another cell with the same keys opens. It must not read as claims.
    pub fn seal_note(&self, note: Vec<u8>) -> Result<String, SealError> {
        let key = self.find(&self.0.newest).ok_or(SealError::Crypto)?;
        jwe::seal(key, &self.0.newest, Zeroizing::new(note))
    }

    /// Opens a note; whether it is one of the wanted kind is the caller's to see.
    pub fn open_note(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, JweError> {
        let parsed = jwe::Sealed::parse(sealed)?;
        let key = self.find(&parsed.kid).ok_or(JweError::UnknownKey)?;
        parsed.open(key)
    }

    /// Decrypts a ticket and gives its claims, and the `kid` it was sealed with: for an operator who wants to see what is
    /// in it. No time, use or revocation is looked at, and no permit comes of it.
    pub fn inspect(&self, sealed: &str) -> Result<(Claims, String), super::TicketError> {
        let parsed = jwe::Sealed::parse(sealed)?;
        let kid = parsed.kid.clone();
        let key = self.find(&kid).ok_or(JweError::UnknownKey)?;
        Ok((Claims::from_json(&parsed.open(key)?)?, kid))
    }

    /// The `kid` of the key that seals.
    pub fn newest(&self) -> &str {
        &self.0.newest
    }

    /// How many keys open.
    pub fn len(&self) -> usize {
        self.0.keys.len()
    }

    /// Never: a ring without a key is not loaded.
    pub fn is_empty(&self) -> bool {
        self.0.keys.is_empty()
    }

    pub(super) fn find(&self, kid: &str) -> Option<&RandomizedNonceKey> {
        self.0.keys.get(kid)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("newest", &self.0.newest).field("keys", &self.len()).finish()
    }
}

/// Makes a new random key and puts it into `dir` as `KID.jwk`, mode 0600; the directory is made too, mode 0700. The file
/// appears whole or not at all, and never replaces another. Gives its `kid`, random unless named.
pub fn create_key_file(
    dir: &Path,
    kid: Option<&str>,
    now: SystemTime,
) -> Result<(String, PathBuf), KeyError> {
    let kid = kid.map_or_else(random_kid, |kid| Ok(kid.to_owned()))?;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if kid.is_empty() || kid.len() > 64 || kid.starts_with('.') || !kid.chars().all(fits) {
        return Err(KeyError::Kid { kid });
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| KeyError::Random)?;
    let k = Zeroizing::new(URL_SAFE_NO_PAD.encode(*key));
    let iat = since_epoch(now).as_secs();
    let jwk = Zeroizing::new(format!(
        "{{\"kty\":\"oct\",\"kid\":\"{kid}\",\"k\":\"{}\",\"alg\":\"A256GCM\",\"iat\":{iat}}}\n",
        k.as_str()
    ));
    let path = dir.join(format!("{kid}.jwk"));
    make_directory(dir)?;
    write_new(&path, &dir.join(format!(".{kid}.new")), jwk.as_bytes())?;
    Ok((kid, path))
}

fn make_directory(dir: &Path) -> Result<(), KeyError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(dir);
    made.map_err(io_error(dir, "make the directory"))
}

/// Writes beside it, then links: an existing file stays what it is.
fn write_new(path: &Path, beside: &Path, content: &[u8]) -> Result<(), KeyError> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(beside);
    let mut file = open.map_err(io_error(beside, "create"))?;
    let written =
        file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(beside, path));
    let removed = fs::remove_file(beside);
    written.and(removed).map_err(io_error(path, "create"))
}

fn random_kid() -> Result<String, KeyError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Random)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// The key files, sorted, so that errors and fingerprints do not depend on the file system's order.
fn key_files(dir: &Path) -> Result<Vec<PathBuf>, KeyError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error(dir, "read the directory"))? {
        let path = entry.map_err(io_error(dir, "read the directory"))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|ext| ext == "jwk") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_key(path: &Path) -> Result<Loaded, KeyError> {
    let file = File::open(path).map_err(io_error(path, "read"))?;
    let meta = file.metadata().map_err(io_error(path, "read"))?;
    let (mode, owner, own) = (meta.mode() & 0o7777, meta.uid(), nix::unistd::geteuid().as_raw());
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode });
    }
    if owner != 0 && owner != own {
        return Err(KeyError::Owner { path: path.to_owned(), owner, own });
    }
    // One allocation of the full size: a growing buffer would leave copies of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(io_error(path, "read"))?;
    let modified = meta.mtime().try_into().unwrap_or(0);
    parse_key(&text, modified).map_err(|why| KeyError::Content { path: path.to_owned(), why })
}

fn parse_key(text: &[u8], modified: u64) -> Result<Loaded, &'static str> {
    if text.len() as u64 > MAX_FILE {
        return Err("too long for a JWK");
    }
    let jwk: Jwk<'_> = serde_json::from_slice(text)
        .map_err(|_| "not a JWK: a JSON object with the texts kty, kid and k is expected")?;
    if jwk.kty != "oct" {
        return Err("the JWK's kty is not \"oct\"");
    }
    if jwk.alg.is_some_and(|alg| alg != "A256GCM") {
        return Err("the JWK's alg is not \"A256GCM\"");
    }
    if jwk.kid.is_empty() || jwk.kid.len() > MAX_KID || jwk.kid.contains(char::is_control) {
        return Err("the JWK's kid is empty, too long, or holds a control character");
    }
    let bytes = URL_SAFE_NO_PAD.decode(jwk.k).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| "the JWK's k is not base64url without padding")?;
    if bytes.len() != KEY_LEN {
        return Err("the JWK's k is not 256 bits long");
    }
    let key = jwe::key_from(&bytes).ok_or("the cryptographic library refuses the JWK's k")?;
    Ok(Loaded { kid: jwk.kid, iat: jwk.iat.unwrap_or(modified), key })
}

fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> KeyError {
    let path = path.to_owned();
    move |error| KeyError::Io { path, what, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::claims::tests::claims;
    use std::os::unix::fs::PermissionsExt;
    use std::time::UNIX_EPOCH;

    fn dir() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    fn put(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn jwk(kid: &str, rest: &str) -> String {
        format!(r#"{{"kty":"oct","kid":"{kid}","k":"{}"{rest}}}"#, "A".repeat(43))
    }

    #[test]
    fn a_made_key_is_private_and_seals() {
        let dir = dir();
        let home = dir.path().join("keys/of/the/gate");
        let (kid, path) = create_key_file(&home, None, at(5)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&home).unwrap().count(), 1, "nothing but the key file");
        let ring = KeyRing::load(&home).unwrap();
        assert_eq!((ring.newest(), ring.len()), (kid.as_str(), 1));
        let sealed = ring.seal(&claims("j", 1)).unwrap();
        assert_eq!(ring.inspect(&sealed).unwrap(), (claims("j", 1), kid));
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = dir();
        let (_, path) = create_key_file(dir.path(), Some("k"), at(5)).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(create_key_file(dir.path(), Some("k"), at(6)).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        for kid in ["", ".k", "a/b", "../k", "é", &"k".repeat(65)] {
            assert!(
                matches!(create_key_file(dir.path(), Some(kid), at(5)), Err(KeyError::Kid { .. })),
                "{kid}"
            );
        }
    }

    #[test]
    fn the_newest_seals_and_all_open() {
        let dir = dir();
        create_key_file(dir.path(), Some("z-old"), at(100)).unwrap();
        let old = KeyRing::load(dir.path()).unwrap();
        let before = KeyRing::fingerprint(dir.path()).unwrap();
        assert_eq!(KeyRing::fingerprint(dir.path()).unwrap(), before);
        create_key_file(dir.path(), Some("a-new"), at(200)).unwrap();
        assert_ne!(KeyRing::fingerprint(dir.path()).unwrap(), before);
        let new = KeyRing::load(dir.path()).unwrap();
        assert_eq!(new.newest(), "a-new");
        let sealed = old.seal(&claims("j", 1)).unwrap();
        assert!(new.inspect(&sealed).is_ok());
        fs::remove_file(dir.path().join("z-old.jwk")).unwrap();
        let error = KeyRing::load(dir.path()).unwrap().inspect(&sealed).unwrap_err();
        assert_eq!(error.as_str(), "ticket_unknown_key");
        assert!(old.inspect(&new.seal(&claims("j", 1)).unwrap()).is_err());
        // The same second: the later name. No iat: the file's own time, which is far later than 200 s after the epoch.
        create_key_file(dir.path(), Some("b-new"), at(200)).unwrap();
        assert_eq!(KeyRing::load(dir.path()).unwrap().newest(), "b-new");
        put(dir.path(), "x.jwk", &jwk("0", ""), 0o600);
        assert_eq!(KeyRing::load(dir.path()).unwrap().newest(), "0");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_the_remedy() {
        let dir = dir();
        for mode in [0o640, 0o604, 0o620, 0o666, 0o601] {
            let path = put(dir.path(), "k.jwk", &jwk("k", ""), mode);
            let error = KeyRing::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
        put(dir.path(), "k.jwk", &jwk("k", ""), 0o400);
        assert!(KeyRing::load(dir.path()).is_ok());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(KeyRing::load(dir.path()), Err(KeyError::DirMode { mode: 0o770, .. })));
    }

    #[test]
    fn bad_content_names_the_file_and_never_the_key() {
        let secret = "S".repeat(43);
        for (text, why) in [
            (String::new(), "not a JWK"),
            ("[]".into(), "not a JWK"),
            (format!(r#"{{"kty":"oct","k":"{secret}"}}"#), "not a JWK"),
            (format!(r#"{{"kty":"RSA","kid":"k","k":"{secret}"}}"#), "kty"),
            (format!(r#"{{"kty":"oct","kid":"","k":"{secret}"}}"#), "kid"),
            (format!(r#"{{"kty":"oct","kid":"k","k":"{secret}","alg":"A128GCM"}}"#), "alg"),
            (r#"{"kty":"oct","kid":"k","k":"AAAA"}"#.into(), "256 bits"),
            (format!(r#"{{"kty":"oct","kid":"k","k":"{secret}="}}"#), "base64url"),
            (" ".repeat(MAX_FILE as usize + 1), "too long"),
        ] {
            let dir = dir();
            let path = put(dir.path(), "bad.jwk", &text, 0o600);
            let error = KeyRing::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&path.display().to_string()), "{error}");
            assert!(!error.contains("SSS"), "{error}");
        }
    }

    #[test]
    fn other_files_are_left_alone_and_no_key_is_an_error() {
        let dir = dir();
        put(dir.path(), "README", "hello", 0o644);
        put(dir.path(), ".k.jwk", "half written", 0o600);
        assert!(matches!(KeyRing::load(dir.path()), Err(KeyError::Empty { .. })));
        assert!(matches!(KeyRing::load(&dir.path().join("none")), Err(KeyError::Io { .. })));
        put(dir.path(), "a.jwk", &jwk("same", ""), 0o600);
        put(dir.path(), "b.jwk", &jwk("same", r#","use":"enc","alg":"A256GCM""#), 0o600);
        assert!(matches!(KeyRing::load(dir.path()), Err(KeyError::Duplicate { kid, .. }) if kid == "same"));
    }
}
