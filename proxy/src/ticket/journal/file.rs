//! The journal's file: whose it must be, who has it, and how it is replaced.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufReader, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::REMEDY;

/// Its mode: who used which ticket from where is nobody else's business.
const MODE: u32 = 0o600;
/// The sticky bit, which means nothing on a file: uses were lost that this file should have. It takes no room on a full disk.
const INCOMPLETE: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// How often the file may be replaced by its owner between its opening and its locking.
const TRIES: usize = 5;

/// Why a file is not used.
#[derive(Debug, Error)]
pub(super) enum FileError {
    #[error("another process has it")]
    Held,
    #[error("{0}")]
    Unsafe(&'static str),
    #[error("it holds something else than a journal; move it away, or name another file in tickets.journal")]
    Foreign,
    #[error("{0}; {REMEDY}")]
    Io(#[from] io::Error),
}

impl FileError {
    /// There is no such file, nor its directory: nothing was ever written.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::NotFound)
    }
}

/// Opens the file, or makes it, and takes it for this process: other ones get [`FileError::Held`] from here. Where this process
/// is an heir, its elder may have it still.
pub(super) fn open(path: &Path, heir: bool) -> Result<File, FileError> {
    check_directory(path)?;
    for _ in 0..TRIES {
        let file = options().read(true).create(true).open(path).map_err(said)?;
        let found = file.metadata()?;
        check_file(&found)?;
        match lock(&file) {
            Err(FileError::Held) if heir => {}
            taken => taken?,
        }
        // Whoever had it may have replaced it meanwhile.
        let now = fs::symlink_metadata(path);
        if now.is_ok_and(|now| (now.dev(), now.ino()) == (found.dev(), found.ino())) {
            if found.mode() & 0o777 != MODE {
                file.set_permissions(Permissions::from_mode(found.mode() & INCOMPLETE | MODE))?;
            }
            return Ok(file);
        }
    }
    Err(FileError::Held)
}

/// Whether it is a file that [`open`] would take, whoever has it.
pub(super) fn examine(path: &Path) -> Result<(), FileError> {
    check_directory(path)?;
    let file = options().read(true).open(path).map_err(said)?;
    check_file(&file.metadata()?)?;
    match super::replay::is_foreign(BufReader::new(file))? {
        true => Err(FileError::Foreign),
        false => Ok(()),
    }
}

/// An empty file beside it that is to take its place, taken for this process.
pub(super) fn fresh(path: &Path) -> Result<(File, PathBuf), FileError> {
    check_directory(path)?;
    let mut name = OsString::from(path);
    name.push(".new");
    let name = PathBuf::from(name);
    match fs::remove_file(&name) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let file = options().create_new(true).open(&name)?;
    lock(&file)?;
    Ok((file, name))
}

/// One write(2). A part of it is an error: its room was the last.
pub(super) fn append(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    loop {
        match file.write(bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Marks that it lacks something, as well as that is possible.
pub(super) fn mark(file: &File) {
    // Where not even this can be written, the log and the metrics have said it.
    let _ = file.set_permissions(Permissions::from_mode(INCOMPLETE | MODE));
}

/// Whether it lacks something.
pub(super) fn is_marked(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & INCOMPLETE != 0)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Not waiting for the other end, should it be a FIFO.
    options.append(true).mode(MODE).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// open(2) says ELOOP for a link that is not followed.
fn said(error: io::Error) -> FileError {
    match error.raw_os_error() {
        Some(libc::ELOOP) => FileError::Unsafe("it is a symbolic link; remove it"),
        _ => error.into(),
    }
}

fn check_file(found: &Metadata) -> Result<(), FileError> {
    if !found.is_file() || found.nlink() != 1 {
        return Err(FileError::Unsafe("it is no plain file, or has another name; remove it"));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(FileError::Unsafe("it belongs to another user; remove it, or chown it to the service"));
    }
    Ok(())
}

/// Nobody else may put another file there.
fn check_directory(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let found = fs::metadata(directory)?;
    let ours = [0, nix::unistd::geteuid().as_raw()].contains(&found.uid());
    let sticky = found.mode() & libc::S_ISVTX != 0;
    if !ours || (found.mode() & WRITABLE_BY_OTHERS != 0 && !sticky) {
        return Err(FileError::Unsafe(
            "its directory lets others replace it; give that to the service alone (chown, chmod go-w)",
        ));
    }
    Ok(())
}

fn lock(file: &File) -> Result<(), FileError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(FileError::Held),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
