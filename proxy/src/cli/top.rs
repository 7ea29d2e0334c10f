//! `mksgate top`: the live appliance on a terminal.

mod model;
mod view;

use std::error::Error;
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{Event, KeyEventKind, poll, read};

use super::hist::snapshot;
use super::output::{Outcome, SocketArg};
use super::sessions::fetch;
use crate::admin::client::Client;
use crate::admin::{Closed, TenantList};
use crate::session::Selector;

pub use model::{Action, Model, Sample, Sort};
pub use view::draw;

/// `mksgate top`
#[derive(Args, Debug)]
pub struct TopCommand {
    #[command(flatten)]
    socket: SocketArg,
    /// Seconds between two looks
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

impl TopCommand {
    /// Runs until `q`.
    ///
    /// # Errors
    /// No terminal, or the appliance does not answer at the start. Later it is shown, and asked again.
    pub fn run(&self) -> Outcome {
        if !stdout().is_terminal() {
            return Err(
                "standard output is not a terminal; use `mksgate sessions list` or `mksgate status`".into()
            );
        }
        let client = self.socket.client();
        let mut model = Model::new(look(&client)?);
        let mut terminal = ratatui::try_init()?;
        let result = self.watch(&mut terminal, &client, &mut model);
        ratatui::restore();
        result
    }

    fn watch(&self, terminal: &mut DefaultTerminal, client: &Client, model: &mut Model) -> Outcome {
        let interval = Duration::from_secs(self.interval);
        let mut next = Instant::now() + interval;
        loop {
            terminal.draw(|frame| draw(frame, model))?;
            if poll(next.saturating_duration_since(Instant::now()))? {
                if let Event::Key(key) = read()?
                    && key.kind == KeyEventKind::Press
                {
                    match model.key(key.code, key.modifiers) {
                        Action::None => {}
                        Action::Quit => return Ok(()),
                        Action::Close(id) => model.say(close(client, id)),
                    }
                }
                continue;
            }
            match look(client) {
                Ok(sample) => model.update(sample),
                Err(error) => model.say(error.to_string()),
            }
            next = Instant::now() + interval;
        }
    }
}

fn close(client: &Client, id: u64) -> String {
    match client.delete::<Closed>(&format!("/v1/sessions/{id}")) {
        Ok(_) => format!("closed session {id}"),
        Err(error) => error.to_string(),
    }
}

/// Everything of one moment.
///
/// # Errors
/// The appliance does not answer or refuses.
pub fn look(client: &Client) -> Result<Sample, Box<dyn Error>> {
    let tenants: TenantList = client.get("/v1/tenants")?;
    Ok(Sample {
        status: client.get("/v1/status")?,
        sessions: fetch(client, &Selector::default())?.sessions,
        tenants: tenants.tenants,
        latencies: snapshot(client)?,
        metrics: client.get_text("/metrics")?,
        at: Instant::now(),
    })
}

#[cfg(test)]
mod testing {
    //! Looks made up for the tests of model and view.

    use std::sync::LazyLock;

    use super::*;
    use crate::admin::{ServiceState, ServiceStatus, StatusView, TenantLimits, TenantView};
    use crate::metrics::Door;
    use crate::session::{SessionView, SocketView};

    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

    /// A look so many seconds after the first.
    pub(super) fn sample(seconds: u64, sessions: Vec<SessionView>) -> Sample {
        let tenant = |name: &str, max_sessions| TenantView {
            limits: TenantLimits { name: name.into(), max_sessions, ..Default::default() },
            sessions: sessions.iter().filter(|session| session.tenant == name).count(),
            users: 0,
            up_bytes: 0,
            down_bytes: 0,
        };
        Sample {
            status: StatusView {
                version: "1".into(),
                pid: 1,
                started: "2030-01-01T00:00:00.000Z".into(),
                uptime_seconds: 1.0,
                ready: true,
                not_ready: None,
                sessions: sessions.len(),
                service: ServiceStatus { state: ServiceState::Serving, ..Default::default() },
            },
            tenants: vec![tenant("acme", Some(5)), tenant("globex", None)],
            sessions,
            latencies: Default::default(),
            metrics: String::new(),
            at: *BEGIN + Duration::from_secs(seconds),
        }
    }

    /// A session that has sent so many bytes.
    pub(super) fn session(id: u64, tenant: &str, user: &str, up_bytes: u64) -> SessionView {
        let socket = || SocketView { local: "192.0.2.1:902".into(), peer: "198.51.100.1:5000".into() };
        SessionView {
            id,
            door: Door::Authd,
            tenant: tenant.into(),
            user: user.into(),
            vm: "web.vmx".into(),
            jti: format!("t-{id}"),
            mark: 1,
            source: "198.51.100.1:5000".into(),
            client: socket(),
            backend: socket(),
            started: String::new(),
            age_seconds: 10.0,
            idle_seconds: 1.0,
            up_bytes,
            down_bytes: 0,
        }
    }
}
