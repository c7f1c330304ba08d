//! Every kernel, run by the simulator, against the CPU backend.

mod attention;
mod element;
mod hidden;
mod linear;
mod norm;
mod operand;
mod optimizer;
mod rope;
mod lora;
mod loss_head;
mod support;
