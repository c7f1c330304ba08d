//! Claims of other head comments: fragments that are used several times, and instructions that fit under the time of the
//! bytes.

use super::disassembly::{built, can_look};
use super::program::{Kernel, Loop};

fn count(kernel: &Kernel, inner: &Loop, name: &str) -> usize {
    inner.spine.iter().filter(|&&index| kernel.instructions[index].is(name)).count()
}

/// gemm.cu: 16 mma for 6 ldmatrix every 16 k, a step being 32.
#[test]
fn a_step_of_gemm_is_32_products_of_fragments_that_12_loads_brought() {
    if can_look() {
        for name in ["gemm_nn_bf16", "gemm_nt_bf16", "gemm_tn_bf16"] {
            let kernel = &built("gemm")[name];
            let loops: Vec<&Loop> = kernel.loops_with("HMMA").collect();
            assert_eq!(loops.len(), 1, "{}: loops with products", kernel.name);
            let found = ["HMMA", "LDSM"].map(|name| count(kernel, loops[0], name));
            assert_eq!(found, [32, 12], "{}", kernel.name);
        }
    }
}

/// attention_forward.cu: a warp owns two fragments of 16 rows, so that each fragment of keys and values is used twice; one
/// barrier a tile.
#[test]
fn forward_without_wgmma_uses_each_fragment_of_keys_and_values_twice() {
    if can_look() {
        assert_eq!(built("attention_forward").len(), 2);
        for kernel in built("attention_forward").values() {
            let inner = kernel.loops_with("HMMA").next().expect("a loop with products");
            let [products, loads, barriers] = ["HMMA", "LDSM", "BAR"].map(|name| count(kernel, inner, name));
            // Scores and p v read their right operands once each: a load brings the fragments of two products of a row.
            let head_dim = if kernel.name.contains("_128_") { 128 } else { 64 };
            let of_queries = 2 * head_dim / 16;
            assert_eq!(products, 4 * (loads - of_queries), "{}: {loads} loads", kernel.name);
            assert_eq!(barriers, 1, "{}", kernel.name);
        }
    }
}

/// optimizer.cu: everything that a pass may execute, but for the slow ways of square roots and divisions, which are calls.
#[test]
fn an_element_of_an_optimizer_takes_at_most_60_instructions_and_90_with_bf16_moments() {
    if can_look() {
        let optimizers = || built("optimizer").values().filter(|kernel| kernel.name.starts_with("optimizer_"));
        assert_eq!(optimizers().count(), 7 * 3, "seven rules in three forms of storage");
        for kernel in optimizers() {
            let most = if kernel.name.ends_with("_moments") { 90 } else { 60 };
            let vectors = kernel.loops.iter().filter(|inner| reads_vectors(kernel, inner));
            let longest = vectors.map(|inner| without_calls(kernel, inner)).max();
            let found = longest.expect("a loop over vectors of four elements");
            assert!(found <= 4 * most, "{}: {found} instructions for four elements", kernel.name);
        }
    }
}

/// Instructions of a loop, those behind branches with them, without the blocks that call what lies outside.
fn without_calls(kernel: &Kernel, inner: &Loop) -> usize {
    let instructions = |block: &usize| kernel.blocks[*block].instructions.clone();
    let calls = |block: &&usize| instructions(block).any(|index| kernel.instructions[index].is("CALL"));
    inner.blocks.iter().filter(|block| !calls(block)).map(|block| instructions(block).len()).sum()
}

/// Whether a pass reads 16 bytes of gradients at once.
fn reads_vectors(kernel: &Kernel, inner: &Loop) -> bool {
    inner.spine.iter().any(|&index| kernel.instructions[index].is("LDG.E.128"))
}
