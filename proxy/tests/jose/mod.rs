//! A Python with joserfc: from the environment, or in a virtual environment of its own under target/.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const REQUIREMENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/jose/requirements.txt");

/// `MKSGATE_PYTHON` if set, which must have joserfc; else one that is made here. `None` says, after printing why, that the
/// test cannot run; with `MKSGATE_FULL_TESTS=1` that is a failure.
pub fn python() -> Option<PathBuf> {
    let found = match std::env::var_os("MKSGATE_PYTHON") {
        Some(python) => check(python.into()),
        None => virtual_environment().and_then(check),
    };
    match found {
        Ok(python) => Some(python),
        Err(why) if std::env::var_os("MKSGATE_FULL_TESTS").is_some_and(|v| v == "1") => panic!("{why}"),
        Err(why) => {
            eprintln!("skipped: {why}");
            None
        }
    }
}

/// Standard output of a program, or its standard error.
pub fn run(python: &Path, args: &[OsString], input: &str) -> Result<String, String> {
    let mut child = Command::new(python)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", python.display()))?;
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    // A program that fails early closes it; its exit status tells.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn check(python: PathBuf) -> Result<PathBuf, String> {
    match run(&python, &["-c".into(), "import joserfc".into()], "") {
        Ok(_) => Ok(python),
        Err(why) => Err(format!("{} has no joserfc (PyPI joserfc): {why}", python.display())),
    }
}

/// Made beside its final name and renamed, so that a broken attempt is not taken for a good one.
fn virtual_environment() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target directory")?;
    let home = target.join("jose-venv");
    let python = home.join("bin/python");
    if !python.exists() {
        eprintln!("making {} (python3 -m venv, pip install joserfc)", home.display());
        let _ = fs::remove_dir_all(&home);
        run(Path::new("python3"), &["-m".into(), "venv".into(), home.clone().into()], "").map_err(|why| {
            format!("python3 -m venv failed (Debian packages python3 and python3-venv): {why}")
        })?;
        let install = ["-m", "pip", "install", "--quiet", "-r", REQUIREMENTS].map(OsString::from);
        if let Err(why) = run(&python, &install, "") {
            let _ = fs::remove_dir_all(&home);
            return Err(format!("pip install joserfc failed (PyPI joserfc): {why}"));
        }
    }
    Ok(python)
}
