//! Embeds what other builds made: the XDP program (`cargo xtask ebpf` puts it into `target/bpf/` of the workspace) and the
//! console page (our own files and noVNC's from `console/node_modules`: `npm ci` there; `cargo xtask build` does it). Without
//! them the binary is built all the same, without XDP, or without the page, and says so.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Where npm puts noVNC, below `console/`.
const NOVNC: &str = "node_modules/@novnc/novnc";

fn main() -> io::Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?);
    println!("cargo::rerun-if-changed=build.rs");
    xdp(&Path::new(&manifest).join("../target/bpf"), &out)?;
    console(&Path::new(&manifest).join("console"), &out)
}

fn xdp(folder: &Path, out: &Path) -> io::Result<()> {
    // Watching the folder notices a new object, a changed one and a removed one. Watching a file that does not exist
    // would make every build of the proxy a fresh one, hence the folder is made here.
    fs::create_dir_all(folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());

    let object = folder.join("mksgate-xdp");
    let source = if object.is_file() {
        fs::copy(&object, out.join("mksgate-xdp"))?;
        "Some(aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/mksgate-xdp\")))"
    } else {
        "None"
    };
    fs::write(out.join("xdp_object.rs"), source)
}

fn console(console: &Path, out: &Path) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", console.display());
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
    fs::write(out.join("console.rs"), code)
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
