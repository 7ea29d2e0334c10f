//! `mksgate doctor`: what is wrong on this host, and what to do about it.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::doctor::{self, Finding, Options, Verdict};

/// `mksgate doctor …`
#[derive(Debug, clap::Args)]
pub struct DoctorCommand {
    /// The configuration file.
    #[arg(long, short, env = "MKSGATE_CONFIG", default_value = super::CONFIG)]
    config: PathBuf,
    /// Also try to reach this hypervisor or vCenter; without a port, 443 and 902.
    #[arg(long, value_name = "HOST[:PORT]")]
    host: Vec<String>,
    /// Also see whether this address, which clients use, leads here.
    #[arg(long, value_name = "HOST:PORT")]
    public: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    verdict: Verdict,
    checks: &'a [Finding],
}

/// Prints the findings. The exit code is 0 if all is well, 1 if something could be better, 2 if consoles will be refused.
pub fn run(command: DoctorCommand) -> ExitCode {
    let options = Options { config: command.config, hosts: command.host, public: command.public };
    let findings = doctor::examine(&options);
    let verdict = doctor::worst(&findings);
    if command.json {
        let report = Report { verdict, checks: &findings };
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        findings.iter().for_each(print);
    }
    ExitCode::from(verdict as u8)
}

fn print(finding: &Finding) {
    println!("{:4}  {:14}  {}", finding.verdict.as_str(), finding.check, finding.found);
    if let Some(remedy) = &finding.remedy {
        println!("{:22}→ {remedy}", "");
    }
}
