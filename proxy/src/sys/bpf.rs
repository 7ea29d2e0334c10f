//! The bpf(2) commands on links. aya attaches by netlink where bpf_link_create refuses, and cannot adopt a link of
//! another process; the gate wants neither the first nor to be without the second.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
const BPF_LINK_GET_NEXT_ID: libc::c_long = 31;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_XDP: u32 = 37;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_XDP: u32 = 6;

/// `union bpf_attr` as far as these commands use it, and zero behind: the kernel takes any length whose rest is zero.
#[repr(C, align(8))]
struct Attr([u32; 16]);

impl Attr {
    fn new(words: &[u32]) -> Attr {
        let mut attr = [0; 16];
        attr[..words.len()].copy_from_slice(words);
        Attr(attr)
    }
}

/// What the kernel tells of a link to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpLinkInfo {
    /// The link's id.
    pub id: u32,
    /// The program's id.
    pub program: u32,
    /// The interface's index, 0 once it is gone.
    pub interface: u32,
}

/// `struct bpf_link_info` up to the union's first words.
#[repr(C, align(8))]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    union: [u32; 24],
}

fn bpf(command: libc::c_long, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is a readable and writable block of the stated size, and those of its words that are pointers were
    // made from references that outlive the call (see `object_info`).
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attr.0, size_of::<Attr>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all of bpf) and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Attaches an XDP program to an interface for as long as the link is held by anybody. `flags` are XDP_FLAGS_*.
pub fn link_create(program: BorrowedFd<'_>, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new(&[program.as_raw_fd() as u32, interface, BPF_XDP, flags]);
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Puts another program behind a link; no packet meets none.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::new(&[link.as_raw_fd() as u32, program.as_raw_fd() as u32]);
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes the program off at once; the link stays as an empty shell with whoever holds it.
pub fn link_detach(link: impl AsFd) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut Attr::new(&[link.as_fd().as_raw_fd() as u32])).map(drop)
}

/// All links to interfaces of this host, with a descriptor of each.
pub fn xdp_links() -> io::Result<Vec<(XdpLinkInfo, OwnedFd)>> {
    let (mut links, mut id) = (Vec::new(), 0);
    loop {
        let mut attr = Attr::new(&[id]);
        match bpf(BPF_LINK_GET_NEXT_ID, &mut attr) {
            Ok(_) => id = attr.0[1],
            Err(end) if end.raw_os_error() == Some(libc::ENOENT) => return Ok(links),
            Err(error) => return Err(error),
        }
        // Gone between the two calls: not ours to list.
        let Ok(fd) = bpf(BPF_LINK_GET_FD_BY_ID, &mut Attr::new(&[id])).map(owned) else { continue };
        if let Some(info) = link_info(&fd)? {
            links.push((info, fd));
        }
    }
}

/// What a link is, or `None` if it is none of XDP.
pub fn link_info(link: impl AsFd) -> io::Result<Option<XdpLinkInfo>> {
    let mut info = LinkInfo::default();
    object_info(link.as_fd(), &mut info)?;
    let found = XdpLinkInfo { id: info.id, program: info.program, interface: info.union[0] };
    Ok((info.kind == BPF_LINK_TYPE_XDP).then_some(found))
}

/// The id of an XDP program, or `None` if it is none.
pub fn program_id(program: impl AsFd) -> io::Result<Option<u32>> {
    // `struct bpf_prog_info` begins with type and id; the kernel gives as much of it as there is room for.
    let mut info = [0_u32; 2];
    object_info(program.as_fd(), &mut info)?;
    Ok((info[0] == BPF_PROG_TYPE_XDP).then_some(info[1]))
}

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let (size, address) = (size_of::<T>() as u32, std::ptr::from_mut(info) as u64);
    let mut attr = Attr::new(&[object.as_raw_fd() as u32, size, address as u32, (address >> 32) as u32]);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}
