// Shared by the Hopper attention kernels: products of a warpgroup on tiles that tile copies brought, and the ring of
// stages between the producer and the consumers.
//
// A tile has the layout of attention.cuh: panels of 64 columns with rows of 128 bytes and 128-byte swizzle. A tensor
// map with dimensions (64 columns, rows, panels) and a box (64, rows of the tile, D / 64) writes it with one
// instruction.
#pragma once

#include "attention.cuh"

// Warpgroup 0 fetches, 1 and 2 compute.
constexpr uint32_t hopper_consumers = 256;
static_assert(hopper_consumers + 128 == sm90_attention_threads, "one warpgroup fetches");

// The warpgroup of this thread. The shuffle tells the compiler that it is one number for the whole warp: what depends on
// it, as the descriptors of the left operands do, then stays in uniform registers, where products read it.
__device__ __forceinline__ uint32_t hopper_warpgroup(TEMPER_SITE_ONLY) {
    return __shfl_sync(full_warp, threadIdx.x / 128, 0, 32 TEMPER_PASS_SITE);
}

// The accumulators of row and column fragments as the flat array that wgmma takes: the order is the same.
template <int columns>
__device__ __forceinline__ float (&flat(float (&c)[1][columns][4]))[columns * 4] {
    return reinterpret_cast<float (&)[columns * 4]>(c);
}

// c = a b^T over D columns: 64 rows of tile a from row `a_row` on, against all rows of tile b. Only issued.
template <int D, int a_rows, int b_rows>
__device__ __forceinline__ void hopper_product_transposed(float (&c)[1][b_rows / 8][4], const unsigned char* a,
                                                          uint32_t a_row, const unsigned char* b) {
    const uint64_t left = wgmma_descriptor(a + a_row * 128, Swizzle::bytes_128, 0, 1024);
    const uint64_t right = wgmma_descriptor(b, Swizzle::bytes_128, 0, 1024);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        // The address in a descriptor counts 16 bytes.
        const uint32_t a_step = (k / 4 * (a_rows * 128) + k % 4 * 32) / 16;
        const uint32_t b_step = (k / 4 * (b_rows * 128) + k % 4 * 32) / 16;
        wgmma<b_rows>(flat(c), left + a_step, right + b_step, k != 0);
    }
}

// c += a b: bf16 fragments of an earlier result, against the b_rows rows of tile b, all D columns. Only issued.
template <int D, int b_rows>
__device__ __forceinline__ void hopper_product(float (&c)[1][D / 8][4], const uint32_t (&a)[b_rows / 16][4],
                                               const unsigned char* b) {
    const uint64_t right = wgmma_descriptor(b, Swizzle::bytes_128, b_rows * 128, 1024);
#pragma unroll
    for (int k = 0; k < b_rows / 16; ++k) {
        wgmma_registers<D, Major::mn>(flat(c), a[k], right + k * (2048 / 16), true);
    }
}

// Accumulators as the left operand of the next product.
template <int columns>
__device__ __forceinline__ void hopper_pack(uint32_t (&a)[columns / 2][4], const float (&c)[1][columns][4]) {
#pragma unroll
    for (int k = 0; k < columns / 2; ++k) {
        a[k][0] = pack_bf16(c[0][2 * k][0], c[0][2 * k][1]);
        a[k][1] = pack_bf16(c[0][2 * k][2], c[0][2 * k][3]);
        a[k][2] = pack_bf16(c[0][2 * k + 1][0], c[0][2 * k + 1][1]);
        a[k][3] = pack_bf16(c[0][2 * k + 1][2], c[0][2 * k + 1][3]);
    }
}

// Clears the rows from `first` on of a tile that reaches over the end of its sequence: their factors are 0, but what
// lies there may not be finite. Both consumer warpgroups call it, then hopper_cleared.
template <int D, int rows>
__device__ __forceinline__ void hopper_clear_rows(unsigned char* tile, uint32_t first) {
    constexpr uint32_t chunks = D / 8;
    for (uint32_t i = first * chunks + threadIdx.x % hopper_consumers; i < rows * chunks; i += hopper_consumers) {
        auto* to = reinterpret_cast<uint32_t*>(tile + attention_offset<rows>(i / chunks, i % chunks));
        store_vector<uint32_t, 4>(to, {{0, 0, 0, 0}});
    }
}

// Lets wgmma see what the consumers cleared.
__device__ __forceinline__ void hopper_cleared() {
    fence_proxy_async();
    named_barrier_sync(1, hopper_consumers);  // hopper_meet has 2 and 3
}

// Waits until every warp of this consumer warpgroup has finished with its left operands: results leave through them.
__device__ __forceinline__ void hopper_meet() { named_barrier_sync(1 + threadIdx.x / 128, 128); }

// Which stage of a ring comes next, and the parity of its barriers.
template <int stages>
struct HopperStage {
    uint32_t index = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++index == stages) index = 0, parity ^= 1;
    }
};

// A consumer warp has finished with a stage.
__device__ __forceinline__ void hopper_release(uint64_t* empty) {
    if (threadIdx.x % 32 == 0) mbarrier_arrive(empty);
}
// Arrivals that free a stage.
constexpr uint32_t hopper_releases = hopper_consumers / 32;
