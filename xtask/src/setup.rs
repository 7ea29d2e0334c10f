//! What the tasks need beyond cargo: found, or installed after saying so, or named exactly where it may not be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use nix::unistd::Uid;

use crate::sh::{self, cargo, command, find, run, succeeds, target};

/// Python packages of the tests: independent implementations to test against.
const REQUIREMENTS: &str = "xtask/requirements.txt";
/// Where Debian puts LLVM 22.
const LLVM: &str = "/usr/lib/llvm-22";

/// A task that may need something.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Job {
    /// `cargo xtask build`
    Build,
    /// `cargo xtask build --fips`
    Fips,
    /// `cargo xtask demo --qemu`
    DemoQemu,
    /// `cargo xtask test`
    Test,
    /// `cargo xtask lint`
    Lint,
    /// `cargo xtask bench`
    Bench,
    /// `cargo xtask guard`
    Guard,
    /// `cargo xtask dist`
    Dist,
    /// The XDP program
    Ebpf,
    /// `cargo xtask vm`
    Vm,
}

/// One thing that may be missing.
struct Need {
    what: &'static str,
    why: &'static str,
    jobs: &'static [Job],
    found: fn() -> bool,
    from: Source,
}

/// Where it comes from.
enum Source {
    /// Debian packages.
    Apt(&'static [&'static str]),
    /// `cargo install` with these arguments.
    Cargo(&'static [&'static str]),
    /// The virtual environment under the build directory.
    Python,
    /// The packages of a folder with a package-lock.json.
    Node(&'static str),
}

