//! Who may use the socket: by the credentials that the kernel kept when the peer connected.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use tokio::net::unix::UCred;

/// The process at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: Option<i32>,
}

impl From<UCred> for Peer {
    fn from(cred: UCred) -> Self {
        Self { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() }
    }
}

/// Root, the service's own user, the listed users, and members of the listed groups.
pub(super) fn is_allowed(peer: Peer, uids: &[u32], gids: &[u32]) -> bool {
    peer.uid == 0
        || peer.uid == geteuid().as_raw()
        || uids.contains(&peer.uid)
        || gids.contains(&peer.gid)
        || (!gids.is_empty() && groups_of(peer).iter().any(|gid| gids.contains(gid)))
}

/// The groups of the peer's user: `SO_PEERCRED` tells only the primary one. Asks the system's user database.
fn groups_of(peer: Peer) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(peer.uid)) else { return Vec::new() };
    let Ok(name) = CString::new(user.name) else { return Vec::new() };
    let groups = getgrouplist(&name, Gid::from_raw(peer.gid)).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_and_the_listed_ones_may() {
        let own = geteuid().as_raw();
        let peer = |uid, gid| Peer { uid, gid, pid: None };
        assert!(is_allowed(peer(0, 0), &[], &[]));
        assert!(is_allowed(peer(own, 4_000_000), &[], &[]));
        assert!(!is_allowed(peer(4_000_001, 4_000_001), &[], &[]));
        assert!(!is_allowed(peer(4_000_001, 4_000_001), &[4_000_002], &[4_000_002]));
        assert!(is_allowed(peer(4_000_001, 4_000_001), &[4_000_001], &[]));
        assert!(is_allowed(peer(4_000_001, 4_000_001), &[], &[4_000_001]));
    }

    #[test]
    fn a_secondary_group_counts() {
        // `bin` (uid 2) exists on every Debian; whatever groups it has, its primary one is among them.
        if let Ok(Some(user)) = User::from_name("bin") {
            let peer = Peer { uid: user.uid.as_raw(), gid: 4_000_001, pid: None };
            assert!(groups_of(peer).contains(&4_000_001));
        }
    }
}
