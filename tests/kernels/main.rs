//! Every kernel, run by the simulator, against the CPU backend.

mod attention;
mod attention_cached;
mod element;
mod hidden;
mod linear;
mod lora;
mod loss_head;
mod norm;
mod operand;
mod optimizer;
mod rope;
mod support;
