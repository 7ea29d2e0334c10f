//! Configuration errors that lead to the line.

use std::fmt;
use std::path::{Path, PathBuf};

/// What is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, where one is to blame.
    pub line: Option<usize>,
    /// The key, dotted.
    pub key: String,
    /// What is wrong and the remedy.
    pub what: String,
}

impl ConfigError {
    /// The file itself cannot be read.
    pub fn read(path: &Path, error: &std::io::Error) -> Self {
        let what = format!("cannot be read ({error}); check the path and the permissions");
        Self { path: path.into(), line: None, key: String::new(), what }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for ConfigError {}

/// Finds the line of a dotted key in a TOML text: of the key's value, or of the longest part of the path there is.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut at = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref().as_ref() == part) else {
            break;
        };
        at = Some(name.span().start);
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    at.map(|offset| text[..offset].matches('\n').count() + 1)
}
