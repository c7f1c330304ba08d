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
        for kernel in built("gemm").values().filter(|kernel| kernel.name.contains("_bf16")) {
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

/// optimizer.cu; the slow ways of square roots and divisions are not counted.
#[test]
fn an_element_of_an_optimizer_takes_at_most_50_instructions_and_80_with_bf16_moments() {
    if can_look() {
        for kernel in built("optimizer").values().filter(|kernel| kernel.name.starts_with("optimizer_")) {
            let most = if kernel.name.ends_with("_moments") { 80 } else { 50 };
            let vectors = kernel.loops.iter().filter(|inner| reads_vectors(kernel, inner));
            let longest = vectors.map(|inner| inner.spine.len()).max().expect("a loop over vectors of four elements");
            assert!(longest <= 4 * most, "{}: {longest} instructions for four elements", kernel.name);
        }
    }
}

/// Whether a pass reads 16 bytes of gradients at once.
fn reads_vectors(kernel: &Kernel, inner: &Loop) -> bool {
    inner.spine.iter().any(|&index| kernel.instructions[index].is("LDG.E.128"))
}
