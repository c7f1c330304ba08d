//! Every kernel, run by the simulator, against the CPU backend; and the programs that judge kernels: the self-test, the
//! benchmark and the report of the compiler.

mod attention;
mod attention_cached;
/// The benchmark runs every row, and its counts are closed forms.
#[cfg(feature = "simulator")]
mod bench;
/// nvcc made every kernel, none of them spills, and the tensor cores are not held up.
#[cfg(feature = "cuda")]
mod compile_report;
mod element;
mod hidden;
mod linear;
mod lora;
mod loss_head;
mod norm;
mod operand;
mod optimizer;
mod rope;
/// The self-test is green in the simulator, launches every kernel, and sees what is wrong.
#[cfg(feature = "simulator")]
mod selftest;
mod support;
