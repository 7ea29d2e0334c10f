//! `mksgate tenants`: the configured tenants, their limits, and how much of them is used.

use clap::Args;

use super::output::{Align, Outcome, Report, SocketArg, bytes, limit, print, table, to_json};
use crate::admin::{TenantList, TenantView};

/// `mksgate tenants`
#[derive(Args, Debug)]
pub struct TenantsCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl TenantsCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer or refuses.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`TenantsCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let list: TenantList = self.socket.client().get("/v1/tenants")?;
        if self.json { to_json(&list) } else { Ok(render(&list.tenants)) }
    }
}

fn render(tenants: &[TenantView]) -> String {
    let head = [
        ("TENANT", Align::Left),
        ("MARK", Align::Right),
        ("SESSIONS", Align::Right),
        ("MAX", Align::Right),
        ("USERS", Align::Right),
        ("PER USER", Align::Right),
        ("PER SECOND", Align::Right),
        ("BURST", Align::Right),
        ("UP", Align::Right),
        ("DOWN", Align::Right),
    ];
    let rows: Vec<_> = tenants
        .iter()
        .map(|t| {
            vec![
                t.limits.name.clone(),
                t.limits.number.to_string(),
                t.sessions.to_string(),
                limit(t.limits.max_sessions),
                t.users.to_string(),
                limit(t.limits.max_sessions_per_user),
                limit(t.limits.sessions_per_second),
                limit(t.limits.burst),
                bytes(t.up_bytes),
                bytes(t.down_bytes),
            ]
        })
        .collect();
    table(&head, &rows)
}
