//! The sizes that kernels and launchers share: one header, from which the build makes the launchers' constants.

/// What the build made of `kernels/sizes.cuh`.
#[allow(dead_code, reason = "tests need some of them")]
pub mod built {
    include!(concat!(env!("OUT_DIR"), "/sizes.rs"));
}
/// The build script's reader.
#[path = "../../build/sizes.rs"]
mod reader;

#[test]
fn declarations_become_constants_and_functions() {
    let header = "// Rows.
#pragma once
constexpr uint32_t tile = 128;  // of C
constexpr uint32_t tile_bytes = 2 * tile * (tile + 4);
constexpr uint32_t bytes(uint32_t tiles, uint32_t head_dim) {
    return tiles * tile_bytes
           + 8 * head_dim;
}
";
    let expected = "pub const TILE: usize = 128;
pub const TILE_BYTES: usize = 2 * TILE * (TILE + 4);
pub const fn bytes(tiles: usize, head_dim: usize) -> usize {
    tiles * TILE_BYTES + 8 * head_dim
}
";
    assert_eq!(reader::rust(header).expect("a header"), expected);
}

/// What only one of the two languages has is refused, with the declaration.
#[test]
fn other_declarations_are_refused() {
    for declaration in [
        "constexpr int tile = 128;",
        "constexpr uint32_t tile = wide ? 128 : 64;",
        "constexpr uint32_t tile = sizeof(Tile<64>);",
        "constexpr uint32_t tile = 128u << Shift;",
        "constexpr uint32_t bytes(int tiles) { return tiles; }",
        "struct Tile { int rows; };",
        "constexpr uint32_t tile = 128",
    ] {
        let error = reader::rust(declaration).expect_err(declaration);
        assert!(error.contains(declaration), "{error}");
    }
}

/// The sums that head comments name.
#[test]
fn shared_memory_is_what_the_head_comments_say() {
    let both = |bytes: fn(usize) -> usize| [bytes(128), bytes(64)];
    assert_eq!(both(built::sm90_forward_bytes), [163_912, 81_992]);
    assert_eq!(both(built::sm90_key_value_bytes), [165_432, 83_512]);
    assert_eq!(both(built::sm90_query_bytes), [196_648, 98_344]);
    assert_eq!(both(built::attention_forward_bytes), [65_536, 49_152]);
    assert_eq!(both(built::attention_query_bytes), [131_072, 65_536]);
    assert_eq!(both(built::attention_key_value_bytes), [132_096, 66_560]);
    assert_eq!(built::attention_general_bytes(2, 256), 102_656);
    assert_eq!(built::attention_cached_bytes(256), 4_128);
    assert_eq!([built::GEMM_BF16_BYTES, built::GEMM_F32_BYTES], [64 << 10, 33 << 9]);
    let rectangles = [built::lora_rectangle_bytes(32, 4), built::lora_rectangle_bytes(64, 0)];
    assert_eq!([built::LORA_DOWN_BYTES, built::LORA_INPUT_BYTES], [48 << 10, 34 << 10]);
    assert_eq!(rectangles, [60 << 10, 56 << 10]);
    assert_eq!([built::LOSS_HEAD_BYTES, built::F64_SUM_BYTES, built::EMBEDDING_SORT_BYTES], [96, 256, 2_048]);
    assert_eq!(built::NORM_WEIGHT_BYTES, 32 * 33 * 4);
}
