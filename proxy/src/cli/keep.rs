//! `mksgate xdp keep`: the process that holds the gate for the one at the network.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::User;

use super::log;
use super::output::Outcome;
use crate::config::{Log, LogFormat};
use crate::control::notify::Manager;
use crate::xdp::{GateError, Keeper, Left, OBJECT, Store, missing_capabilities};

/// `mksgate xdp keep`
#[derive(clap::Args, Debug)]
pub(super) struct KeepCommand {
    /// Where the proxy finds it: `[xdp] keeper`
    #[arg(long, value_name = "PATH", default_value = "/run/mksgate-xdp/keeper.sock")]
    socket: PathBuf,
    /// The user that the proxy runs as; root may, too
    #[arg(long, value_name = "NAME", default_value = "mksgate")]
    user: String,
    /// The configuration file: no interface, address or size is taken from the proxy that does not stand there
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// How long the gate stays in place without a proxy, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(..=3600))]
    linger: u64,
}

impl KeepCommand {
    /// Serves until a signal ends it; the gate goes with it.
    pub(super) fn run(&self) -> Outcome {
        let (_filter, _log) = log::start(&Log { filter: "mksgate=info".into(), format: LogFormat::Auto })?;
        if OBJECT.is_none() {
            return Err(GateError::NoObject.into());
        }
        let missing = missing_capabilities();
        if !missing.is_empty() {
            return Err(GateError::Permission { missing: missing.join(" and ") }.into());
        }
        let Some(user) = User::from_name(&self.user)? else {
            return Err(format!(
                "there is no user {:?}; name that of mksgate.service with --user",
                self.user
            )
            .into());
        };
        let cannot = |error: io::Error| {
            format!("{} cannot be listened on ({error}); --socket names another place", self.socket.display())
        };
        let left = Left::to_this_process();
        let mut store = Store::new(Manager::of_this_process(), &left);
        let listener = match left.listener(&self.socket) {
            Some(listener) => listener.map_err(cannot)?,
            None => {
                let listener = bind(&self.socket).map_err(cannot)?;
                store.keep_socket(&listener);
                listener
            }
        };
        let keeper = Keeper::new(listener, user, &self.config, Duration::from_secs(self.linger), store)?;
        keeper.go_on(left);
        tracing::info!(socket = %self.socket.display(), user = self.user, "keeper of the XDP gate: no proxy yet");
        Manager::of_this_process().ready();
        Ok(keeper.serve()?)
    }
}

/// The socket, for its owner and group. What a killed keeper has left is taken away; nothing that lives.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_left = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if is_left {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            _ => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another keeper listens there")),
        }
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}
