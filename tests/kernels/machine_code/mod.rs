//! What the head comments of the kernels claim about machine code, checked on what nvcc made for sm_90a.
//!
//! `cargo test --test kernels machine_code -- --nocapture` prints classes of instructions and, for loops with products of
//! a warpgroup, what is executed while each group of products is in flight.

/// Claims of other head comments.
mod claims;
/// The cubins, and nvdisasm.
mod disassembly;
/// Groups of products and the waits that cover them.
mod flight;
/// The claims of the Hopper attention kernels.
mod hopper;
/// Faults that the checks must see.
mod planted;
/// Kernels, blocks, loops, classes of instructions.
mod program;
/// Every PTX instruction is compiled.
mod wrappers;

use std::fmt::Write;

use disassembly::{built, can_look};
use flight::groups;
use program::{Kernel, Loop};

/// The files whose kernels multiply matrices.
const PRODUCTS: [&str; 6] =
    ["sm90_attention_forward", "sm90_attention_backward", "attention_forward", "attention_backward", "gemm", "lora"];

fn counts(kernel: &Kernel, indices: impl Iterator<Item = usize>) -> String {
    let counts = kernel.classes(indices);
    let text: Vec<String> = counts.iter().map(|(class, count)| format!("{count} {class}")).collect();
    text.join(", ")
}

/// The loops of a kernel that multiply, as lines of text.
fn describe(kernel: &Kernel, inner: &Loop) -> String {
    let mut text = String::new();
    let inside = kernel.inside(inner).count();
    let spine = inner.spine.len();
    let _ = writeln!(text, "  loop {:#06x}: {inside} instructions, {spine} of them in every pass", inner.address);
    let _ = writeln!(text, "    {}", counts(kernel, inner.spine.iter().copied()));
    for group in groups(kernel, inner) {
        let left = if group.left_in_registers { "registers" } else { "shared memory" };
        let _ = writeln!(
            text,
            "    {} products {} from {left} at {:#06x}, covered by the wait at {:#06x}",
            group.products, group.shape, group.first, group.wait
        );
        let _ = writeln!(text, "      between them: {}", counts(kernel, group.within.iter().copied()));
        let _ = writeln!(text, "      meanwhile: {}", counts(kernel, group.meanwhile.iter().copied()));
    }
    text
}

#[test]
fn machine_code_of_the_loops_that_multiply() {
    if !can_look() {
        return;
    }
    for module in PRODUCTS {
        for kernel in built(module).values() {
            println!("{} ({} instructions)", kernel.name, kernel.instructions.len());
            for name in ["HGMMA", "HMMA"] {
                kernel.loops_with(name).for_each(|inner| print!("{}", describe(kernel, inner)));
            }
        }
    }
}
