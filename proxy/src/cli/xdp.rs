//! `mksgate xdp`: the gate in front of the listeners, as the running appliance sees it.

use clap::{Args, Subcommand};

use super::keep::KeepCommand;
use super::output::{Align, Outcome, SocketArg, print, table, to_json};
use crate::admin::SourceList;
use crate::xdp::{GateStatus, OnLimit, ShedStatus};

/// `mksgate xdp`
#[derive(Args, Debug)]
pub struct XdpCommand {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Where the gate is attached, what it holds and what it has counted; or why it is off
    Status {
        #[command(flatten)]
        socket: SocketArg,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold the gate for a proxy that lacks the privileges for it (mksgate-xdp.service)
    ///
    /// The proxy finds it by `[xdp] keeper`. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; attaches nothing before a proxy
    /// asks for it.
    Keep(KeepCommand),
    /// The sources that sent most connection attempts, shed ones first
    TopSources {
        #[command(flatten)]
        socket: SocketArg,
        /// How many
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        count: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl XdpCommand {
    /// Runs it.
    ///
    /// # Errors
    /// The appliance does not answer or refuses.
    pub fn run(&self) -> Outcome {
        match &self.what {
            What::Status { socket, json } => {
                let status: ShedStatus = socket.client().get("/v1/xdp")?;
                print(&if *json { to_json(&status)? } else { render(&status) })
            }
            What::TopSources { socket, count, json } => {
                let list: SourceList = socket.client().get(&format!("/v1/xdp/sources?count={count}"))?;
                print(&if *json { to_json(&list)? } else { sources(&list) })
            }
            What::Keep(keep) => keep.run(),
        }
    }
}

fn render(status: &ShedStatus) -> String {
    let Some(gate) = &status.gate else {
        return format!("off: {}\n", status.off.as_deref().unwrap_or("no reason given"));
    };
    let packets: Vec<_> =
        status.packets.iter().map(|p| vec![p.verdict.clone(), p.packets.to_string()]).collect();
    let mut out = format!(
        "{}\n{}",
        place(gate),
        table(&[("VERDICT", Align::Left), ("PACKETS", Align::Right)], &packets)
    );
    if !status.tenants.is_empty() {
        let head = [
            ("TENANT", Align::Left),
            ("PASSED", Align::Right),
            ("SHED", Align::Right),
            ("RESETS", Align::Right),
        ];
        let name = |name: &str| if name.is_empty() { "(not known)".to_owned() } else { name.to_owned() };
        let row = |t: &crate::xdp::TenantSyns| {
            vec![name(&t.name), t.passed.to_string(), t.shed.to_string(), t.resets.to_string()]
        };
        out.push('\n');
        out.push_str(&table(&head, &status.tenants.iter().map(row).collect::<Vec<_>>()));
    }
    out
}

fn place(gate: &GateStatus) -> String {
    let on_limit = match gate.on_limit {
        OnLimit::Drop => "drop",
        OnLimit::Reset => "reset",
    };
    let interfaces: Vec<_> = gate
        .interfaces
        .iter()
        .map(|i| vec![i.name.clone(), i.mode.clone(), i.problem.clone().unwrap_or_default()])
        .collect();
    let head = [("INTERFACE", Align::Left), ("MODE", Align::Left), ("", Align::Left)];
    format!(
        "{}program {}  on limit {on_limit}  addresses {}  tenants {}  prefixes {}  known sources {} of {}\n",
        table(&head, &interfaces),
        gate.program,
        gate.destinations,
        gate.tenants,
        gate.prefixes,
        gate.known_sources,
        gate.max_sources,
    )
}

fn sources(list: &SourceList) -> String {
    let head = [("SOURCE", Align::Left), ("PASSED", Align::Right), ("SHED", Align::Right)];
    let row = |s: &crate::xdp::LoudSource| vec![s.source.clone(), s.passed.to_string(), s.shed.to_string()];
    table(&head, &list.sources.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::{InterfaceStatus, TenantSyns, VerdictCount};

    #[test]
    fn off_is_said_with_its_reason() {
        let off = Some("the process lacks CAP_BPF".to_owned());
        let status = ShedStatus { off, gate: None, packets: vec![], tenants: vec![] };
        assert_eq!(render(&status), "off: the process lacks CAP_BPF\n");
    }

    #[test]
    fn on_shows_interfaces_verdicts_and_tenants() {
        let interface = InterfaceStatus { name: "eth0".into(), mode: "native".into(), problem: None };
        let gate = GateStatus {
            interfaces: vec![interface],
            program: 7,
            on_limit: OnLimit::Reset,
            destinations: 2,
            tenants: 1,
            prefixes: 0,
            known_sources: 3,
            max_sources: 1024,
        };
        let tenants = vec![TenantSyns { name: String::new(), passed: 5, shed: 6, resets: 4 }];
        let status = ShedStatus {
            off: None,
            gate: Some(gate),
            packets: vec![VerdictCount { verdict: "pass".into(), packets: 5 }],
            tenants,
        };
        let text = render(&status);
        for part in
            ["eth0", "native", "program 7  on limit reset", "known sources 3 of 1024", "pass", "(not known)"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
