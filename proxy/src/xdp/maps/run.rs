//! The program run by hand, on one packet and without any network, for tests and measurements.

use std::time::Duration;

use aya::{
    Ebpf,
    programs::{ProgramError, TestRun as _, TestRunOptions, Xdp},
};

use super::Program;

/// What the program made of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// XDP_DROP is 1, XDP_PASS 2, XDP_TX 3.
    pub action: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Mean over the repetitions.
    pub took: Duration,
}

impl Program {
    /// Runs the program on one packet, `repeat` times, without any network (BPF_PROG_TEST_RUN).
    ///
    /// # Errors
    /// `EINVAL` for fewer than 14 bytes or more than the kernel takes.
    pub fn test_run(&self, packet: &[u8], repeat: u32) -> Result<Outcome, ProgramError> {
        let (ebpf, name) = self.loaded.as_ref().ok_or(ProgramError::NotLoaded)?;
        run(ebpf, name, packet, repeat)
    }

    /// Runs the program that does nothing: what the call itself costs.
    ///
    /// # Errors
    /// As [`Program::test_run`].
    pub fn test_run_empty(&mut self, packet: &[u8], repeat: u32) -> Result<Outcome, ProgramError> {
        const EMPTY: &str = "mksgate_empty";
        let (ebpf, _) = self.loaded.as_mut().ok_or(ProgramError::NotLoaded)?;
        if let Some(Ok(empty)) = ebpf.program_mut(EMPTY).map(<&mut Xdp>::try_from)
            && empty.fd().is_err()
        {
            empty.load()?;
        }
        run(ebpf, EMPTY, packet, repeat)
    }
}

fn run(ebpf: &Ebpf, name: &str, packet: &[u8], repeat: u32) -> Result<Outcome, ProgramError> {
    let program: &Xdp = ebpf.program(name).ok_or(ProgramError::NotLoaded)?.try_into()?;
    let mut out = vec![0; packet.len() + 256];
    let options =
        TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), repeat, ..Default::default() };
    let done = program.test_run(options)?;
    out.truncate(done.data_size_out as usize);
    Ok(Outcome { action: done.return_value, packet: out, took: done.duration })
}
