//! The `[xdp]` section of the configuration.

use std::{path::PathBuf, time::Duration};

use mksgate_common::bucket::Rate;
use serde::{Deserialize, Serialize};

use super::message::WrittenRate;

/// `[xdp]` as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct XdpSection {
    /// `"auto"` (default), `"required"` or `"off"`.
    pub enabled: Option<Enabled>,
    /// Names of interfaces; without any, those that carry the protected addresses.
    pub interfaces: Vec<String>,
    /// `"auto"` (default: native, else generic), `"native"` or `"generic"`.
    pub mode: Option<Mode>,
    /// Socket of the process that holds the gate (`mksgate xdp keep`); without, this one does.
    pub keeper: Option<PathBuf>,
    /// `"drop"` (default) or `"reset"`.
    pub on_limit: Option<OnLimit>,
    /// SYNs a second of one source (an IPv4 address, an IPv6 /64); 0 = no limit. Default 20.
    pub source_per_second: Option<u32>,
    /// SYNs of one source at once. Default 40.
    pub source_burst: Option<u32>,
    /// SYNs a second to all protected ports; 0 = no limit. Default 0.
    pub global_per_second: Option<u32>,
    /// SYNs to all protected ports at once. Default: a tenth of a second's worth.
    pub global_burst: Option<u32>,
    /// SYNs a second of all sources that no tenant is known for; 0 = no limit. Default 200.
    pub shared_per_second: Option<u32>,
    /// The same at once. Default 400.
    pub shared_burst: Option<u32>,
    /// SYNs allowed for each session that a tenant's `sessions_per_second` allows: a browser opens several connections
    /// for one console. Default 4.
    pub tenant_headroom: Option<u32>,
    /// Resets sent a second under `on_limit = "reset"`; SYNs beyond are dropped. Default 1000.
    pub resets_per_second: Option<u32>,
    /// Drop events a second given to the log and the audit file; the counters miss none. Default 10.
    pub events_per_second: Option<u32>,
    /// How long a source stays known after a valid ticket, in seconds. Default 86,400.
    pub learned_seconds: Option<u64>,
    /// Sources whose rate is kept, and sources that are kept as known. Default 65,536.
    pub max_sources: Option<u32>,
}

/// Whether to have the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Enabled {
    /// Where it can be had; otherwise say why not and go on without.
    #[default]
    Auto,
    /// Refuse to start without.
    Required,
    /// No.
    Off,
}

/// Where in the kernel the program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Native, else generic.
    #[default]
    Auto,
    /// In the driver, before the kernel has made a packet buffer.
    Native,
    /// In the network core, behind any driver.
    Generic,
}

/// What a shed SYN gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLimit {
    /// Silence; the client tries again after a second.
    #[default]
    Drop,
    /// A reset; the client fails at once.
    Reset,
}

/// `[xdp]` as it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct XdpConfig {
    /// Whether to have the gate.
    pub enabled: Enabled,
    /// Names; empty = found by the protected addresses.
    pub interfaces: Vec<String>,
    /// Where in the kernel.
    pub mode: Mode,
    /// Whose the gate is, if not this process's.
    #[serde(skip)]
    pub keeper: Option<PathBuf>,
    /// Entries of the tables of sources.
    pub max_sources: u32,
    /// SYNs for each session that a tenant's rate allows.
    pub tenant_headroom: u32,
    /// What changes on reload.
    pub limits: Limits,
}

/// Limits that belong to no tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// What a shed SYN gets.
    pub on_limit: OnLimit,
    /// Of each source.
    #[serde(with = "WrittenRate")]
    pub source: Rate,
    /// Of all together.
    #[serde(with = "WrittenRate")]
    pub global: Rate,
    /// Of all sources that no tenant is known for.
    #[serde(with = "WrittenRate")]
    pub shared: Rate,
    /// Of resets.
    #[serde(with = "WrittenRate")]
    pub resets: Rate,
    /// Of drop events.
    #[serde(with = "WrittenRate")]
    pub events: Rate,
    /// How long a source stays known.
    pub learned: Duration,
}

/// What is wrong with `[xdp]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}")]
pub struct XdpConfigError {
    /// The key, with its section.
    pub key: &'static str,
    /// What it holds and what it may hold.
    pub what: String,
}

/// Longest that the kernel takes, without the closing zero (IFNAMSIZ).
const NAME: usize = 15;

