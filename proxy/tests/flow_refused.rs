//! Where a sandbox forbids io_uring, the engine says so and takes epoll.
#![expect(unsafe_code, reason = "a seccomp filter has no safe interface")]

mod flow_rig;

use std::io::{Read, Write};
use std::thread;

use flow_rig::{Rig, UNLIMITED, config};
use mksgate::flow::{Driver, Engines, Mode};

/// Forbids io_uring_setup to this thread and those it starts.
fn forbid_io_uring() {
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        // The number of the system call is the first field of seccomp_data.
        op((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        op((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_io_uring_setup as u32),
        op((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        op((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain integers; no memory is passed.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(privileges, 0);
    // SAFETY: `filter` and the program it points to live for the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(set, 0);
}

#[test]
fn a_sandbox_without_io_uring_gets_epoll_and_a_reason() {
    let sandbox = thread::spawn(|| {
        forbid_io_uring();
        let error = Engines::start(&config(Driver::IoUring, Mode::Adaptive)).err().expect("refused");
        assert!(error.to_string().contains("seccomp"), "{error}");

        let engines = Engines::start(&config(Driver::Auto, Mode::Adaptive)).expect("engine");
        assert_eq!(engines.driver(), "epoll");
        assert!(
            engines.refusal().is_some_and(|why| why.contains("seccomp") && why.contains("SystemCallFilter"))
        );
        let mut rig = Rig::new(&engines, UNLIMITED);
        rig.client.write_all(b"works").expect("written");
        let mut got = [0; 5];
        rig.backend.read_exact(&mut got).expect("read");
        assert_eq!(&got, b"works");
    });
    sandbox.join().expect("no panic");
}

#[test]
fn elsewhere_io_uring_is_taken() {
    let engines = Engines::start(&config(Driver::Auto, Mode::Adaptive)).expect("engine");
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    match (engines.driver(), engines.refusal()) {
        ("io_uring", None) => {}
        (driver, why) => assert!(
            driver == "epoll" && why.is_some() && disabled.is_ok_and(|d| d.trim() != "0"),
            "{driver} because of {why:?}"
        ),
    }
}
