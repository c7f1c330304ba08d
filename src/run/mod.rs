//! run

pub mod signals;
