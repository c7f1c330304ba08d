// Block sums beyond the ones in common.cuh: several numbers with one pair of barriers, and f64.
#pragma once

#include "common.cuh"

// Scratch of block_sums for n numbers of type T, in bytes.
template <typename T, int n>
constexpr unsigned sums_scratch = 32 * n * sizeof(T);
static_assert(sums_scratch<double, 1> == f64_sum_bytes, "what launchers give kernels that sum one number");
static_assert(sums_scratch<float, 3> <= hidden_scratch_bytes, "three sums fit in front of the rows of hidden.cu");
static_assert(sums_scratch<float, 5> <= cosine_scratch_bytes, "five sums fit in front of the rows of hidden.cu");

// Sums n numbers at once over the block (a multiple of 32 threads), the same bits in all of them: lanes by a butterfly,
// then warps by another. `scratch`: sums_scratch<T, n> bytes of shared memory, free again afterwards.
template <typename T, int n>
__device__ __forceinline__ void block_sums(T (&values)[n], T* scratch TEMPER_SITE) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll
        for (int i = 0; i < n; i++) {
            if (pass == 1) values[i] = lane < warps ? scratch[32 * i + lane] : T(0);
#pragma unroll
            for (int offset = 16; offset > 0; offset /= 2) {
                values[i] += __shfl_xor_sync(full_warp, values[i], offset, 32 TEMPER_PASS_SITE);
            }
            if (pass == 0 && lane == 0) scratch[32 * i + warp] = values[i];
        }
        __syncthreads(TEMPER_PASS_SITE_ONLY);
    }
}
