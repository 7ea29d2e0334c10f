//! Embeds the console page: our own files and noVNC's from `console/node_modules` (`npm ci` there; `cargo xtask build` does
//! it). Without them the binary is built all the same, without the page.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Where npm puts noVNC, below `console/`.
const NOVNC: &str = "node_modules/@novnc/novnc";

fn main() -> io::Result<()> {
    let console = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("console");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=console/page");
    println!("cargo::rerun-if-changed=console/{NOVNC}");
    let mut files = Vec::new();
    let novnc = console.join(NOVNC);
    if novnc.join("core/rfb.js").is_file() {
        collect(&console.join("page"), "", &mut files)?;
        for part in ["core", "vendor"] {
            collect(&novnc.join(part), &format!("novnc/{part}/"), &mut files)?;
        }
        files.push(("novnc/LICENSE.txt".into(), novnc.join("LICENSE.txt")));
    } else {
        println!(
            "cargo::warning=no console page in this build: run `npm ci` in proxy/console (or `cargo xtask build`)"
        );
    }
    files.sort();
    let mut code =
        String::from("/// The page's files by name, sorted.\nstatic FILES: &[(&str, &[u8])] = &[\n");
    for (name, path) in files {
        writeln!(code, "    ({name:?}, include_bytes!({path:?})),").map_err(io::Error::other)?;
    }
    code.push_str("];\n");
    fs::write(PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("console.rs"), code)
}

/// Every file below a folder, its name under `prefix`.
fn collect(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push((name, entry.path()));
        }
    }
    Ok(())
}
