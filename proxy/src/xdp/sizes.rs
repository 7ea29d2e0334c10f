//! How large the program's tables are, and where things are put in them.

use mksgate_common::map::WAYS;

use super::{error::GateError, lines::Destinations, policy::Plan};

/// What the tables can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub tenants: u32,
    pub destinations: u32,
    pub prefixes: u32,
    pub sources: u32,
}

impl Sizes {
    /// Room for the plan and as much again, so that most reloads need no new program.
    pub fn for_plan(plan: &Plan, sources: u32) -> Sizes {
        let room = |used: usize, least: u32| (used as u32).saturating_mul(2).next_power_of_two().max(least);
        Sizes {
            tenants: room(plan.tenants.len(), 64),
            destinations: room(plan.destinations.len(), 64),
            prefixes: room(plan.prefixes.len(), 64),
            sources,
        }
    }

    /// Lines of the tables of sources.
    pub fn lines(&self) -> u32 {
        self.sources.div_ceil(WAYS as u32)
    }

    /// Blocks of a half of the table of destinations, which hold two each.
    pub fn blocks(&self) -> u32 {
        self.destinations / 2
    }

    /// The plan fits. Half of what hashes hold is kept free: for their speed, and where entries come before the old ones go.
    pub fn hold(&self, plan: &Plan) -> bool {
        plan.tenants.len() <= self.tenants as usize
            && plan.destinations.len() * 2 <= self.destinations as usize
            && plan.prefixes.len() * 2 <= self.prefixes as usize
    }
}

/// Seeds tried for one layout of the destinations; hardly ever is a second needed.
const SEEDS: usize = 64;

/// A seed that has a place for every destination.
pub(super) fn seed_for(plan: &Plan, sizes: &Sizes) -> Result<u64, GateError> {
    for _ in 0..SEEDS {
        let seed = seed()?;
        if Destinations::hold(&plan.destinations, sizes.blocks(), seed) {
            return Ok(seed);
        }
    }
    let error = std::io::Error::other("they find no places in their table");
    Err(GateError::Io { what: "laying out the protected addresses", error })
}

/// See [`Globals::seed`].
fn seed() -> Result<u64, GateError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| GateError::io("drawing a seed", std::io::Error::other("no randomness")))?;
    Ok(u64::from_ne_bytes(bytes) | 1)
}
