//! The hand-over socket: a pair of Unix sockets without a name. One end is born into the new process, so nobody else can
//! ever connect, and there is no file whose permissions could be wrong.
//!
//! A message is JSON, bytes that are not JSON, and open files (SCM_RIGHTS). It goes in pieces, since the kernel takes no
//! datagram larger than the send buffer; the files travel with the first.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::SockRef;

use crate::sys;

/// Well below the smallest usual `net.core.wmem_default`.
const PIECE: usize = 60 << 10;
/// Most files of one message (SCM_MAX_FD of the kernel).
pub(super) const MAX_FILES: usize = 253;
/// No message is larger; a table of a million tickets has some 300 MiB.
const LARGEST: usize = 1 << 30;
/// How often the patience may run out within one message.
const WAITS: u32 = 100;
/// First byte of a piece: others follow, or none.
const MORE: u8 = 1;
const LAST: u8 = 0;

/// One end.
pub(super) struct Channel {
    socket: OwnedFd,
    sending: Mutex<()>,
}

/// What came.
pub(super) struct Message<T> {
    pub(super) head: T,
    pub(super) bytes: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends; the second is for another process.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::new(ours), theirs))
    }

    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, sending: Mutex::new(()) }
    }

    /// How long the other end may take from now on to say something, and to listen.
    pub(super) fn set_patience(&self, speak: Duration, listen: Duration) -> io::Result<()> {
        let socket = SockRef::from(&self.socket);
        socket.set_read_timeout(Some(speak))?;
        socket.set_write_timeout(Some(listen))
    }

    /// Nothing more goes or comes but what came already: the other end's next word fails there.
    pub(super) fn shut_down(&self) {
        // Fails where the other end is gone, and then there is nothing to shut down.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
    }

    /// Sends a message whole; several threads may.
    pub(super) fn send(
        &self,
        head: &impl Serialize,
        bytes: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let head = serde_json::to_vec(head)?;
        let length = u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes();
        let mut whole = Vec::with_capacity(4 + head.len() + bytes.len());
        for part in [&length[..], &head, bytes] {
            whole.extend_from_slice(part);
        }
        if whole.len() > LARGEST || files.len() > MAX_FILES {
            return Err(io::Error::other("a message of the hand-over is too large"));
        }
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let _alone = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = whole.chunks(PIECE).peekable();
        let mut rights = &files[..];
        while let Some(piece) = pieces.next() {
            self.send_piece(if pieces.peek().is_some() { MORE } else { LAST }, piece, rights)?;
            rights = &[];
        }
        Ok(())
    }

    fn send_piece(&self, kind: u8, piece: &[u8], files: &[RawFd]) -> io::Result<()> {
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(piece)];
        let rights = [ControlMessage::ScmRights(files)];
        let rights = if files.is_empty() { &[][..] } else { &rights[..] };
        loop {
            match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message; `None`: the other process is gone.
    ///
    /// # Errors
    /// `WouldBlock` where nothing came in time; then nothing was taken out.
    pub(super) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Message<T>>> {
        let (mut whole, mut files) = (Vec::new(), Vec::new());
        let mut buffer = vec![0; PIECE + 1];
        let mut waits = WAITS;
        loop {
            let n = match self.receive_piece(&mut buffer, &mut files) {
                // The rest of a message is on its way; only its beginning may stay out.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !whole.is_empty() && waits > 0 => {
                    waits -= 1;
                    continue;
                }
                other => other?,
            };
            let Some((kind, piece)) = buffer[..n].split_first() else { return Ok(None) };
            whole.extend_from_slice(piece);
            if whole.len() > LARGEST {
                return Err(io::Error::other("a message of the hand-over is too large"));
            }
            if *kind == LAST {
                break;
            }
        }
        let short = || io::Error::other("a message of the hand-over is cut short");
        let (length, rest) = whole.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (head, bytes) = rest.split_at_checked(length).ok_or_else(short)?;
        Ok(Some(Message { head: serde_json::from_slice(head)?, bytes: bytes.to_vec(), files }))
    }

    fn receive_piece(&self, buffer: &mut [u8], files: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut space = cmsg_space!([RawFd; MAX_FILES]);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let got = loop {
            match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(nix::Error::EINTR) => {}
                other => break other?,
            }
        };
        for control in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                files.extend(sys::received(fds));
            }
        }
        if got.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::other(
                "open files got lost; raise the limit of open files (LimitNOFILE=)",
            ));
        }
        Ok(got.bytes)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_message_of_many_pieces_and_its_files_arrive_whole() {
        let (near, far) = Channel::pair().unwrap();
        let far = Channel::new(far);
        let (mut kept, given) = UnixStream::pair().unwrap();
        let bytes: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || {
            near.send(&"head", &sent, &[given.as_fd()]).unwrap();
            near.send(&7, b"", &[]).unwrap();
        });
        let Message { head, bytes: got, files } = far.receive::<String>().unwrap().unwrap();
        assert_eq!((head.as_str(), got == bytes, files.len()), ("head", true, 1));
        assert_eq!(far.receive::<u32>().unwrap().unwrap().head, 7);
        sender.join().unwrap();
        let mut given = UnixStream::from(files.into_iter().next().unwrap());
        given.write_all(b"x").unwrap();
        kept.read_exact(&mut [0]).unwrap();
        assert!(far.receive::<u32>().unwrap().is_none(), "the other end is gone");
    }

    #[test]
    fn nothing_in_time_is_no_end() {
        let (near, _far) = Channel::pair().unwrap();
        near.set_patience(Duration::from_millis(1), Duration::from_millis(1)).unwrap();
        let error = near.receive::<u32>().err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
