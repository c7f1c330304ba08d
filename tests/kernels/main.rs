//! Every kernel, run by the simulator, against the CPU backend.

mod attention;
mod linear;
mod support;
