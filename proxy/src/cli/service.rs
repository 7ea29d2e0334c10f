//! `mksgate status` (with `--listen`: a page of it), `reload` and `drain`: the running service as a whole.

use std::fmt::Write;
use std::net::SocketAddr;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{Outcome, Report, SocketArg, age, print, printable, to_json};
use crate::admin::{Drained, Relay, Reloaded, ServiceState, StatusView, Upgraded};

/// `mksgate status`
#[derive(Args, Debug)]
pub struct StatusCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Serve a page for a browser that draws what the appliance counts, until Ctrl-C; on loopback only: it asks for no password
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "json")]
    listen: Option<SocketAddr>,
}

/// `mksgate reload`
#[derive(Args, Debug)]
pub struct ReloadCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// Where another program is installed than the one that runs, let it take over (see `mksgate upgrade`); it reads the
    /// configuration, too
    #[arg(long)]
    or_upgrade: bool,
}

/// `mksgate upgrade`
#[derive(Args, Debug)]
pub struct UpgradeCommand {
    #[command(flatten)]
    socket: SocketArg,
}

/// `mksgate drain`
#[derive(Args, Debug)]
pub struct DrainCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// When the consoles that are left are closed; the configured time if not given
    #[arg(long)]
    seconds: Option<u32>,
}

impl StatusCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer or refuses, or the page's address cannot be listened on.
    pub fn run(&self) -> Outcome {
        match self.listen {
            Some(address) => self.page(address),
            None => print(&self.report()?),
        }
    }

    /// Serves the status page. An appliance that does not answer is told on the page, which goes on when it does.
    fn page(&self, address: SocketAddr) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminated = signal(SignalKind::terminate())?;
            let relay = Relay::bind(address, self.socket.client()).await?;
            print(&format!("http://{}/\n", relay.addr()?))?;
            tokio::select! {
                () = relay.run() => Ok(()),
                interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
                _ = terminated.recv() => Ok(()),
            }
        })
    }

    /// What [`StatusCommand::run`] prints without `--listen`.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let status: StatusView = self.socket.client().get("/v1/status")?;
        if self.json { to_json(&status) } else { Ok(render(&status)) }
    }
}

impl ReloadCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The new configuration is not valid; the text says where. The old one stays in force.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`ReloadCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        if self.or_upgrade {
            let status: StatusView = self.socket.client().get("/v1/status")?;
            if status.service.program_replaced {
                return UpgradeCommand { socket: self.socket.clone() }.report();
            }
        }
        let reloaded: Reloaded = self.socket.client().post("/v1/reload", &json!({}))?;
        let mut out = String::new();
        for line in &reloaded.changed {
            writeln!(out, "changed: {line}")?;
        }
        for line in &reloaded.needs_restart {
            writeln!(out, "needs a restart: {line}")?;
        }
        Ok(if out.is_empty() { "nothing changed\n".to_owned() } else { out })
    }
}

impl UpgradeCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The new process does not start; the text says why. The old one goes on.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`UpgradeCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let Upgraded { pid, version, sessions } = self.socket.client().post("/v1/upgrade", &json!({}))?;
        Ok(format!(
            "version {} (process {pid}) is in charge; live sessions: {sessions}\n",
            printable(&version)
        ))
    }
}

impl DrainCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer or refuses.
    pub fn run(&self) -> Outcome {
        print(&self.report()?)
    }

    /// What [`DrainCommand::run`] prints.
    ///
    /// # Errors
    /// As there.
    pub fn report(&self) -> Report {
        let body = self.seconds.map_or_else(|| json!({}), |seconds| json!({ "seconds": seconds }));
        let drained: Drained = self.socket.client().post("/v1/drain", &body)?;
        Ok(format!("draining; live sessions: {}\n", drained.sessions))
    }
}

fn render(status: &StatusView) -> String {
    let service = &status.service;
    let state = match service.state {
        ServiceState::Starting => "starting",
        ServiceState::Serving => "serving",
        ServiceState::Draining => "draining",
    };
    let ready =
        status.not_ready.as_ref().map_or_else(|| "ready".to_owned(), |why| format!("not ready: {why}"));
    let mut lines = vec![
        ("state", format!("{state}, {ready}")),
        ("version", status.version.clone()),
        ("process", format!("{}, up {} since {}", status.pid, age(status.uptime_seconds), status.started)),
        ("sessions", status.sessions.to_string()),
        ("configuration", format!("{}, read {}", service.config, service.config_loaded)),
        ("flow engine", format!("{}, {} threads", service.flow_driver, service.flow_threads)),
    ];
    if service.program_replaced {
        lines.push(("program", "another one is installed: `mksgate upgrade` lets it take over".to_owned()));
    }
    if service.sessions_elsewhere > 0 {
        lines.push(("elsewhere", format!("{} sessions are in an older process", service.sessions_elsewhere)));
    }
    lines.extend(service.listeners.iter().map(|listener| ("listens", listener.clone())));
    lines.extend(service.warnings.iter().map(|warning| ("warning", warning.clone())));
    lines.into_iter().map(|(name, value)| format!("{name:<14}{}\n", printable(&value))).collect()
}
