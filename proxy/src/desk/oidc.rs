//! Tokens of an OpenID Connect provider (RFC 7519, RFC 7515), checked against its public keys.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::Value;

use super::Person;
use super::config::Oidc;

/// How far the provider's clock may be off, seconds.
const SKEW: u64 = 60;
/// Longest token that is looked at, bytes.
const MAX_TOKEN: usize = 16 * 1024;

/// What providers sign with. Nothing symmetric: our copy of the key is public.
const SIGNED_WITH: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Why a token is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    /// The provider's keys cannot be used: ours to repair.
    Keys(String),
    /// The token is not good. Nothing of it is in the text.
    Refused(&'static str),
}

/// How many keys the file holds. What is wrong names the file and the remedy.
pub fn read(path: &Path) -> Result<usize, String> {
    load(path).map(|set| set.keys.len())
}

/// Whose token it is. `org` is the one asked for; a person of several has to say which.
pub(super) fn check(
    provider: &Oidc,
    token: &str,
    org: Option<&str>,
    now: SystemTime,
) -> Result<Person, TokenError> {
    let refused = TokenError::Refused;
    if token.len() > MAX_TOKEN {
        return Err(refused("too long"));
    }
    let header = decode_header(token).map_err(|_| refused("no signed token"))?;
    if !SIGNED_WITH.contains(&header.alg) {
        return Err(refused("signed with an algorithm that is not taken"));
    }
    let set = load(&provider.keys).map_err(TokenError::Keys)?;
    let mut claims = None;
    let mut candidates = 0;
    for key in &set.keys {
        let named = header.kid.is_none() || header.kid == key.common.key_id;
        let signs = !matches!(key.common.public_key_use, Some(PublicKeyUse::Encryption));
        let Some(decoding) = DecodingKey::from_jwk(key).ok().filter(|_| named && signs) else { continue };
        candidates += 1;
        let mut rules = Validation::new(header.alg);
        rules.set_issuer(&[&provider.issuer]);
        rules.set_audience(&[&provider.audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        // Times are judged below, by the caller's clock.
        (rules.validate_exp, rules.validate_nbf) = (false, false);
        if let Ok(token) = decode::<Value>(token, &decoding, &rules) {
            claims = Some(token.claims);
            break;
        }
    }
    let claims = match (claims, candidates) {
        (Some(claims), _) => claims,
        (None, 0) => return Err(refused("no key of the provider's file has its kid; is the file current?")),
        (None, _) => return Err(refused("wrong signature, issuer or audience")),
    };
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let time = |name: &str| claims.get(name).and_then(Value::as_f64).map(|seconds| seconds as u64);
    if time("exp").is_none_or(|exp| now >= exp.saturating_add(SKEW)) {
        return Err(refused("expired"));
    }
    if time("nbf").is_some_and(|nbf| now + SKEW < nbf) {
        return Err(refused("not valid yet"));
    }
    let user = claims.get(&provider.user_claim).and_then(Value::as_str).unwrap_or_default();
    if user.is_empty() || user.len() > 256 || user.contains(char::is_control) {
        return Err(refused("without a usable name (`desk.oidc.user_claim`)"));
    }
    let org = choose(claims.get(&provider.org_claim), org)?;
    Ok(Person { user: user.into(), org })
}

/// The one org of the token, or the one of them that was asked for.
fn choose(claim: Option<&Value>, asked: Option<&str>) -> Result<String, TokenError> {
    let orgs: Vec<&str> = match claim {
        Some(Value::String(org)) => vec![org],
        Some(Value::Array(orgs)) => orgs.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    match (asked, orgs.as_slice()) {
        (Some(asked), orgs) if orgs.contains(&asked) => Ok(asked.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        _ => Err(TokenError::Refused("not of the org that was asked for (`desk.oidc.org_claim`)")),
    }
}

fn load(path: &Path) -> Result<JwkSet, String> {
    let text =
        std::fs::read(path).map_err(|error| format!("{}: cannot be read ({error})", path.display()))?;
    let set: JwkSet = serde_json::from_slice(&text)
        .map_err(|_| format!("{}: is no JWK set; fetch it from the provider's jwks_uri", path.display()))?;
    if set.keys.is_empty() {
        return Err(format!("{}: holds no key; fetch it from the provider's jwks_uri", path.display()));
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_org_is_chosen_out_of_those_the_token_names() {
        let one = json!("acme");
        let two = json!(["acme", "bolt"]);
        assert_eq!(choose(Some(&one), None).unwrap(), "acme");
        assert_eq!(choose(Some(&one), Some("acme")).unwrap(), "acme");
        assert_eq!(choose(Some(&two), Some("bolt")).unwrap(), "bolt");
        for (claim, asked) in [(&one, Some("bolt")), (&two, None), (&two, Some("else")), (&json!(1), None)] {
            assert!(choose(Some(claim), asked).is_err(), "{claim} {asked:?}");
        }
        assert!(choose(None, Some("acme")).is_err());
    }
}