const NEEDS: &[Need] = &[
    Need {
        what: "qemu-system-x86_64",
        why: "a real machine's screen; another kernel",
        jobs: &[Job::DemoQemu, Job::Test, Job::Vm],
        found: || find("qemu-system-x86_64").is_some(),
        from: Source::Apt(&["qemu-system-x86"]),
    },
    Need {
        what: "nmap",
        why: "a client of another make: service probe and vmauthd-brute",
        jobs: &[Job::Test],
        found: || find("nmap").is_some(),
        from: Source::Apt(&["nmap"]),
    },
    Need {
        what: "busybox",
        why: "the first programs of the machine with another kernel",
        jobs: &[Job::Test, Job::Vm],
        found: || find("busybox").is_some(),
        from: Source::Apt(&["busybox-static"]),
    },
    Need {
        what: "ip and ss",
        why: "network namespaces of the tests",
        jobs: &[Job::Test, Job::Bench],
        found: || find("ip").is_some() && find("ss").is_some(),
        from: Source::Apt(&["iproute2"]),
    },
    Need {
        what: "Python with venv",
        why: "independent JOSE and VNC implementations",
        jobs: &[Job::Test],
        found: || succeeds(command("python3").args(["-c", "import ensurepip, venv"])),
        from: Source::Apt(&["python3", "python3-venv"]),
    },
    Need {
        what: "Python packages",
        why: "the same",
        jobs: &[Job::Test],
        found: python_is_current,
        from: Source::Python,
    },
    Need {
        what: "chromium",
        why: "consoles in a real browser",
        jobs: &[Job::Test],
        found: || find("chromium").is_some(),
        from: Source::Apt(&["chromium"]),
    },
    Need {
        what: "node and npm",
        why: "fetch the console page's viewer, drive the browser",
        jobs: &[Job::Build, Job::Dist, Job::Test],
        found: || find("node").is_some() && find("npm").is_some(),
        from: Source::Apt(&["nodejs", "npm"]),
    },
    Need {
        what: "noVNC",
        why: "the viewer in the console page",
        jobs: &[Job::Build, Job::Dist, Job::Test],
        found: || node_is_current("proxy/console"),
        from: Source::Node("proxy/console"),
    },
    Need {
        what: "Node packages",
        why: "clients of other makes in a browser",
        jobs: &[Job::Test],
        found: || node_is_current("proxy/tests/web"),
        from: Source::Node("proxy/tests/web"),
    },
    Need {
        what: "govmomi and Go",
        why: "a vCenter of another make (its simulator)",
        jobs: &[Job::Test, Job::Bench],
        found: || {
            Path::new("/usr/share/gocode/src/github.com/vmware/govmomi/simulator").is_dir()
                && Path::new("/usr/share/gocode/src/github.com/google/uuid").is_dir()
                && Path::new("/usr/lib/go-1.19/bin/go").exists()
        },
        from: Source::Apt(&[
            "golang-1.19-go",
            "golang-github-vmware-govmomi-dev",
            "golang-github-google-uuid-dev",
        ]),
    },
    Need {
        what: "testssl",
        why: "an auditor of another make at the TLS door",
        jobs: &[Job::Test],
        found: || find("testssl").is_some(),
        from: Source::Apt(&["testssl.sh"]),
    },
    Need {
        what: "CMake and Go",
        why: "build the FIPS 140-3 validated module",
        jobs: &[Job::Fips],
        found: || find("cmake").is_some() && find("go").is_some(),
        from: Source::Apt(&["cmake", "golang-go"]),
    },
    Need {
        what: "cargo-nextest",
        why: "the test runner: one process per test, time limits",
        jobs: &[Job::Test],
        found: || succeeds(cargo().args(["nextest", "--version"])),
        from: Source::Cargo(&[
            "cargo-nextest",
            "--version",
            "0.9.143",
            "--no-default-features",
            "--features",
            "default-no-update",
        ]),
    },
    Need {
        what: "cargo-deny",
        why: "licences, duplicates and sources of the dependencies",
        jobs: &[Job::Lint],
        found: || succeeds(cargo().args(["deny", "--version"])),
        from: Source::Cargo(&["cargo-deny", "--version", "0.20.2"]),
    },
    Need {
        what: "cargo-deb",
        why: "makes the .deb",
        jobs: &[Job::Dist, Job::Test],
        found: || succeeds(cargo().args(["deb", "--version"])),
        from: Source::Cargo(&["cargo-deb", "--version", "3.8.0"]),
    },
    Need {
        what: "dpkg-shlibdeps",
        why: "finds the libraries that the .deb depends on",
        jobs: &[Job::Dist, Job::Test],
        found: || find("dpkg-shlibdeps").is_some(),
        from: Source::Apt(&["dpkg-dev"]),
    },
    Need {
        what: "cargo-cyclonedx",
        why: "lists what is in the binary",
        jobs: &[Job::Dist],
        found: || succeeds(cargo().args(["cyclonedx", "--version"])),
        from: Source::Cargo(&["cargo-cyclonedx", "--version", "0.5.9"]),
    },
    Need {
        what: "debootstrap",
        why: "the root in which the package is installed",
        jobs: &[Job::Test],
        found: || find("debootstrap").is_some(),
        from: Source::Apt(&["debootstrap"]),
    },
    Need {
        what: "faketime",
        why: "sets the clock of one process",
        jobs: &[Job::Test],
        found: || find("faketime").is_some(),
        from: Source::Apt(&["faketime"]),
    },
    Need {
        what: "systemd-nspawn",
        why: "boots that root",
        jobs: &[Job::Test],
        found: || find("systemd-nspawn").is_some(),
        from: Source::Apt(&["systemd-container"]),
    },
    Need {
        what: "haproxy",
        why: "balances two cells; measured beside mksgate",
        jobs: &[Job::Bench, Job::Test],
        found: || find("haproxy").is_some(),
        from: Source::Apt(&["haproxy"]),
    },
    Need {
        what: "nginx with its stream module",
        why: "measured beside mksgate",
        jobs: &[Job::Bench],
        found: || {
            find("nginx").is_some() && Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists()
        },
        from: Source::Apt(&["nginx", "libnginx-mod-stream"]),
    },
    Need {
        what: "stunnel4",
        why: "measured beside mksgate",
        jobs: &[Job::Bench],
        found: || find("stunnel4").is_some(),
        from: Source::Apt(&["stunnel4"]),
    },
    Need {
        what: "websockify",
        why: "measured beside mksgate",
        jobs: &[Job::Bench],
        found: || find("websockify").is_some(),
        from: Source::Apt(&["websockify"]),
    },
    Need {
        what: "nft",
        why: "rules of the XDP gate's policy, measured beside it",
        jobs: &[Job::Bench],
        found: || find("nft").is_some(),
        from: Source::Apt(&["nftables"]),
    },
    Need {
        what: "valgrind",
        why: "counts instructions",
        jobs: &[Job::Guard, Job::Test],
        found: || find("valgrind").is_some(),
        from: Source::Apt(&["valgrind"]),
    },
    Need {
        what: "a Rust compiler for BPF",
        why: "builds the XDP program",
        jobs: &[Job::Ebpf, Job::Test, Job::Vm],
        found: || nightly_source() || debian_source(),
        from: Source::Apt(&["rustc-web", "rust-web-src"]),
    },
    Need {
        what: "LLVM 22",
        why: "bpf-linker is built with it; it must be at least the BPF compiler's",
        jobs: &[Job::Ebpf, Job::Test, Job::Vm],
        found: || find("bpf-linker").is_some() || Path::new(LLVM).exists(),
        from: Source::Apt(&["llvm-22-dev"]),
    },
    Need {
        what: "bpf-linker",
        why: "links the XDP program",
        jobs: &[Job::Ebpf, Job::Test, Job::Vm],
        found: || find("bpf-linker").is_some(),
        from: Source::Cargo(&[
            "bpf-linker",
            "--version",
            "0.13.0",
            "--no-default-features",
            "--features",
            "llvm-22",
        ]),
    },
];

