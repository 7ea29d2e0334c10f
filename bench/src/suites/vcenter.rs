//! Consoles by way of a vCenter, beside the same consoles straight to the host: what the extra call costs, and how many there are.
//! The vCenter is govmomi's simulator, near (0 ms) and far (50 ms before each answer).

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use mksgate::ticket::{Target, TargetKind};

use crate::load::appliance::{Appliance, TENANT, target};
use crate::load::arrivals::{ArrivalRound, Arrivals, carried, failed, near};
use crate::load::cost::{cores, pin};
use crate::load::crowd::screen;
use crate::load::goals::Goal;
use crate::load::visitor::{Door, Way, client_config};
use crate::run::rounds::{differences, of};
use crate::run::{Context, Outcome, Process, Series, Skip, Spread};
use crate::sim::{Esxi, EsxiConfig, Ticket, Vm};

const SUITE: &str = "vcenter";
/// The machine and what opens it at the host, whatever the vCenter is asked.
const PLAIN: &str = "[bench] plain/plain.vmx";
const TICKET: &str = "plain";
/// How late the vCenters answer, ms.
const LATENCIES: [u64; 2] = [0, 50];
/// Consoles per second in the full run.
const RATES: &[f64] = &[25.0, 50.0, 100.0, 200.0];
/// In the quick one.
const QUICK: &[f64] = &[50.0];
/// The rate whose percentiles are promised.
const PROMISED: f64 = 50.0;
const DIRECT: &str = "esxi-mks";

/// A kind of target, as a contender.
struct Lane {
    name: String,
    way: Way,
    pid: u32,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A running vCenter.
struct Vcenter {
    name: String,
    address: SocketAddr,
    certificate: String,
    vm: String,
    _process: Process,
}

/// Measures consoles through authd, with the ticket's target at the host, at a near vCenter and at a far one.
pub fn run(context: &Context, out: &mut Outcome) -> Result<()> {
    let program = simulator()?;
    let pinned = cores() > 1;
    if pinned {
        pin(std::process::id(), 1..cores());
    }
    let measured = measure(context, out, &program, pinned);
    if pinned {
        pin(std::process::id(), 0..cores());
    }
    measured
}

fn measure(context: &Context, out: &mut Outcome, program: &Path, pinned: bool) -> Result<()> {
    let host = EsxiConfig::default().vm(Vm::plain(PLAIN, screen())).ticket(Ticket::new(TICKET, PLAIN));
    let host = Esxi::start(host).context("the simulated host")?;
    let vcenters: Vec<Vcenter> =
        LATENCIES.iter().map(|ms| Vcenter::start(context, program, &host, *ms)).collect::<Result<_>>()?;
    let sections = |dir: &Path| {
        let secret = dir.join("vcenter.secret");
        fs::write(&secret, "pass")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
        Ok(vcenters.iter().map(Vcenter::section).collect())
    };
    let mut appliance = Appliance::start_configured(context, pinned.then_some("0"), None, sections)?;
    out.version("mksgate", env!("CARGO_PKG_VERSION"));
    let pid = appliance.pid();
    let straight = appliance.way(Door::Authd, &host, PLAIN, TICKET)?;
    let mut lanes = vec![Lane { name: DIRECT.to_owned(), way: straight, pid }];
    for vcenter in &vcenters {
        let way = appliance.way_to(TENANT, Door::Authd, PLAIN, vcenter.target())?;
        lanes.push(Lane { name: vcenter.name.clone(), way, pid });
    }
    let (rounds, seconds, client) = (context.rounds(3, 1), context.seconds(3.0, 2.0), client_config()?);
    // One console each, so that every session is warm.
    for lane in &lanes {
        Arrivals { rate: 5.0, seconds: 0.6, span: 0 }.run(context, &lane.way, Some(pid), &client)?;
    }
    let calls = |appliance: &Appliance| -> Result<Vec<f64>> {
        let metrics = appliance.metrics()?;
        let of = |v: &Vcenter| metrics.sum("mksgate_vcenter_calls_total", &[&format!("\"{}\"", v.label())]);
        Ok(vcenters.iter().map(of).collect())
    };
    let before = calls(&appliance)?;
    let mut all: Vec<(f64, Vec<Series<ArrivalRound>>)> = Vec::new();
    for &rate in context.pick(RATES, QUICK) {
        let case = Arrivals { rate, seconds, span: 0 };
        let series = context.alternate(out, rounds, &mut lanes, |lane: &mut Lane| {
            case.run(context, &lane.way, Some(lane.pid), &client)
        })?;
        out.table(case.table(&series));
        out.raw("rates", serde_json::json!({ "rate": rate, "seconds": seconds, "series": series }));
        all.push((rate, series));
    }
    appliance.alive()?;
    let after = calls(&appliance)?;
    for (n, vcenter) in vcenters.iter().enumerate() {
        let consoles: u64 =
            all.iter().filter_map(|(_, s)| of(s, &vcenter.name)).flat_map(|s| &s.rounds).map(|r| r.due).sum();
        let each = (after[n] - before[n]) / consoles as f64;
        out.raw(
            "calls",
            serde_json::json!({ "vcenter": vcenter.name, "consoles": consoles, "per_console": each }),
        );
        let name = format!("{}: calls per console, sessions warm", vcenter.name);
        out.goals.push(Goal::at_most(SUITE, name, each, 2.0));
    }
    goals(&all, out);
    Ok(())
}

fn goals(all: &[(f64, Vec<Series<ArrivalRound>>)], out: &mut Outcome) {
    let Some((rate, series)) = near(all, PROMISED) else { return };
    for (name, ms) in LATENCIES.map(|ms| (name(ms), ms as f64)) {
        let (Some(ours), Some(straight)) = (of(series, &name), of(series, DIRECT)) else { continue };
        let lost = failed(ours) as f64;
        out.goals.push(Goal::at_most(SUITE, format!("{name}: failed consoles at {rate}/s"), lost, 0.0));
        for (n, percentile, bound) in [(0, "p50", 10.0), (2, "p99", 25.0)] {
            // The simulator's own work is in it, its pause is not.
            let added = differences(ours, straight, |r| r.total[n]);
            let added = Spread { median: added.median - ms, low: added.low - ms, high: added.high - ms };
            let what = format!("{name}: ms added to {percentile} beside the vCenter's latency, at {rate}/s");
            out.goals.push(Goal::at_most(SUITE, what, added, bound));
        }
        let carried = |(rate, series): &&(f64, Vec<_>)| of(series, &name).is_some_and(|s| carried(s, *rate));
        let most = all.iter().filter(carried).map(|(rate, _)| *rate).fold(0.0, f64::max);
        out.goals.push(Goal::at_least(SUITE, format!("{name}: consoles per second carried"), most, PROMISED));
    }
}

fn name(ms: u64) -> String {
    format!("vcenter {ms} ms")
}

impl Vcenter {
    fn start(context: &Context, program: &Path, host: &Esxi, ms: u64) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(["-quiet", "-vm", "1", "-latency", &format!("{ms}ms")])
            .args(["-console-host", &host.addr().ip().to_string()])
            .args(["-console-port", &host.addr().port().to_string()])
            .args(["-console-thumbprint", &host.thumbprint_sha1()])
            .args(["-console-path", PLAIN, "-console-ticket", TICKET]);
        let log = context.dir().join(format!("vcsim-{ms}.log"));
        let mut process = Process::start("the vCenter simulator", &command, &log)?;
        let lines = process.lines_until("listening ")?;
        let field = |key: &str| {
            let line = lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            let word = line.and_then(|line| line.split(' ').next());
            word.map(str::to_owned).with_context(|| format!("the simulator printed no {key}"))
        };
        let (address, certificate, vm) = (field("listening")?.parse()?, field("certificate")?, field("vm")?);
        Ok(Self { name: name(ms), address, certificate, vm, _process: process })
    }

