//! `cargo xtask dist`: what is handed out.
//!
//! ```text
//!   binary ─┬─ manuals (man pages, completions) ─┬─► .deb
//!           └─ systemd/, docs/, licences ────────┴─► .tar.gz      + SBOM, SHA256SUMS
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::setup::{self, Job};
use crate::sh::{self, cargo, command, root, target};

/// What goes into the tarball besides binary and manuals.
const ALONG: [&str; 4] = ["systemd", "docs", "LICENSE-APACHE", "LICENSE-MIT"];

/// `cargo xtask dist …`
#[derive(clap::Args)]
pub struct Args {
    /// Only the .deb, from an unoptimised build: what the test of the package installs.
    #[arg(long)]
    dev: bool,
}

/// Everything into `target/dist`.
pub fn run(args: &Args) -> Result<()> {
    setup::all(Some(Job::Dist))?;
    let dist = target().join("dist");
    let profile = if args.dev { "dev" } else { "release" };
    sh::run(cargo().args(["build", "--locked", "-p", "mksgate", "--bin", "mksgate", "--profile", profile]))?;
    if args.dev {
        return package_dev(&dist);
    }
    // Where the package's list of files can name it, whatever the build directory is called.
    let manuals_dir = target().join("release/manuals");
    manuals(&manuals_dir)?;
    let name = format!("mksgate_{}_{}", version()?, std::env::consts::ARCH);
    let deb = format!("{name}.deb");
    // Line tables stay: an operator's stack trace names lines.
    sh::run(cargo_deb(&dist.join(&deb)).arg("--no-strip"))?;
    let tarball = tarball(&dist, &name, &manuals_dir)?;
    let sbom = sbom(&dist, &name)?;
    sums(&dist, &[deb, tarball, sbom])?;
    eprintln!("made {}", dist.display());
    Ok(())
}

/// Always from the dev profile: what they say does not depend on it, and it is built already.
fn manuals(into: &Path) -> Result<()> {
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::create_dir_all(into)?;
    sh::run(
        cargo().args(["run", "--quiet", "--locked", "-p", "mksgate", "--example", "manuals", "--"]).arg(into),
    )
}

/// cargo-deb packages releases only, so the unoptimised binary is put where it looks for one.
fn package_dev(dist: &Path) -> Result<()> {
    let place = dist.join("dev");
    fs::create_dir_all(place.join("release"))?;
    fs::copy(target().join("debug/mksgate"), place.join("release/mksgate"))?;
    manuals(&place.join("release/manuals"))?;
    let mut make = cargo_deb(&dist.join("mksgate-dev.deb"));
    sh::run(make.arg("--fast").env("CARGO_TARGET_DIR", &place))
}

fn cargo_deb(deb: &Path) -> Command {
    let mut make = cargo();
    make.args(["deb", "--locked", "-p", "mksgate", "--no-build", "--output"]).arg(deb);
    make
}

fn tarball(dist: &Path, name: &str, manuals: &Path) -> Result<String> {
    let stage = dist.join(name);
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    fs::create_dir_all(stage.join("bin"))?;
    fs::copy(target().join("release/mksgate"), stage.join("bin/mksgate"))?;
    let mut copy = command("cp");
    copy.arg("-r").args(ALONG.map(|part| root().join(part)));
    copy.args(["man", "completions"].map(|part| manuals.join(part))).arg(&stage);
    sh::run(&mut copy)?;
    let file = format!("{name}.tar.gz");
    // The same bytes from the same commit.
    let mut tar = command("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--use-compress-program=gzip -n"]);
    tar.arg(format!("--mtime=@{}", commit_time()?))
        .arg("-C")
        .arg(dist)
        .arg("-cf")
        .arg(dist.join(&file))
        .arg(name);
    sh::run(&mut tar)?;
    fs::remove_dir_all(&stage)?;
    Ok(file)
}

/// CycloneDX: every crate in the binary, with version, licence and checksum.
fn sbom(dist: &Path, name: &str) -> Result<String> {
    let manifest = root().join("proxy/Cargo.toml");
    let mut list = cargo();
    list.args([
        "cyclonedx",
        "--format",
        "json",
        "--spec-version",
        "1.5",
        "--override-filename",
        "mksgate.cdx",
    ]);
    sh::run(list.arg("--manifest-path").arg(&manifest))?;
    let file = format!("{name}.cdx.json");
    fs::rename(written_sbom()?, dist.join(&file))?;
    Ok(file)
}

/// cyclonedx writes one beside every member's manifest; the others are not ours to hand out.
fn written_sbom() -> Result<PathBuf> {
    let beside = |member: &str| root().join(member).join("mksgate.cdx.json");
    for member in ["proxy-common", "bench", "xtask"] {
        let _ = fs::remove_file(beside(member));
    }
    let ours = beside("proxy");
    if ours.exists() { Ok(ours) } else { anyhow::bail!("cargo cyclonedx wrote no {}", ours.display()) }
}

fn sums(dist: &Path, files: &[String]) -> Result<()> {
    let sums =
        command("sha256sum").current_dir(dist).args(files).output().context("sha256sum (coreutils)")?;
    if !sums.status.success() {
        anyhow::bail!("sha256sum: {}", String::from_utf8_lossy(&sums.stderr));
    }
    fs::write(dist.join("SHA256SUMS"), sums.stdout)?;
    Ok(())
}

/// The version of the binary, by its own word.
fn version() -> Result<String> {
    let said = command(&target().join("release/mksgate").to_string_lossy()).arg("--version").output()?;
    let said = String::from_utf8(said.stdout)?;
    Ok(said.split_whitespace().nth(1).context("`mksgate --version` says no version")?.to_owned())
}

fn commit_time() -> Result<String> {
    let log = command("git").args(["log", "-1", "--format=%ct"]).output()?;
    let time = String::from_utf8(log.stdout)?.trim().to_owned();
    // A tree without history (an unpacked source archive) has no better time than the epoch.
    Ok(if time.is_empty() { "0".into() } else { time })
}
