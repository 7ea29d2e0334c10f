//! The API version a client or a server speaks: `SOAPAction: "urn:vim25/7.0.3.1"`.

use std::fmt;

/// Numbers with dots between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(Vec<u16>);

impl Version {
    /// Taken where nothing usable is said: the first with WebMKS tickets.
    const USUAL: [u16; 2] = [6, 0];

    /// From `8.0.0.0`; anything else is the usual one.
    pub fn parse(text: &str) -> Self {
        let numbers: Result<Vec<u16>, _> = text.split('.').map(str::parse).collect();
        Self(numbers.ok().filter(|numbers| numbers.len() <= 4).unwrap_or_else(|| Self::USUAL.to_vec()))
    }

    /// From the value of `SOAPAction`.
    pub fn of_action(action: Option<&str>) -> Self {
        let action = action.unwrap_or_default().trim().trim_matches('"');
        Self::parse(action.strip_prefix("urn:vim25/").unwrap_or_default())
    }

    /// Whether it is this one or a later.
    pub fn is_at_least(&self, other: &[u16]) -> bool {
        self.0.as_slice() >= other
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u16::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_said_again_and_nothing_else() {
        for (action, version) in [
            (Some("\"urn:vim25/7.0.3.1\""), "7.0.3.1"),
            (Some("urn:vim25/5.5"), "5.5"),
            (Some("\"urn:vim25/2.5u2\""), "6.0"),
            (Some("\"urn:vim25/1\r\nX: y\""), "6.0"),
            (Some(""), "6.0"),
            (None, "6.0"),
        ] {
            assert_eq!(Version::of_action(action).to_string(), version, "{action:?}");
        }
        assert!(
            Version::parse("8.0").is_at_least(&[7, 0, 3, 1])
                && !Version::parse("7.0.3").is_at_least(&[7, 0, 3, 1])
        );
    }
}