    /// As the configuration and the metrics name it.
    fn label(&self) -> String {
        self.name.replace(' ', "-")
    }

    fn section(&self) -> String {
        let (host, port) = (self.address.ip(), self.address.port());
        format!(
            "[vcenters.{}]\nhost = \"{host}\"\nport = {port}\nthumbprints = [\"{}\"]\nuser = \"user\"\npassword_file = \"vcenter.secret\"\n",
            self.label(),
            self.certificate
        )
    }

    fn target(&self) -> Target {
        let mut target = target(TargetKind::Vcenter, self.address);
        target.cfg_file = Some(self.vm.clone());
        target
    }
}

/// Built from Debian's packages beside this program, anew where its sources changed.
fn simulator() -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/tests/vcsim");
    let govmomi = Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir();
    if !govmomi || !Path::new("/usr/lib/go-1.19/bin/go").is_file() {
        bail!(Skip::because(
            "no vCenter simulator: it needs the Debian packages golang-1.19-go golang-github-vmware-govmomi-dev golang-github-google-uuid-dev"
        ));
    }
    let program = std::env::current_exe()?.with_file_name("vcsim");
    let newer = |file: &str| {
        let changed = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
        match (changed(&sources.join(file)), changed(&program)) {
            (Ok(source), Ok(built)) => source > built,
            _ => true,
        }
    };
    if newer("main.go") || newer("ticket.go") {
        let built = Command::new(sources.join("build.sh")).arg(&program).output()?;
        if !built.status.success() {
            bail!("the vCenter simulator does not build: {}", String::from_utf8_lossy(&built.stderr));
        }
    }
    Ok(program)
}
