//! Registers of each kernel, as the head comments say at most, and the blocks that a multiprocessor holds with them.

use temper::backend::cuda::nvidia::{EMBEDDED, Resources};

use crate::compile_report::without_nvcc;
use crate::sizes::built as sizes;

/// What a head comment says of the kernels whose names begin so; the longest beginning counts.
struct Claim {
    kernels: &'static str,
    /// Of a thread, at most.
    registers: u32,
    /// Where the comment says how many blocks fit a multiprocessor.
    block: Option<Block>,
}

#[derive(Clone, Copy)]
struct Block {
    threads: usize,
    shared_bytes: usize,
    /// Blocks of a multiprocessor of sm_80 and of sm_90a, at least.
    resident: [usize; 2],
}

const fn block(threads: usize, shared_bytes: usize, resident: [usize; 2]) -> Block {
    Block { threads, shared_bytes, resident }
}

const fn registers(kernels: &'static str, registers: u32) -> Claim {
    Claim { kernels, registers, block: None }
}

const fn blocks(kernels: &'static str, registers: u32, block: Block) -> Claim {
    Claim { kernels, registers, block: Some(block) }
}

const HOPPER: usize = sizes::SM90_ATTENTION_THREADS;
const GEMM: Block = block(sizes::GEMM_THREADS, sizes::GEMM_BF16_BYTES, [2, 2]);
const RECTANGLE: usize = sizes::LORA_RECTANGLE_THREADS;

const CLAIMS: &[Claim] = &[
    blocks("sm90_attention_forward", 168, block(HOPPER, sizes::sm90_forward_bytes(128), [1, 1])),
    blocks("sm90_attention_backward_key_value", 168, block(HOPPER, sizes::sm90_key_value_bytes(128), [1, 1])),
    blocks("sm90_attention_backward_query", 168, block(HOPPER, sizes::sm90_query_bytes(128), [1, 1])),
    blocks(
        "attention_forward_",
        255,
        block(sizes::ATTENTION_FORWARD_THREADS, sizes::attention_forward_bytes(128), [2, 2]),
    ),
    blocks(
        "attention_backward_",
        255,
        block(sizes::ATTENTION_BACKWARD_THREADS, sizes::attention_key_value_bytes(128), [1, 1]),
    ),
    registers("attention_statistics", 32),
    registers("attention_general_", 128),
    registers("attention_cached_forward", 55),
    registers("attention_cached_store", 16),
    blocks("gemm_nn_bf16", 128, GEMM),
    blocks("gemm_nt_bf16", 128, GEMM),
    blocks("gemm_tn_bf16", 128, GEMM),
    registers("gemm_", 139),
    registers("lora_", 32),
    registers("lora_down", 87),
    registers("lora_input_gradient", 93),
    blocks("lora_rank_gradients", 168, block(RECTANGLE, sizes::lora_rectangle_bytes(32, 4), [2, 3])),
    blocks("lora_factor_gradients", 168, block(RECTANGLE, sizes::lora_rectangle_bytes(64, 0), [2, 3])),
    blocks("loss_head_", 32, block(sizes::LOSS_HEAD_THREADS, sizes::LOSS_HEAD_BYTES, [8, 8])),
    blocks(
        "loss_head_teacher_divergence",
        40,
        block(sizes::LOSS_HEAD_THREADS, sizes::LOSS_HEAD_DIVERGENCE_BYTES, [6, 6]),
    ),
    registers("rms_norm_", 40),
    blocks("rms_norm_backward", 40, block(sizes::NORM_BACKWARD_THREADS, sizes::NORM_SCRATCH_BYTES, [3, 3])),
    registers("head_norm_", 40),
    registers("head_norm_backward_f32", 44),
    blocks("swiglu_", 32, block(256, 0, [8, 8])),
    blocks("squared_norm", 32, block(256, sizes::F64_SUM_BYTES, [8, 8])),
    registers("weighted_sum", 32),
    blocks("sign_mask", 32, block(256, 0, [8, 8])),
    registers("add_bias", 32),
    blocks("bias_sums", 32, block(32 * sizes::BIAS_WARPS, sizes::BIAS_WARPS * 32 * 8 * 4, [8, 8])),
    blocks("optimizer_", 64, block(256, 0, [4, 4])),
    blocks("rope_", 64, block(256, 0, [4, 4])),
    registers("embedding_", 64),
    registers("gather_rows", 64),
    registers("representation_distance", 40),
    registers("cosine_margin", 40),
    registers("random_mapping", 40),
    registers("preference", 64),
    registers("negative_preference", 64),
];

/// Blocks that a multiprocessor holds: 65,536 registers, given out by the 256 a warp; 2,048 threads; 164 KiB of shared
/// memory on sm_80 and 228 KiB on sm_90a, of which each block takes 1 KiB for itself.
fn blocks_that_fit(kernel: &Resources, block: Block) -> usize {
    let of_a_warp = (32 * kernel.registers as usize).next_multiple_of(256);
    let shared = if kernel.architecture == "90a" { 228 << 10 } else { 164 << 10 };
    let by_registers = 65_536 / (of_a_warp * block.threads / 32);
    by_registers.min(2048 / block.threads).min(shared / (block.shared_bytes + 1024))
}

#[test]
fn registers_and_blocks_are_what_the_head_comments_say() {
    if without_nvcc() {
        return;
    }
    let mut problems = Vec::new();
    let holds = |claim: &Claim, architecture| {
        let built = EMBEDDED.modules.iter().flat_map(|module| module.kernels);
        built
            .filter(|kernel| kernel.architecture == architecture)
            .any(|kernel| kernel.kernel.starts_with(claim.kernels))
    };
    for claim in CLAIMS {
        let hopper_alone = claim.kernels.starts_with("sm90_");
        if !holds(claim, "90a") || !(hopper_alone || holds(claim, "80")) {
            problems.push(format!("a claim about {}, which is the beginning of no kernel's name", claim.kernels));
        }
    }
    let kernels = EMBEDDED.modules.iter().flat_map(|module| module.kernels);
    for kernel in kernels.filter(|kernel| kernel.architecture == "80" || kernel.architecture == "90a") {
        let said = CLAIMS.iter().filter(|claim| kernel.kernel.starts_with(claim.kernels));
        let Some(claim) = said.max_by_key(|claim| claim.kernels.len()) else {
            problems.push(format!("nothing says how many registers {} has", kernel.kernel));
            continue;
        };
        if kernel.registers > claim.registers {
            problems.push(format!("{kernel:?} has more than {} registers", claim.registers));
        }
        if let Some(block) = claim.block {
            let found = blocks_that_fit(kernel, block);
            let wanted = block.resident[usize::from(kernel.architecture == "90a")];
            if found < wanted {
                problems.push(format!("{found} blocks of {kernel:?} fit a multiprocessor, {wanted} are wanted"));
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}
