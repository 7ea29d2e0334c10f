//! Where records go, and what happens when they cannot.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::record::Record;
use crate::trouble::Trouble;

/// How often a sink that fails is opened again.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long the journal may stall the writer.
const JOURNAL_PATIENCE: Duration = Duration::from_millis(500);

/// A file of JSON lines.
pub(super) struct FileSink {
    path: PathBuf,
    file: Option<File>,
    tried: Option<Instant>,
    /// The file may end within a line.
    torn: bool,
    trouble: Trouble,
}

/// systemd-journald.
pub(super) struct JournalSink {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    tried: Option<Instant>,
    trouble: Trouble,
}

impl FileSink {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None, tried: None, torn: false, trouble: Trouble::default() }
    }

    /// Opens the path again, whatever was open.
    pub(super) fn reopen(&mut self) {
        self.file = None;
        self.tried = None;
        if let Err(error) = self.open() {
            say(&mut self.trouble, &self.path, &error, 0);
        }
    }

    fn open(&mut self) -> io::Result<&mut File> {
        if self.file.is_none() {
            let now = Instant::now();
            if self.tried.is_some_and(|tried| now.duration_since(tried) < RETRY_EVERY) {
                return Err(io::Error::other("could not be opened a moment ago"));
            }
            self.tried = Some(now);
            self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?);
            self.torn = false;
        }
        self.file.as_mut().ok_or_else(|| io::Error::other("not open"))
    }

    /// Appends; on an error returns how many bytes went in before it.
    fn append(&mut self, text: &[u8]) -> Result<(), (usize, io::Error)> {
        let torn = self.torn;
        let file = self.open().map_err(|error| (0, error))?;
        if torn {
            file.write_all(b"\n").map_err(|error| (0, error))?;
            self.torn = false;
        }
        let mut done = 0;
        while done < text.len() {
            let file = self.open().map_err(|error| (done, error))?;
            match file.write(&text[done..]) {
                Ok(0) => return Err((done, ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }

    /// Takes half a line off the end, so that every line of the file stays whole.
    fn cut(&mut self, torn_bytes: usize) {
        if torn_bytes == 0 {
            return;
        }
        let cut = self.file.as_ref().is_some_and(|file| {
            file.metadata()
                .is_ok_and(|meta| file.set_len(meta.len().saturating_sub(torn_bytes as u64)).is_ok())
        });
        self.torn = !cut;
    }

    /// Takes records; returns how many of them were lost.
    pub(super) fn write(&mut self, batch: &[(String, Box<Record>)]) -> usize {
        if batch.is_empty() {
            return 0;
        }
        let mut text = String::with_capacity(batch.iter().map(|(line, _)| line.len() + 1).sum());
        for (line, _) in batch {
            text.push_str(line);
            text.push('\n');
        }
        match self.append(text.as_bytes()) {
            Ok(()) => {
                over(&mut self.trouble, &self.path);
                0
            }
            Err((done, error)) => {
                let whole =
                    text.as_bytes()[..done].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
                self.cut(done - whole);
                let lost = batch.len() - text[..whole].matches('\n').count();
                say(&mut self.trouble, &self.path, &error, lost as u64);
                lost
            }
        }
    }
}

impl JournalSink {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, socket: None, tried: None, trouble: Trouble::default() }
    }

    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if self.socket.is_none() {
            let now = Instant::now();
            if self.tried.is_some_and(|tried| now.duration_since(tried) < RETRY_EVERY) {
                return Err(io::Error::other("did not answer a moment ago"));
            }
            self.tried = Some(now);
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(JOURNAL_PATIENCE))?;
            socket.connect(&self.path)?;
            self.socket = Some(socket);
        }
        let Some(socket) = &self.socket else { return Err(ErrorKind::NotConnected.into()) };
        let sent = socket.send(datagram).map(drop);
        if sent.is_err() {
            self.socket = None;
        }
        sent
    }

    /// Takes records; returns how many of them were lost.
    pub(super) fn write(&mut self, batch: &[(String, Box<Record>)]) -> usize {
        let mut lost = 0;
        for (line, record) in batch {
            match self.send(&journal_entry(line, record)) {
                Ok(()) => over(&mut self.trouble, &self.path),
                Err(error) => {
                    lost += 1;
                    say(&mut self.trouble, &self.path, &error, 1);
                }
            }
        }
        lost
    }
}

fn say(trouble: &mut Trouble, path: &Path, error: &io::Error, lost: u64) {
    if let Some(lost) = trouble.say(lost) {
        tracing::error!(
            path = %path.display(), %error, lost,
            "audit records are lost; consoles go on; make the path writable and give it space"
        );
    }
}

fn over(trouble: &mut Trouble, path: &Path) {
    if let Some(lost) = trouble.over() {
        tracing::warn!(path = %path.display(), lost, "audit records are written again");
    }
}

/// An entry of the journal's native protocol: the JSON line as the message, and what `journalctl FIELD=value` can filter by.
fn journal_entry(line: &str, record: &Record) -> Vec<u8> {
    let (tenant, jti) = record.event.tenant_and_jti();
    let mut out = Vec::with_capacity(line.len() + 200);
    for (field, value) in [
        ("MESSAGE", line),
        ("PRIORITY", "6"),
        ("SYSLOG_IDENTIFIER", "mksgate-audit"),
        ("MKSGATE_EVENT", record.event.name()),
        ("MKSGATE_TENANT", tenant),
        ("MKSGATE_JTI", jti),
    ] {
        out.extend_from_slice(field.as_bytes());
        if value.contains('\n') {
            out.push(b'\n');
            out.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            out.push(b'=');
        }
        out.extend_from_slice(value.as_bytes());
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_taken_off_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = FileSink::new(dir.path().join("audit"));
        sink.append(b"{\"a\":1}\n{\"b").unwrap();
        sink.cut(3);
        sink.append(b"{\"c\":1}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&sink.path).unwrap(), "{\"a\":1}\n{\"c\":1}\n");
    }

    #[test]
    fn where_nothing_can_be_taken_off_the_next_record_begins_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut sink = FileSink::new(dir.path().join("audit"));
        sink.append(b"{\"b").unwrap();
        sink.torn = true;
        sink.append(b"{\"c\":1}\n").unwrap();
        assert_eq!(std::fs::read_to_string(&sink.path).unwrap(), "{\"b\n{\"c\":1}\n");
    }

    #[test]
    fn a_value_of_two_lines_is_framed_by_its_length() {
        let refusal = super::super::Refusal {
            door: crate::metrics::Door::Mks,
            source: "192.0.2.7:5".parse().unwrap(),
            tenant: "a\nPRIORITY=0",
            user: "",
            jti: "",
            reason: "unknown_tenant",
        };
        let event = super::super::record::Event::refused(&refusal, 0);
        let record = Record { at: std::time::SystemTime::UNIX_EPOCH, event };
        let entry = journal_entry("{}", &record);
        let framed = b"MKSGATE_TENANT\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n";
        assert!(entry.windows(framed.len()).any(|part| part == framed));
    }
}
