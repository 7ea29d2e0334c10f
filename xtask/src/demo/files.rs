//! The demo's own directory: keys, certificate, configuration, logs. Gone when the demo ends.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::binary;
use crate::sh::target;

/// The directory.
pub struct Files {
    dir: PathBuf,
    /// SHA-256 of the appliance's certificate.
    pub thumbprint: String,
}

impl Files {
    pub fn new() -> Result<Self> {
        let dir = target().join(format!("demo-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let mut files = Self { dir, thumbprint: String::new() };
        files.certificate()?;
        quiet(Command::new(binary("mksgate")).args(["ticket", "keygen"]).arg(files.path("keys")))?;
        Ok(files)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn certificate(&mut self) -> Result<()> {
        let mut make = Command::new(binary("mksgate"));
        quiet(make.args(["certificate", "--name", "localhost", "--name", "127.0.0.1"]).arg(&self.dir))?;
        // SHA-256 of the DER, with what every system has.
        let script = r#"grep -v -e ----- "$1" | base64 -d | sha256sum"#;
        let mut hash = Command::new("sh");
        let hash = quiet(hash.args(["-c", script, "sh"]).arg(self.path("cert.pem")))?;
        let hex = hash.split_whitespace().next().context("sha256sum printed nothing")?;
        hex.clone_into(&mut self.thumbprint);
        Ok(())
    }

    pub fn config(&self, tls: SocketAddr, authd: SocketAddr, metrics: SocketAddr) -> Result<()> {
        let text = format!(
            r#"# Written by `cargo xtask demo`.
[listen]
tls = ["{tls}"]
authd = ["{authd}"]

[tls]
certificate = "cert.pem"
key = "key.pem"

[tickets]
keys = "keys"
first_use_seconds = 3600      # 30 in production: long enough to be pasted here
reconnect_seconds = 3600

[deadlines]
drain_seconds = 1

[admin]
socket = "admin.sock"
metrics = "{metrics}"

[audit]
file = "audit.jsonl"

[log]
format = "text"

[tenants.demo]
max_sessions = 20
targets = ["127.0.0.0/8"]
"#
        );
        Ok(fs::write(self.path("mksgate.toml"), text)?)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Left behind where it cannot be removed: it is under the build directory.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Standard output of a command that has to succeed.
fn quiet(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?}: {}", command.get_program(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
