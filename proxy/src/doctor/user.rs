//! The service's own user: what root can read, the service may not.

use std::ffi::CString;

use nix::unistd::{User, geteuid, initgroups, setegid, seteuid, setgroups};

/// The user of mksgate.service.
const NAME: &str = "mksgate";

/// The account of the service, where it exists.
pub fn service() -> Option<User> {
    User::from_name(NAME).ok().flatten()
}

/// Runs `work` with the file access of the service, if this process is root and `account` exists; else as it is.
/// The credentials of the whole process change meanwhile: for commands without other threads.
pub fn impersonate<T>(account: Option<&User>, work: impl FnOnce() -> T) -> T {
    match account {
        Some(account) if geteuid().is_root() => {
            let become_it = || {
                initgroups(&CString::new(NAME).unwrap_or_default(), account.gid)?;
                setegid(account.gid)?;
                seteuid(account.uid)
            };
            let _back = Back;
            // Where a sandbox forbids the change, root looks with its own eyes.
            let _ = become_it();
            work()
        }
        _ => work(),
    }
}

struct Back;

impl Drop for Back {
    fn drop(&mut self) {
        let root = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
        let _ = seteuid(root.0);
        let _ = setegid(root.1);
        let _ = setgroups(&[root.1]);
    }
}
