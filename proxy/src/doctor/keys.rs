//! The ticket keys.

use std::path::Path;

use super::Finding;
use crate::ticket::KeyRing;

pub(super) fn examine(dir: &Path) -> Finding {
    const CHECK: &str = "ticket keys";
    match KeyRing::load(dir) {
        Ok(keys) => Finding::ok(
            CHECK,
            format!("{}: {} open tickets, {} seals", dir.display(), keys.len(), keys.newest()),
        ),
        Err(error) => Finding::fail(
            CHECK,
            error.to_string(),
            format!(
                "keys belong to the service's user, mode 0600; to make one: runuser -u mksgate -- mksgate ticket keygen {}",
                dir.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;
    use crate::doctor::Verdict;
    use crate::ticket::create_key_file;

    #[test]
    fn a_missing_key_and_an_open_one_are_found_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        assert_eq!(examine(&keys).verdict, Verdict::Fail);
        let (_, file) = create_key_file(&keys, None, SystemTime::now()).unwrap();
        assert_eq!(examine(&keys).verdict, Verdict::Ok);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let open = examine(&keys);
        assert!(open.verdict == Verdict::Fail && open.found.contains("chmod 600"), "{open:?}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(examine(&keys).verdict, Verdict::Ok);
    }
}
