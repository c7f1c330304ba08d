//! Tensor maps: what Hopper's copy engine must know about a matrix in memory to fetch tiles of it.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType_enum as Element, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as Pattern, cuTensorMapEncodeTiled,
};

use super::super::driver::{TensorMap, Tiles};
use super::error::during;
use crate::error::{Error, Result};
use crate::ops::DType;

// The kernel parameter is 128 bytes, aligned to 64 at least.
const _: () = assert!(size_of::<CUtensorMap>() == size_of::<TensorMap>() && align_of::<TensorMap>() >= 64);

/// The map of these tiles.
///
/// # Errors
/// When the copy engine cannot do that: the message names the rule.
pub(super) fn encode(tiles: &Tiles) -> Result<TensorMap> {
    check(tiles).map_err(|rule| Error::Device(format!("tensor map: {rule}, but: {tiles:?}")))?;
    let element = element(tiles.dtype);
    let pattern = pattern(tiles.swizzle);
    let steps = vec![1u32; tiles.sizes.len()];
    let mut map = CUtensorMap { opaque: [0; 16] };
    // SAFETY: the arrays have as many entries as the rank says (strides one less), which was checked, and the map
    // is aligned as its type demands. The driver reads none of the tensor's memory.
    let status = unsafe {
        cuTensorMapEncodeTiled(
            &mut map,
            element,
            tiles.sizes.len() as u32,
            tiles.address as *mut c_void,
            tiles.sizes.as_ptr(),
            tiles.strides.as_ptr(),
            tiles.tile.as_ptr(),
            steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            pattern,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result().map_err(during(format_args!("tensor map of {tiles:?}")))?;
    Ok(TensorMap(map.opaque))
}

fn element(dtype: DType) -> Element {
    match dtype {
        DType::F32 => Element::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::Bf16 => Element::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::Remainder16 => Element::CU_TENSOR_MAP_DATA_TYPE_UINT16,
        DType::U32 => Element::CU_TENSOR_MAP_DATA_TYPE_UINT32,
    }
}

fn pattern(bytes: u32) -> Pattern {
    match bytes {
        32 => Pattern::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => Pattern::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => Pattern::CU_TENSOR_MAP_SWIZZLE_128B,
        _ => Pattern::CU_TENSOR_MAP_SWIZZLE_NONE,
    }
}

/// The rules of the CUDA manual for tiled maps without interleaving, so that a broken one is named.
fn check(tiles: &Tiles) -> Result<(), &'static str> {
    let rank = tiles.sizes.len();
    let inner_bytes = tiles.tile.first().map_or(0, |&inner| u64::from(inner) * tiles.dtype.bytes() as u64);
    let rules = [
        (!(1..=5).contains(&rank), "a tensor has 1 to 5 dimensions"),
        (
            tiles.tile.len() != rank || tiles.strides.len() + 1 != rank,
            "every dimension has a tile, all but the first a stride",
        ),
        (!tiles.address.is_multiple_of(16), "the address is a multiple of 16"),
        (tiles.sizes.iter().any(|&size| size == 0 || size > 1 << 32), "sizes are 1 to 2^32"),
        (
            tiles.strides.iter().any(|&stride| !stride.is_multiple_of(16) || stride >= 1 << 40),
            "strides are multiples of 16 below 2^40",
        ),
        (tiles.tile.iter().any(|&extent| extent == 0 || extent > 256), "a tile has 1 to 256 elements in a dimension"),
        (!inner_bytes.is_multiple_of(16), "a tile's rows are a multiple of 16 bytes"),
        (![0, 32, 64, 128].contains(&tiles.swizzle), "the swizzle is 0, 32, 64 or 128 bytes"),
        (tiles.swizzle != 0 && inner_bytes > u64::from(tiles.swizzle), "a tile's rows are no longer than the swizzle"),
    ];
    rules.iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, rule)| Err(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One change to a valid map breaks one rule, and that one is named.
    #[test]
    fn each_rule_of_the_copy_engine_is_checked() {
        let valid = Tiles {
            dtype: DType::Bf16,
            address: 4096,
            sizes: &[100, 7],
            strides: &[208],
            tile: &[64, 64],
            swizzle: 128,
        };
        assert_eq!(check(&valid), Ok(()));
        let broken = [
            (Tiles { sizes: &[], ..valid }, "dimensions"),
            (Tiles { strides: &[], ..valid }, "stride"),
            (Tiles { address: 4104, ..valid }, "address"),
            (Tiles { sizes: &[100, 0], ..valid }, "sizes"),
            (Tiles { strides: &[200], ..valid }, "strides"),
            (Tiles { tile: &[64, 257], ..valid }, "tile has"),
            (Tiles { tile: &[4, 64], ..valid }, "16 bytes"),
            (Tiles { swizzle: 16, ..valid }, "swizzle is"),
            (Tiles { swizzle: 64, ..valid }, "no longer"),
        ];
        for (tiles, rule) in broken {
            assert!(check(&tiles).expect_err("a broken rule").contains(rule), "{tiles:?}");
        }
    }
}
