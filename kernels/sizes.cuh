// Sizes that kernels and their launchers share: threads and rows of a block, rows of tiles and of the boxes that tile
// copies move, bytes of shared memory. Each is written here and nowhere else. Kernels include this file, by way of
// common.cuh; build/sizes.rs makes a Rust module of it, with or without nvcc. So it is written in what both languages
// have in common: comments, directives, and
//   constexpr uint32_t name = expression;
//   constexpr uint32_t name(uint32_t parameter, ..) { return expression; }
// of whole numbers, names, + - * / and parentheses. Where the compiler knows a layout, the kernel asserts that it needs
// what is promised here.
#pragma once
#include <stdint.h>

// ---- attention on Hopper: sm90_attention_*.cu ----
constexpr uint32_t sm90_attention_threads = 384;
// Fixed rows of a block; in forward also the keys of a tile, so that one map serves both.
constexpr uint32_t sm90_attention_rows = 128;
constexpr uint32_t sm90_forward_stages = 2;
// q, stages of k and v; barriers of q and, full and empty, of each k and v.
constexpr uint32_t sm90_forward_bytes(uint32_t head_dim) {
    return (1 + 2 * sm90_forward_stages) * sm90_attention_rows * 2 * head_dim + 8 * (1 + 4 * sm90_forward_stages);
}
// Streamed queries, which are also half of the fixed rows, and the rows of a box.
constexpr uint32_t sm90_key_value_box = 64;
constexpr uint32_t sm90_key_value_stages = 3;
// k and v, stages of q and d_out with their statistics, barriers.
constexpr uint32_t sm90_key_value_bytes(uint32_t head_dim) {
    return 2 * (sm90_attention_rows + sm90_key_value_stages * sm90_key_value_box) * 2 * head_dim
           + sm90_key_value_stages * sm90_key_value_box * 8 + 8 * (1 + 2 * sm90_key_value_stages);
}
// Streamed keys, and the rows of a box.
constexpr uint32_t sm90_query_box = 128;
constexpr uint32_t sm90_query_stages = 2;
// q and d_out, stages of k and v, barriers.
constexpr uint32_t sm90_query_bytes(uint32_t head_dim) {
    return 2 * (sm90_attention_rows + sm90_query_stages * sm90_query_box) * 2 * head_dim
           + 8 * (1 + 2 * sm90_query_stages);
}

// ---- attention elsewhere: attention_forward.cu, attention_backward.cu ----
constexpr uint32_t attention_rows = 128;
constexpr uint32_t attention_forward_threads = 128;
// Keys of a tile: 32 at D = 128, 64 at D = 64.
constexpr uint32_t attention_forward_keys(uint32_t head_dim) {
    return 4096 / head_dim;
}
constexpr uint32_t attention_forward_bytes(uint32_t head_dim) {
    return (attention_rows + 4 * attention_forward_keys(head_dim)) * 2 * head_dim;
}
constexpr uint32_t attention_backward_threads = 256;
constexpr uint32_t attention_streamed_rows = 64;
constexpr uint32_t attention_query_bytes(uint32_t head_dim) {
    return (2 * attention_rows + 4 * attention_streamed_rows) * 2 * head_dim;
}
// The same and the statistics of two stages.
constexpr uint32_t attention_key_value_bytes(uint32_t head_dim) {
    return attention_query_bytes(head_dim) + 2 * attention_streamed_rows * 8;
}
constexpr uint32_t attention_statistics_threads = 256;

// ---- attention without tensor cores: attention_general.cu ----
constexpr uint32_t attention_general_threads = 128;
constexpr uint32_t attention_general_rows = 16;
constexpr uint32_t attention_general_streamed = 32;
// Fixed tiles, two streamed tiles whose rows are one float longer, and as many tables as fixed tiles.
constexpr uint32_t attention_general_bytes(uint32_t fixed_tiles, uint32_t head_dim) {
    return 4 * (fixed_tiles * attention_general_rows * (head_dim + attention_general_streamed)
                + 2 * attention_general_streamed * (head_dim + 1));
}

// ---- attention_cached.cu ----
constexpr uint32_t attention_cached_warps = 4;
constexpr uint32_t attention_cached_bytes(uint32_t head_dim) {
    return 4 * attention_cached_warps * (head_dim + 2);
}

// ---- gemm.cu ----
constexpr uint32_t gemm_threads = 256;
// Rows and columns of C that a block computes.
constexpr uint32_t gemm_tile = 128;
constexpr uint32_t gemm_stages = 4;
constexpr uint32_t gemm_step = 32;
constexpr uint32_t gemm_bf16_bytes = gemm_stages * 2 * gemm_tile * gemm_step * 2;
constexpr uint32_t gemm_f32_step = 8;
constexpr uint32_t gemm_f32_stride = gemm_tile + 4;
constexpr uint32_t gemm_f32_bytes = 2 * 2 * gemm_f32_step * gemm_f32_stride * 4;

// ---- lora.cu ----
constexpr uint32_t lora_stages = 4;
// Rows and columns of a tile, if nothing else is said.
constexpr uint32_t lora_tile = 64;
constexpr uint32_t lora_down_threads = 256;
constexpr uint32_t lora_down_tokens = 32;
constexpr uint32_t lora_down_bytes = lora_stages * (lora_down_tokens + lora_tile) * lora_tile * 2;
constexpr uint32_t lora_rectangle_threads = 128;
// Stages of the wide operand; three tiles of the low one, and those of the factor.
constexpr uint32_t lora_rectangle_bytes(uint32_t ranks, uint32_t factor_tiles) {
    return (lora_stages * lora_tile + (3 + factor_tiles) * ranks) * lora_tile * 2;
}
constexpr uint32_t lora_rank_ranks = 32;
constexpr uint32_t lora_rank_tiles = 4;
constexpr uint32_t lora_factor_ranks = 64;
constexpr uint32_t lora_factor_tiles = 2;
constexpr uint32_t lora_input_threads = 256;
constexpr uint32_t lora_input_columns = 128;
// The f32 sums, whose rows are 8 floats longer; they take the place of the operands.
constexpr uint32_t lora_input_bytes = lora_tile * (lora_input_columns + 8) * 4;

// ---- sums of a block, and rows that stay in shared memory behind their scratch ----
constexpr uint32_t f64_sum_bytes = 32 * 8;
constexpr uint32_t norm_scratch_bytes = 128;
constexpr uint32_t hidden_scratch_bytes = 512;
constexpr uint32_t cosine_scratch_bytes = 640;
// Most threads of a block; a device's choices may name fewer.
constexpr uint32_t norm_forward_threads = 256;
constexpr uint32_t norm_backward_threads = 512;
// Threads, columns and bytes of a block that adds up partial sums of weight gradients.
constexpr uint32_t norm_weight_threads = 1024;
constexpr uint32_t norm_weight_columns = 32;
constexpr uint32_t norm_weight_bytes = norm_weight_threads / norm_weight_columns * (norm_weight_columns + 1) * 4;
constexpr uint32_t loss_head_threads = 256;
// Three f32 of each warp, five where a teacher's logits are compared with.
constexpr uint32_t loss_head_bytes = 3 * 4 * (loss_head_threads / 32);
constexpr uint32_t loss_head_divergence_bytes = 5 * 4 * (loss_head_threads / 32);
constexpr uint32_t embedding_tile = 512;
constexpr uint32_t embedding_sort_bytes = 4 * embedding_tile;
constexpr uint32_t bias_warps = 8;
