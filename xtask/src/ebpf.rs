//! `cargo xtask ebpf`: builds the XDP program with whichever toolchain the machine offers.
//!
//! The target `bpfel-unknown-none` has no pre-built `core`, so it takes a compiler that builds it from source:
//! a nightly with `rust-src` from rustup, or Debian's `rustc-web` with `rust-web-src`; and `bpf-linker` for either.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

const MISSING: &str = "No toolchain for the XDP program. One of these provides it:

  rustup toolchain install nightly --component rust-src
  cargo install bpf-linker

  (Debian 12)
  apt-get install -y --no-install-recommends rustc-web rust-web-src llvm-22-dev
  LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22";

/// Emulated processor: compare-exchange and 32-bit jumps, Linux 5.12. The frame's fields are not aligned; the kernel
/// allows such loads on every processor that has them.
const FLAGS: [&str; 4] = [
    "-Ctarget-cpu=v3",
    "-Clinker=bpf-linker",
    "-Clink-arg=--btf",
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// A compiler that can build `core` for the target.
enum Compiler {
    /// `rustup run TOOLCHAIN cargo`.
    Rustup(String),
    /// A rustc outside rustup, and RUSTC_BOOTSTRAP for it.
    Path(PathBuf),
}

/// Runs the command.
pub fn run(if_possible: bool) -> Result<()> {
    let compiler = match toolchain() {
        Ok(compiler) => compiler,
        Err(missing) if if_possible => {
            println!("{missing}\n\nGoing on without: mksgate will run with XDP off and say so.");
            return Ok(());
        }
        Err(missing) => bail!("{missing}"),
    };
    println!("building the XDP program with {compiler}");
    let root = root()?;
    let built = build(&root, &compiler)?;
    let object = root.join("target/bpf/mksgate-xdp");
    if replace(&built, &object)? {
        println!("{}: new", object.display());
    } else {
        println!("{}: unchanged", object.display());
    }
    Ok(())
}

fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent folder")?.to_owned())
}

/// The compiler, or what is missing in words.
fn toolchain() -> Result<Compiler, String> {
    let compiler = rustup_nightly().or_else(debian);
    let linker = output("bpf-linker", &["--version"]);
    let lacks = match (&compiler, &linker) {
        (None, None) => "a compiler with the source of its library, and bpf-linker",
        (None, Some(_)) => "a compiler with the source of its library",
        (Some(_), None) => "bpf-linker",
        (Some(_), Some(_)) => "",
    };
    match compiler {
        Some(compiler) if lacks.is_empty() => Ok(compiler),
        _ => Err(format!("{MISSING}\n\nMissing here: {lacks}.")),
    }
}

/// The first nightly of rustup that has `rust-src`.
fn rustup_nightly() -> Option<Compiler> {
    let list = output("rustup", &["toolchain", "list"])?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let mut nightlies = names.filter(|name| name.starts_with("nightly"));
    let found = nightlies.find(|name| {
        output("rustup", &["run", name, "rustc", "--print", "sysroot"]).is_some_and(|root| has_source(&root))
    });
    found.map(|name| Compiler::Rustup(name.to_owned()))
}

/// A distribution's compiler beside its library's source.
fn debian() -> Option<Compiler> {
    let rustc = "/usr/bin/rustc";
    let sysroot = output(rustc, &["--print", "sysroot"])?;
    has_source(&sysroot).then(|| Compiler::Path(rustc.into()))
}

fn has_source(sysroot: &str) -> bool {
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}

/// What a command prints, if it exists and succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let done = Command::new(program).args(args).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

fn build(root: &Path, compiler: &Compiler) -> Result<PathBuf> {
    let (folder, target) = (root.join("proxy-ebpf"), root.join("target/bpf-build"));
    let mut command = match compiler {
        Compiler::Rustup(name) => {
            let mut command = Command::new("rustup");
            command.args(["run", name, "cargo"]);
            command
        }
        Compiler::Path(rustc) => {
            let mut command = Command::new("cargo");
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
    };
    // What the outer cargo has set is for the host.
    for name in
        ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"]
    {
        command.env_remove(name);
    }
    if matches!(compiler, Compiler::Rustup(_)) {
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
    }
    let remap = format!("--remap-path-prefix={}=.", root.display());
    let flags: Vec<&str> = FLAGS.into_iter().chain([remap.as_str()]).collect();
    let status = command
        .current_dir(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--release", "--locked", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(&target)
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("the XDP program does not build: {status}");
    }
    Ok(target.join("bpfel-unknown-none/release/mksgate-xdp"))
}

/// Puts the object in place, at once and only if it differs: mksgate is built again whenever the folder changes.
fn replace(built: &Path, object: &Path) -> Result<bool> {
    let new = fs::read(built).with_context(|| built.display().to_string())?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    let folder = object.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    // Beside the folder, so that no build sees half of it.
    let half = folder.with_extension(format!("{}.new", std::process::id()));
    fs::write(&half, new).with_context(|| half.display().to_string())?;
    fs::rename(&half, object).with_context(|| object.display().to_string())?;
    Ok(true)
}

impl std::fmt::Display for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Compiler::Rustup(name) => write!(f, "rustup's {name}"),
            Compiler::Path(rustc) => write!(f, "{}", rustc.display()),
        }
    }
}
