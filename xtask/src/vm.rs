//! `cargo xtask vm`: the XDP gate on another kernel, Debian's 6.1, in QEMU without KVM: the program passes that verifier, is
//! attached to a veth there, and the limits hold. For function, never for speed.
//!
//! The machine's root is this host's, read-only by 9p with a tmpfs above; the tests that run there are this build's.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::sh::{self, cargo, command, run, target};
use crate::{ebpf, setup, setup::Job};

/// Modules of Debian's kernel, in the order in which they are loaded; `veth` is the tests'.
const MODULES: [&str; 12] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "overlay",
    "veth",
];
/// Test binaries, what of them is left out because emulation takes too long for it, and what is enough for `--quick`.
const TESTS: [(&str, &str, &[&str]); 5] = [
    (
        "xdp_program",
        "a_hundred_thousand_packets",
        &[
            "the_kernel_accepts_the_program",
            "limits_are_exact_by_the_published_count",
            "resets_are_whole_packets_on_every_layer",
        ],
    ),
    (
        "xdp_attach",
        "an_upgrade",
        &["native_where_the_driver_has_it_and_gone_with_the_gate", "generic_as_configured"],
    ),
    ("xdp_traffic", "everything_else_passes", &["a_source_beyond_its_rate_waits_and_others_do_not"]),
    (
        "xdp_keeper",
        "upgrade",
        &["a_full_tenant_gets_a_reset_or_silence_and_the_appliance_has_no_privilege_for_it"],
    ),
    (
        "xdp_keeper_store",
        "another_build",
        &["a_killed_keeper_costs_neither_the_gate_nor_its_counters_sources_or_limit"],
    ),
];
/// The machine says so when every test has passed.
const PASSED: &str = "vm: all tests passed";

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Another package of a kernel; without, the newest 6.1 that Debian has.
    #[arg(long, value_name = "PACKAGE")]
    kernel: Option<String>,
    /// Only what shows that the program loads, attaches and sheds, by a keeper too: a quarter of the time.
    #[arg(long)]
    quick: bool,
}

impl Args {
    /// What `cargo xtask test` wants.
    pub fn quick() -> Args {
        Args { kernel: None, quick: true }
    }
}

/// Runs the command.
pub fn run_tests(args: &Args) -> Result<()> {
    setup::all(Some(Job::Vm))?;
    ebpf::run(false)?;
    let folder = target().join("vm");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let kernel = fetch(args.kernel.as_deref(), &folder)?;
    let binaries = TESTS.iter().map(|(name, ..)| test_binary(name)).collect::<Result<Vec<_>>>()?;
    let initrd = initrd(&kernel, &folder, &init(&binaries, args.quick))?;
    boot(&kernel, &initrd)
}

/// Downloads and unpacks the kernel's package, once. Its folder.
fn fetch(package: Option<&str>, folder: &Path) -> Result<PathBuf> {
    let package = match package {
        Some(package) => package.to_owned(),
        None => newest()?,
    };
    let unpacked = folder.join(&package);
    if unpacked.join("boot").is_dir() {
        return Ok(unpacked);
    }
    let half = folder.join(format!("{package}.{}", std::process::id()));
    fs::create_dir_all(&half)?;
    run(command("apt-get").args(["download", &package]).current_dir(&half))?;
    let mut found = fs::read_dir(&half)?.filter_map(|e| Some(e.ok()?.path()));
    let deb = found.find(|path| path.extension().is_some_and(|e| e == "deb")).context("no package came")?;
    run(command("dpkg").arg("-x").arg(&deb).arg(half.join("root")))?;
    fs::rename(half.join("root"), &unpacked)?;
    fs::remove_dir_all(&half)?;
    Ok(unpacked)
}

/// The newest 6.1 that Debian has.
fn newest() -> Result<String> {
    let mut search = command("apt-cache");
    search.args(["search", "--names-only", r"^linux-image-6\.1\.0-[0-9]+-amd64$"]);
    let list = search.output().context("running apt-cache")?;
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    let number = |name: &str| name.split('-').nth(3).and_then(|n| n.parse::<u32>().ok());
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    let newest = names.max_by_key(|name| number(name));
    newest
        .map(str::to_owned)
        .context("apt knows no linux-image-6.1.0-*-amd64; is Debian 12 among its sources?")
}

/// Builds a test of the proxy; where the binary is.
fn test_binary(name: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["test", "--locked", "--no-run", "-p", "mksgate", "--message-format", "json", "--test", name]);
    let done = build.stderr(Stdio::inherit()).output().context("running cargo")?;
    if !done.status.success() {
        bail!("the test {name} does not build");
    }
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    // One line of JSON per crate; the one wanted names the test and an executable.
    let wanted = format!("\"name\":\"{name}\"");
    let line = text.lines().rev().find(|l| l.contains(&wanted) && l.contains("\"executable\":\""));
    let path = line.and_then(|l| l.split("\"executable\":\"").nth(1)?.split('"').next());
    path.map(PathBuf::from).with_context(|| format!("cargo names no executable of {name}"))
}