impl XdpSection {
    /// Checks it and fills in the defaults.
    ///
    /// # Errors
    /// Names the key, what it holds and what it may hold.
    pub fn validate(&self) -> Result<XdpConfig, XdpConfigError> {
        let global = self.global_per_second.unwrap_or(0);
        let config = XdpConfig {
            enabled: self.enabled.unwrap_or_default(),
            interfaces: self.interfaces.clone(),
            mode: self.mode.unwrap_or_default(),
            keeper: self.keeper.clone(),
            max_sources: self.max_sources.unwrap_or(65_536),
            tenant_headroom: self.tenant_headroom.unwrap_or(4),
            limits: Limits {
                on_limit: self.on_limit.unwrap_or_default(),
                source: rate(self.source_per_second.unwrap_or(20), self.source_burst.unwrap_or(40)),
                global: rate(global, self.global_burst.unwrap_or(global / 10)),
                shared: rate(self.shared_per_second.unwrap_or(200), self.shared_burst.unwrap_or(400)),
                resets: Rate::per_second(self.resets_per_second.unwrap_or(1000), 100),
                events: Rate::per_second(self.events_per_second.unwrap_or(10), 10),
                learned: Duration::from_secs(self.learned_seconds.unwrap_or(86_400)),
            },
        };
        config.check()?;
        Ok(config)
    }
}

impl XdpConfig {
    /// Whether it may be so, wherever it comes from.
    ///
    /// # Errors
    /// As [`XdpSection::validate`].
    pub fn check(&self) -> Result<(), XdpConfigError> {
        let learned = self.limits.learned.as_secs();
        range("xdp.max_sources", self.max_sources.into(), 256..=16_777_216, "256 to 16777216")?;
        range("xdp.learned_seconds", learned, 0..=31_536_000, "0 (learn nothing) to 31536000 (a year)")?;
        range("xdp.tenant_headroom", self.tenant_headroom.into(), 1..=1000, "1 to 1000")?;
        names(&self.interfaces)
    }
}

/// Ticks of the kernel's coarse clock in a second, at the least (CONFIG_HZ).
const TICKS: u32 = 100;

/// A rate of which 0 means no limit. The burst is what comes in a tick of the program's clock at the least: a smaller one
/// would let fewer through than the rate says.
pub(crate) fn rate(per_second: u32, burst: u32) -> Rate {
    if per_second == 0 {
        return Rate::UNLIMITED;
    }
    Rate::per_second(per_second, burst.max(per_second.div_ceil(TICKS)))
}

fn range(
    key: &'static str,
    value: u64,
    allowed: std::ops::RangeInclusive<u64>,
    must: &'static str,
) -> Result<(), XdpConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(XdpConfigError { key, what: format!("{value}: must be {must}") })
}

fn names(names: &[String]) -> Result<(), XdpConfigError> {
    for (i, name) in names.iter().enumerate() {
        let fits =
            (1..=NAME).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_whitespace());
        if !fits {
            let what =
                format!("{name:?} cannot be an interface's name (1 to 15 characters, no slash, no space)");
            return Err(XdpConfigError { key: "xdp.interfaces", what });
        }
        if names[..i].contains(name) {
            let what = format!("{name:?} stands there twice; remove one");
            return Err(XdpConfigError { key: "xdp.interfaces", what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Result<XdpConfig, String> {
        let section: XdpSection = toml::from_str(text).map_err(|e| e.to_string())?;
        section.validate().map_err(|e| format!("{}: {e}", e.key))
    }

    #[test]
    fn defaults() {
        let config = section("").unwrap();
        assert_eq!((config.enabled, config.mode, config.max_sources), (Enabled::Auto, Mode::Auto, 65_536));
        assert_eq!(config.limits.source, Rate::per_second(20, 40));
        assert_eq!(config.limits.global, Rate::UNLIMITED);
    }

    #[test]
    fn everything_set() {
        let config = section(
            "enabled = 'required'\ninterfaces = ['eth0', 'bond1.100']\nmode = 'native'\non_limit = 'reset'\n\
             source_per_second = 5\nsource_burst = 6\nglobal_per_second = 1000\nlearned_seconds = 60\nmax_sources = 1024",
        )
        .unwrap();
        assert_eq!(config.interfaces, ["eth0", "bond1.100"]);
        assert_eq!((config.mode, config.limits.on_limit), (Mode::Native, OnLimit::Reset));
        assert_eq!(config.limits.global, Rate::per_second(1000, 100));
    }

    #[test]
    fn a_burst_covers_a_tick_of_the_clock() {
        assert_eq!(rate(20, 1), Rate::per_second(20, 1));
        assert_eq!(rate(5000, 1), Rate::per_second(5000, 50));
    }

    #[test]
    fn refuses_with_the_key() {
        assert!(section("max_sources = 3").unwrap_err().contains("xdp.max_sources: 3: must be 256"));
        assert!(section("interfaces = ['eth0', 'eth0']").unwrap_err().contains("twice"));
        assert!(section("interfaces = ['a name']").unwrap_err().contains("a name"));
        assert!(section("interfaces = ['']").unwrap_err().contains("interface's name"));
        assert!(section("learned_seconds = 99999999999").unwrap_err().contains("a year"));
        assert!(section("on_limits = 'drop'").unwrap_err().contains("unknown field `on_limits`"));
        assert!(section("on_limit = 'tarpit'").unwrap_err().contains("tarpit"));
    }
}
