//! Every kernel, run by the simulator, against the CPU backend.

mod attention;
mod support;
