//! A simulated ESXi host on the command line.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Parser;
use mksgate_bench::sim::cert::TlsVersions;
use mksgate_bench::sim::config::{BANNER_ESXI6, BANNER_ESXI8, BANNER_PLAIN};
use mksgate_bench::sim::screen::VncServer;
use mksgate_bench::sim::{Desktop, Drip, Esxi, EsxiConfig, Fault, Faults, Screen, Slow, Step, Ticket, Vm};

/// An ESXi host's console door on TCP, to try a console proxy against.
///
/// Prints one JSON line with addresses and thumbprints when it is ready, and runs until it is told to end (SIGINT, SIGTERM).
#[derive(Parser)]
#[command(name = "sim", version)]
struct Args {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,

    /// A machine's configuration file, as CONNECT names it. May be given more than once; all show the same kind of screen.
    #[arg(long = "vm", default_value = "[datastore1] demo/demo.vmx")]
    vms: Vec<String>,

    /// A ticket for the first machine, or TICKET@FILE for another one. May be given more than once.
    #[arg(long = "ticket", value_name = "TICKET[@FILE]", default_value = "5234f2a1-demo")]
    tickets: Vec<String>,

    /// Tickets work once, as ESXi's do.
    #[arg(long)]
    one_time: bool,

    /// What the machines show: desktop, still, vnc=ADDR, echo, source=BYTES, digest.
    #[arg(long, default_value = "desktop")]
    screen: String,

    /// Password of the VNC server.
    #[arg(long, env = "SIM_VNC_PASSWORD", hide_env_values = true)]
    vnc_password: Option<String>,

    /// The raw TCP stream is the console: no TLS no. 2 after CONNECT.
    #[arg(long)]
    plain: bool,

    /// Banner: esxi8, esxi6, plain (without `SSL Required`), or the text itself.
    #[arg(long, default_value = "esxi8")]
    banner: String,

    /// TLS versions offered: 1.2, 1.3, both.
    #[arg(long, default_value = "both")]
    tls: String,

    /// Threads that serve connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// STEP=FAULT. Steps: banner, tls1, user, pass, thumbprint, connect, tls2, nonce, screen. Faults: stall, close, reset, wrong-certificate, a
    /// reply code, line:TEXT.
    #[arg(long = "fault", value_name = "STEP=FAULT")]
    faults: Vec<String>,

    /// Send one byte at a time.
    #[arg(long)]
    drip: bool,

    /// Read the console slowly: BYTES per second.
    #[arg(long, value_name = "BYTES")]
    slow: Option<usize>,

    /// Write events to stderr.
    #[arg(long)]
    events: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let esxi = Esxi::start(config(&args)?).with_context(|| format!("cannot listen on {}", args.listen))?;
    writeln!(std::io::stdout(), "{}", ready(&esxi, &args))?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&esxi, args.events))?;
    esxi.stop();
    Ok(())
}

async fn run(esxi: &Esxi, verbose: bool) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let log = async {
        let mut events = esxi.events();
        loop {
            if let Some(event) = events.wait(Duration::from_secs(3600), |_| true).await {
                eprintln!("{}: {:?}", event.conn, event.kind);
            }
        }
    };
    tokio::select! {
        () = log, if verbose => Ok(()),
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

fn config(args: &Args) -> Result<EsxiConfig> {
    let banner = match args.banner.as_str() {
        "esxi8" => BANNER_ESXI8,
        "esxi6" => BANNER_ESXI6,
        "plain" => BANNER_PLAIN,
        text => text,
    };
    let mut config = EsxiConfig {
        listen: args.listen,
        threads: args.threads,
        tls: tls(&args.tls)?,
        faults: faults(args)?,
        ..EsxiConfig::default().banner(banner)
    };
    for path in &args.vms {
        let vm = Vm::new(path, screen(&args.screen, args.vnc_password.as_deref())?);
        config = config.vm(Vm { plain: args.plain, ..vm });
    }
    for text in &args.tickets {
        let (name, vm) = text.split_once('@').unwrap_or((text, &args.vms[0]));
        config = config.ticket(Ticket { one_time: args.one_time, ..Ticket::new(name, vm) });
    }
    Ok(config)
}

fn tls(text: &str) -> Result<TlsVersions> {
    match text {
        "1.2" => Ok(TlsVersions::Tls12),
        "1.3" => Ok(TlsVersions::Tls13),
        "both" => Ok(TlsVersions::Both),
        _ => bail!("--tls {text}: one of 1.2, 1.3, both"),
    }
}

fn screen(text: &str, password: Option<&str>) -> Result<Screen> {
    Ok(match text.split_once('=').unwrap_or((text, "")) {
        ("desktop", _) => Screen::desktop(),
        ("still", _) => Screen::Desktop(Desktop::still()),
        ("echo", _) => Screen::echo(),
        ("digest", _) => Screen::digest(),
        ("source", bytes) => Screen::source(bytes.parse().context("--screen source=BYTES")?, 1),
        ("vnc", addr) => Screen::Vnc(VncServer {
            addr: addr.parse().context("--screen vnc=ADDR takes an address and a port")?,
            password: password.map(str::to_owned),
        }),
        _ => bail!("--screen {text}: one of desktop, still, vnc=ADDR, echo, source=BYTES, digest"),
    })
}

fn faults(args: &Args) -> Result<Faults> {
    let mut faults = Faults::none();
    for text in &args.faults {
        let (step, fault) = text.split_once('=').with_context(|| format!("--fault {text}: STEP=FAULT"))?;
        let step: Step = step.parse().map_err(|err| anyhow!("--fault {text}: {err}"))?;
        faults = faults.at(step, fault_of(fault).with_context(|| format!("--fault {text}"))?);
    }
    if args.drip {
        faults = faults.drip(Drip::byte_by_byte());
    }
    if let Some(bytes) = args.slow {
        faults = faults.slow_reader(Slow { bytes: bytes.div_ceil(10), every: Duration::from_millis(100) });
    }
    Ok(faults)
}

fn fault_of(text: &str) -> Result<Fault> {
    Ok(match text {
        "stall" => Fault::Stall,
        "close" => Fault::Close,
        "reset" => Fault::Reset,
        "wrong-certificate" => Fault::WrongCertificate,
        _ => match (text.strip_prefix("line:"), text.parse()) {
            (Some(line), _) => Fault::line(line),
            (None, Ok(code)) => Fault::code(code),
            (None, Err(_)) => bail!("no such fault"),
        },
    })
}

fn ready(esxi: &Esxi, args: &Args) -> serde_json::Value {
    let vms = args.vms.iter().map(|path| {
        let identity = esxi.vm_identity(path);
        serde_json::json!({
            "path": path,
            "thumbprint_sha1": identity.as_ref().map(|identity| identity.sha1()),
            "thumbprint_sha256": identity.as_ref().map(|identity| identity.sha256()),
        })
    });
    serde_json::json!({
        "addr": esxi.addr(),
        "thumbprint_sha1": esxi.thumbprint_sha1(),
        "thumbprint_sha256": esxi.thumbprint_sha256(),
        "vms": vms.collect::<Vec<_>>(),
        "tickets": args.tickets,
    })
}
