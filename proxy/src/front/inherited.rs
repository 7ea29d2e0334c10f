//! Listening sockets that the service manager opened (sd_listen_fds(3)): they outlive this process, so its restart
//! refuses nobody.

use std::env;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{OwnedFd, RawFd};

use socket2::SockRef;
use thiserror::Error;

use super::Listener;
use crate::config::Listen;
use crate::metrics::Door;
use crate::sys;

/// The first descriptor that is handed over (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// Why a socket that was handed over is not served. Each names the remedy.
#[derive(Debug, Error)]
pub enum InheritError {
    /// No door is meant by it.
    #[error(
        "mksgate.socket holds {0}, which [listen] does not name; add it there to `tls` or `authd`, or take it out of the \
         socket unit: clients that connect to it would wait for ever"
    )]
    NoDoor(SocketAddr),
    /// Not a listening TCP socket.
    #[error(
        "descriptor {fd} from the service manager is no listening TCP socket; give ListenStream= an address with a port"
    )]
    NotListening {
        /// Which.
        fd: RawFd,
    },
    /// It cannot be taken over.
    #[error("descriptor {fd} from the service manager cannot be used ({error})")]
    Io {
        /// Which.
        fd: RawFd,
        /// The system's answer.
        error: io::Error,
    },
}

/// Takes over what was handed to this process. To be called once: a descriptor belongs to the first who takes it.
pub fn inherited(listen: &Listen) -> Result<Vec<Listener>, InheritError> {
    descriptors().into_iter().map(|(fd, name)| take(fd, &name, listen)).collect()
}

/// What was handed to this process, by number and name.
pub(crate) fn descriptors() -> Vec<(RawFd, String)> {
    let var = |name| env::var(name).unwrap_or_default();
    handed(std::process::id(), &var("LISTEN_PID"), &var("LISTEN_FDS"), &var("LISTEN_FDNAMES"))
}

/// Descriptors and their names, if they are meant for the process `own`.
fn handed(own: u32, pid: &str, count: &str, names: &str) -> Vec<(RawFd, String)> {
    if pid.parse() != Ok(own) {
        return Vec::new();
    }
    let mut names = names.split(':');
    let count: RawFd = count.parse().unwrap_or(0);
    (FIRST..FIRST.saturating_add(count)).map(|fd| (fd, names.next().unwrap_or_default().to_owned())).collect()
}

fn take(fd: RawFd, name: &str, listen: &Listen) -> Result<Listener, InheritError> {
    let socket: OwnedFd = sys::inherit(fd).map_err(|error| InheritError::Io { fd, error })?;
    if !SockRef::from(&socket).is_listener().unwrap_or(false) {
        return Err(InheritError::NotListening { fd });
    }
    let socket = TcpListener::from(socket);
    let address = socket.local_addr().map_err(|_| InheritError::NotListening { fd })?;
    let door = door(name, address, listen).ok_or(InheritError::NoDoor(address))?;
    Ok(Listener { door, socket })
}

/// What the configuration says of the address; else what the socket unit says (`FileDescriptorName=`).
fn door(name: &str, address: SocketAddr, listen: &Listen) -> Option<Door> {
    if listen.tls.contains(&address) {
        return Some(Door::Mks);
    }
    if listen.authd.contains(&address) {
        return Some(Door::Authd);
    }
    match name {
        "tls" => Some(Door::Mks),
        "authd" => Some(Door::Authd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        assert_eq!(handed(7, "", "", ""), []);
        assert_eq!(handed(7, "8", "2", "tls:authd"), []);
        assert_eq!(handed(7, "7", "2", "tls:authd"), [(3, "tls".into()), (4, "authd".into())]);
        assert_eq!(handed(7, "7", "2", ""), [(3, String::new()), (4, String::new())]);
        assert_eq!(handed(7, "7", "-5", ""), []);
    }

    #[test]
    fn the_configuration_says_which_door_then_the_unit() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let listen = Listen { tls: vec![at("0.0.0.0:443")], authd: vec![at("[::]:902")], backlog: 1 };
        assert_eq!(door("mksgate.socket", at("0.0.0.0:443"), &listen), Some(Door::Mks));
        assert_eq!(door("tls", at("[::]:902"), &listen), Some(Door::Authd));
        assert_eq!(door("authd", at("0.0.0.0:9902"), &listen), Some(Door::Authd));
        assert_eq!(door("mksgate.socket", at("0.0.0.0:9902"), &listen), None);
    }
}
