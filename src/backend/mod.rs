//! Devices. Each implements [`crate::ops::Backend`] and nothing above this folder knows which one it runs on.

pub mod any;
pub mod cpu;
pub mod cuda;
