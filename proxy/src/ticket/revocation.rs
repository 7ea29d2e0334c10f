//! Revocations: which tickets they mean, and for how long they must be remembered.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which tickets, and which live sessions, are revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Revocation {
    /// One ticket.
    Jti(String),
    /// Every ticket of a user that was minted until now.
    User {
        /// Of this tenant only; of any tenant where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<String>,
        /// The user.
        user: String,
    },
    /// Every ticket of a tenant that was minted until now.
    Tenant(String),
}

impl Revocation {
    /// Whether it means this ticket or the session that was opened with it.
    pub fn matches(&self, jti: &str, tenant: &str, user: &str) -> bool {
        match self {
            Self::Jti(own) => own == jti,
            Self::User { tenant: of, user: own } => own == user && of.as_ref().is_none_or(|of| of == tenant),
            Self::Tenant(own) => own == tenant,
        }
    }
}

/// Revocations that unused tickets may still run into. Used tickets are marked in the table itself.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    /// Up to which `iat` each holds.
    until: HashMap<Revocation, Duration>,
    /// Nothing needs pruning before this time.
    prune_at: Duration,
}

impl Revoked {
    pub(super) fn len(&self) -> usize {
        self.until.len()
    }

    /// Remembers it for tickets minted up to `iat`. False when that would exceed `capacity`.
    pub(super) fn insert(&mut self, what: Revocation, iat: Duration, capacity: usize) -> bool {
        if self.until.len() >= capacity && !self.until.contains_key(&what) {
            return false;
        }
        let until = self.until.entry(what).or_insert(iat);
        *until = (*until).max(iat);
        self.prune_at = Duration::ZERO;
        true
    }

    /// Whether an unused ticket is revoked. Four look-ups, however many revocations there are. A jti is one ticket's name,
    /// so its revocation holds whatever the portal's clock wrote into `iat`.
    pub(super) fn covers(&self, jti: &str, tenant: &str, user: &str, iat: Duration) -> bool {
        let holds = |what: Revocation| self.until.get(&what).is_some_and(|until| iat <= *until);
        !self.until.is_empty()
            && (self.until.contains_key(&Revocation::Jti(jti.to_owned()))
                || holds(Revocation::Tenant(tenant.to_owned()))
                || holds(Revocation::User { tenant: None, user: user.to_owned() })
                || holds(Revocation::User { tenant: Some(tenant.to_owned()), user: user.to_owned() }))
    }

    /// Forgets those that are older than `keep`, and says up to which `iat` they held. `keep` is longer than an unused
    /// ticket is good for.
    pub(super) fn prune(&mut self, keep: Duration, now: Duration) -> Option<Duration> {
        if now <= self.prune_at {
            return None;
        }
        let mut forgotten = None;
        self.until.retain(|_, until| {
            let kept = now <= until.saturating_add(keep);
            if !kept {
                forgotten = forgotten.max(Some(*until));
            }
            kept
        });
        self.prune_at = self.until.values().min().map_or(Duration::MAX, |u| u.saturating_add(keep));
        forgotten
    }

    pub(super) fn export(&self) -> Vec<(Revocation, Duration)> {
        self.until.iter().map(|(what, until)| (what.clone(), *until)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn each_kind_means_its_own_tickets() {
        let user =
            |tenant: Option<&str>| Revocation::User { tenant: tenant.map(Into::into), user: "u".into() };
        assert!(Revocation::Jti("j".into()).matches("j", "t", "u"));
        assert!(!Revocation::Jti("j".into()).matches("k", "j", "j"));
        assert!(Revocation::Tenant("t".into()).matches("j", "t", "u"));
        assert!(!Revocation::Tenant("t".into()).matches("t", "s", "t"));
        assert!(user(None).matches("j", "any", "u"));
        assert!(user(Some("t")).matches("j", "t", "u") && !user(Some("t")).matches("j", "s", "u"));
        for what in [Revocation::Jti("j".into()), Revocation::Tenant("t".into()), user(None), user(Some("t"))]
        {
            let mut revoked = Revoked::default();
            assert!(revoked.insert(what.clone(), 5 * S, 1));
            assert!(revoked.covers("j", "t", "u", 5 * S), "{what:?}");
            let later = revoked.covers("j", "t", "u", 6 * S);
            assert_eq!(later, matches!(what, Revocation::Jti(_)), "{what:?}");
            assert!(!revoked.covers("x", "x", "x", 5 * S), "{what:?}");
        }
    }

    #[test]
    fn it_is_bounded_and_a_repeat_needs_no_room() {
        let mut revoked = Revoked::default();
        assert!(revoked.insert(Revocation::Tenant("a".into()), S, 1));
        assert!(revoked.insert(Revocation::Tenant("a".into()), 3 * S, 1));
        assert!(!revoked.insert(Revocation::Tenant("b".into()), S, 1));
        assert!(revoked.covers("j", "a", "u", 3 * S));
        assert_eq!(revoked.prune(S, 4 * S), None);
        assert_eq!((revoked.prune(S, 5 * S), revoked.len()), (Some(3 * S), 0));
    }

    #[test]
    fn its_json_is_what_the_api_takes() {
        let text = r#"[{"jti":"j"},{"user":{"user":"u"}},{"user":{"tenant":"t","user":"u"}},{"tenant":"t"}]"#;
        let parsed: Vec<Revocation> = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
    }
}
