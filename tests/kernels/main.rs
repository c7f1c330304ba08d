//! Every kernel, run by the simulator, against the CPU backend.

mod element;
mod hidden;
mod norm;
mod operand;
mod optimizer;
mod rope;
mod support;
