//! Where the operator's side listens, and by which names it and the consoles are called.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::check::Context;
use super::file::AdminFile;
use super::{Admin, ConfigError};

/// `[admin]`.
pub(super) fn admin(context: &Context<'_>, file: AdminFile) -> Result<Admin, ConfigError> {
    let name = |name| bare_name(context, "admin.metrics_names", name, "any port will do");
    Ok(Admin {
        socket: context.file(file.socket),
        uids: file.uids,
        gids: file.gids,
        metrics: file.metrics.map(|address| loopback(context, &address)).transpose()?,
        metrics_names: file.metrics_names.into_iter().map(name).collect::<Result<_, _>>()?,
    })
}

/// `tickets.journal`: beside the admin socket, whose directory is the running service's own, where it is not named.
pub(super) fn journal(context: &Context<'_>, named: Option<PathBuf>, admin: &Path) -> Option<PathBuf> {
    let path = named.unwrap_or_else(|| admin.with_file_name("tickets.journal"));
    (path != Path::new("off")).then(|| context.file(path))
}

/// `console_address`.
pub(super) fn console(context: &Context<'_>, name: String) -> Result<String, ConfigError> {
    bare_name(context, "console_address", name, "ports are `console_tls_port` and `console_authd_port`")
}

/// A name or an address; one of IPv6 loses its brackets.
fn bare_name(context: &Context<'_>, key: &str, name: String, ports: &str) -> Result<String, ConfigError> {
    let bare = name.trim_matches(['[', ']']);
    let is_name =
        !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    if is_name || bare.parse::<IpAddr>().is_ok() {
        return Ok(bare.to_owned());
    }
    Err(context.error(key, format!("`{name}` must be a name or an address without a port; {ports}")))
}

fn loopback(context: &Context<'_>, text: &str) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr = text.parse().map_err(|_| {
        context.error("admin.metrics", format!("`{text}` is no address with a port; write 127.0.0.1:9464"))
    })?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(context.error(
            "admin.metrics",
            "must be a loopback address: there is no login on it; let a local agent collect it",
        ))
    }
}
