//! Embeds the XDP program, if it has been built: `cargo xtask ebpf` puts it into `target/bpf/` of the workspace.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?;
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("not run by cargo"))?;
    let (folder, out) = (Path::new(&manifest).join("../target/bpf"), Path::new(&out).to_owned());

    // Watching the folder notices a new object, a changed one and a removed one. Watching a file that does not exist
    // would make every build of the proxy a fresh one, hence the folder is made here.
    fs::create_dir_all(&folder)?;
    println!("cargo::rerun-if-changed={}", folder.display());
    println!("cargo::rerun-if-changed=build.rs");

    let object = folder.join("mksgate-xdp");
    let source = if object.is_file() {
        fs::copy(&object, out.join("mksgate-xdp"))?;
        "Some(aya::include_bytes_aligned!(concat!(env!(\"OUT_DIR\"), \"/mksgate-xdp\")))"
    } else {
        "None"
    };
    fs::write(out.join("xdp_object.rs"), source)
}
