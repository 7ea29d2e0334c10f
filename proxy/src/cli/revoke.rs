//! `mksgate ticket revoke`: refuse tickets from now on, and end the consoles they opened.

use clap::Args;

use super::output::{Outcome, Report, SocketArg, print};
use super::sessions::numbers;
use crate::admin::{Closed, RevokeRequest};

/// `mksgate ticket revoke …`
#[derive(Args, Debug)]
pub struct RevokeCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// One ticket, by its own name (`mksgate ticket open` shows it)
    #[arg(required_unless_present_any = ["user", "tenant"], conflicts_with_all = ["user", "tenant"])]
    jti: Option<String>,
    /// Every ticket of this person; with --tenant, of that tenant only
    #[arg(long)]
    user: Option<String>,
    /// Every ticket of this tenant
    #[arg(long)]
    tenant: Option<String>,
}

impl RevokeCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer or refuses.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`RevokeCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let what =
            RevokeRequest { jti: self.jti.clone(), user: self.user.clone(), tenant: self.tenant.clone() };
        let closed: Closed = self.socket.client().post("/v1/tickets/revoke", &what)?;
        Ok(match closed.closed.as_slice() {
            [] => "revoked; no live session was opened with it\n".to_owned(),
            ids => format!("revoked; closed {}: {}\n", ids.len(), numbers(ids)),
        })
    }
}
