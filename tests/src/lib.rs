//! Everything outside the sidecar that its tests need: an emulator of AWS, fixtures of real servers, a
//! soak.

pub mod emulator;
pub mod fixtures;
pub mod soak;
