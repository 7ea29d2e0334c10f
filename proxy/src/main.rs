//! The `mksgate` binary.
fn main() {}