/// Installs what is missing for a task, or for all.
pub fn all(job: Option<Job>) -> Result<()> {
    let missing = missing(job);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("Missing, and installed now:");
    list(&missing);
    apt(&missing)?;
    for need in missing {
        match need.from {
            Source::Apt(_) => {}
            Source::Cargo(args) => {
                run(cargo().args(["install", "--locked"]).args(args).env("LLVM_PREFIX", LLVM))?;
            }
            Source::Python => python_install()?,
            Source::Node(folder) => node_install(folder)?,
        }
        if !(need.found)() {
            bail!("{} was installed and is still not found; is ~/.cargo/bin in PATH?", need.what);
        }
    }
    Ok(())
}

/// Says what is missing for a task, or for all; an error if anything is.
pub fn check(job: Option<Job>) -> Result<()> {
    let missing = missing(job);
    if missing.is_empty() {
        eprintln!("nothing is missing");
        return Ok(());
    }
    list(&missing);
    bail!("{} missing; `cargo xtask setup` installs them", missing.len());
}

/// The Python that has the packages of the tests.
pub fn python() -> PathBuf {
    target().join("venv/bin/python")
}

fn missing(job: Option<Job>) -> Vec<&'static Need> {
    let wanted = |need: &&Need| job.is_none_or(|job| need.jobs.contains(&job));
    NEEDS.iter().filter(wanted).filter(|need| !(need.found)()).collect()
}

fn list(missing: &[&Need]) {
    for need in missing {
        let from = match need.from {
            Source::Apt(packages) => format!("apt-get install {}", packages.join(" ")),
            Source::Cargo(args) => format!("cargo install --locked {}", args.join(" ")),
            Source::Node(folder) => format!("npm ci in {folder}"),
            Source::Python => {
                format!("pip install -r {REQUIREMENTS}, into {}", target().join("venv").display())
            }
        };
        eprintln!("  {} ({}): {from}", need.what, need.why);
    }
}

/// All Debian packages in one go.
fn apt(missing: &[&Need]) -> Result<()> {
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|need| if let Source::Apt(packages) = need.from { Some(packages) } else { None })
        .flatten()
        .copied()
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    let Some(mut update) = apt_get() else {
        bail!(
            "may not install Debian packages here (not root, and no sudo without a password, or no apt-get). Please run:\n    \
             sudo apt-get install --no-install-recommends {}\nor install the same on your system, then try again",
            packages.join(" ")
        );
    };
    run(update.arg("update"))?;
    let mut install = apt_get().context("apt-get is gone")?;
    run(install.args(["install", "-y", "--no-install-recommends"]).args(packages))
}

/// apt-get with the right to install, if there is one.
fn apt_get() -> Option<Command> {
    find("apt-get")?;
    let mut apt = if Uid::effective().is_root() {
        command("apt-get")
    } else if succeeds(command("sudo").args(["-n", "true"])) {
        let mut sudo = command("sudo");
        sudo.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        return None;
    };
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    Some(apt)
}

fn python_is_current() -> bool {
    same(&target().join("venv/requirements.txt"), &sh::root().join(REQUIREMENTS)) && python().exists()
}

/// Whether two files are there and hold the same.
fn same(one: &Path, other: &Path) -> bool {
    matches!((fs::read(one), fs::read(other)), (Ok(one), Ok(other)) if one == other)
}

/// A copy of the lock file that the packages were installed by.
fn node_stamp(folder: &str) -> PathBuf {
    sh::root().join(folder).join("node_modules/.installed-by")
}

fn node_is_current(folder: &str) -> bool {
    same(&node_stamp(folder), &sh::root().join(folder).join("package-lock.json"))
}

fn node_install(folder: &str) -> Result<()> {
    run(command("npm").args(["ci", "--prefix", folder, "--no-audit", "--no-fund", "--loglevel=error"]))?;
    fs::copy(sh::root().join(folder).join("package-lock.json"), node_stamp(folder))?;
    Ok(())
}

fn python_install() -> Result<()> {
    let venv = target().join("venv");
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    let mut pip = command(&python().to_string_lossy());
    run(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]))?;
    fs::copy(sh::root().join(REQUIREMENTS), venv.join("requirements.txt"))?;
    Ok(())
}

/// A nightly toolchain of rustup with the library's source.
fn nightly_source() -> bool {
    has_library_source(command("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))
}

/// Debian's own compiler with the library's source.
fn debian_source() -> bool {
    has_library_source(command("/usr/bin/rustc").args(["--print", "sysroot"]))
}

/// Whether the sysroot that this prints holds the source of `core`.
fn has_library_source(print_sysroot: &mut Command) -> bool {
    print_sysroot.output().is_ok_and(|rustc| {
        let sysroot = String::from_utf8_lossy(&rustc.stdout).trim().to_owned();
        rustc.status.success() && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").exists()
    })
}
