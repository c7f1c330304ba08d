//! Every kernel, run by the simulator, against the CPU backend; and the programs that judge kernels: the self-test, the
//! benchmark and the report of the compiler.

mod attention;
mod attention_cached;
/// The benchmark runs every row, and its counts are closed forms.
mod bench;
mod bias;
/// nvcc made every kernel, none of them spills, and the tensor cores are not held up.
#[cfg(feature = "cuda")]
mod compile_report;
mod contract;
/// What kernels and steps do, counted: golden figures, and closed forms that the counts bear out.
mod counters;
mod element;
mod head_norm;
mod hidden;
mod linear;
mod lora;
mod loss_head;
/// The head comments' claims about machine code.
#[cfg(feature = "cuda")]
mod machine_code;
mod measure;
mod norm;
/// Registers and blocks are what the head comments say.
#[cfg(feature = "cuda")]
mod occupancy;
mod operand;
mod optimizer;
#[allow(dead_code)]
#[path = "../support/program.rs"]
mod program;
mod rope;
/// The self-test is green in the simulator, launches every kernel, and sees what is wrong.
mod selftest;
mod simulated;
/// Kernels and launchers share their sizes.
mod sizes;
mod support;
mod tune;