/// The kernel's release, by the name of its image.
fn release(kernel: &Path) -> Result<String> {
    let entries = fs::read_dir(kernel.join("boot"))?;
    let mut names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let image = names.find(|name| name.starts_with("vmlinuz-")).context("the package has no kernel")?;
    Ok(image.trim_start_matches("vmlinuz-").to_owned())
}

/// A cpio archive with busybox, the modules and a script; its path.
fn initrd(kernel: &Path, folder: &Path, init: &str) -> Result<PathBuf> {
    let root = folder.join(format!("initrd.{}", std::process::id()));
    for dir in ["bin", "modules", "proc", "sys", "dev", "host", "top", "root"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = sh::find("busybox").context("busybox-static is missing")?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    let modules = kernel.join("lib/modules").join(release(kernel)?);
    for name in MODULES {
        let file =
            find_module(&modules, name)?.with_context(|| format!("the kernel has no module {name}"))?;
        fs::copy(file, root.join(format!("modules/{name}.ko")))?;
    }
    let script = root.join("init");
    fs::write(&script, init)?;
    run(command("chmod").arg("755").arg(&script))?;
    let archive = folder.join(format!("initrd.{}.cpio", std::process::id()));
    let pack = format!("find . | busybox cpio -o -H newc > {}", archive.display());
    let packed = run(command("sh").args(["-c", &pack]).current_dir(&root));
    fs::remove_dir_all(&root)?;
    packed.map(|()| archive)
}

fn find_module(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_module(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.file_name().is_some_and(|file| file.to_string_lossy() == format!("{name}.ko")) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// What the machine does: modules, the host's root under a tmpfs, the tests, the end.
fn init(binaries: &[PathBuf], quick: bool) -> String {
    let load: String = MODULES.iter().map(|m| format!("insmod /modules/{m}.ko\n")).collect();
    let tests: String = TESTS
        .iter()
        .zip(binaries)
        .map(|((_, left_out, enough), binary)| {
            let which =
                if quick { format!("--exact {}", enough.join(" ")) } else { format!("--skip {left_out}") };
            format!("chroot /root {} --test-threads=1 --color=never {which} || failed=1\n", binary.display())
        })
        .collect();
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev\n\
         {load}\
         mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host\n\
         mount -t tmpfs tmpfs /top; mkdir /top/upper /top/work\n\
         mount -t overlay -o lowerdir=/host,upperdir=/top/upper,workdir=/top/work overlay /root\n\
         mount -t proc proc /root/proc; mount -t sysfs sysfs /root/sys; mount -t devtmpfs dev /root/dev\n\
         mount -t tmpfs tmpfs /root/tmp; mount -t tmpfs tmpfs /root/run\n\
         ulimit -l unlimited; ip link set lo up\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp MKSGATE_FULL_TESTS=1\n\
         echo \"vm: Linux $(uname -r)\"\n\
         failed=0\n\
         {tests}\
         [ $failed = 0 ] && echo '{PASSED}'\n\
         poweroff -f\n"
    )
}

/// Boots it, shows what it prints, and takes its word.
fn boot(kernel: &Path, initrd: &Path) -> Result<()> {
    let image = kernel.join("boot").join(format!("vmlinuz-{}", release(kernel)?));
    let mut qemu = command("qemu-system-x86_64");
    qemu.args([
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
        "-nodefaults",
        "-no-reboot",
    ])
    .args(["-display", "none", "-serial", "stdio", "-monitor", "none"])
    .args(["-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"])
    .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
    .arg("-kernel")
    .arg(&image)
    .arg("-initrd")
    .arg(initrd);
    // `timeout` ends what hangs: a kernel that does not boot says nothing.
    let mut limited = command("timeout");
    limited.args(["-k", "5", "900"]).arg(qemu.get_program()).args(qemu.get_args()).stdout(Stdio::piped());
    let mut child = limited.spawn().context("running qemu-system-x86_64")?;
    let output = child.stdout.take().context("the machine's console")?;
    let (mut passed, mut out) = (false, std::io::stdout());
    for line in std::io::BufRead::lines(std::io::BufReader::new(output)) {
        let line = line?;
        passed |= line.trim_end() == PASSED;
        writeln!(out, "{}", line.trim_end())?;
    }
    let status = child.wait()?;
    fs::remove_file(initrd)?;
    if !passed {
        bail!("the tests in the machine did not pass ({status}); what it printed is above");
    }
    Ok(())
}
