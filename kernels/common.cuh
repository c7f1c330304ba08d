// Types and small device functions that every kernel file shares: bf16, vector access, warp and block sums.
//
// No PTX here (ptx.cuh has it all). Sums have a fixed order: the same inputs give the same bits on every run.
#pragma once

#include "ptx.cuh"
#include "sizes.cuh"

constexpr float infinity = __builtin_huge_valf();
constexpr float negative_infinity = -__builtin_huge_valf();
constexpr unsigned full_warp = 0xffffffffu;

// The upper half of an f32.
struct bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }

// Rounds to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
    return bf16{bf16_bits(value)};
}

// The two bf16 of a 32-bit register, as pack_bf16 made it.
__device__ __forceinline__ float low_float(uint32_t packed) { return __uint_as_float(packed << 16); }
__device__ __forceinline__ float high_float(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

template <typename A, typename B>
__host__ __device__ constexpr auto ceil_divide(A value, B divisor) {
    return (value + divisor - 1) / divisor;
}
template <typename A, typename B>
__host__ __device__ constexpr auto divide_up(A value, B divisor) {
    return ceil_divide(value, divisor);
}
template <typename A, typename B>
__host__ __device__ constexpr auto round_up(A value, B multiple) {
    return ceil_divide(value, multiple) * multiple;
}

// n values that move as one access of at most 16 bytes.
template <typename T, int n>
struct alignas(sizeof(T) * n) Vector {
    T value[n];
};

template <typename T, int n>
__device__ __forceinline__ Vector<T, n> load_vector(const T* address TEMPER_SITE) {
    static_assert(sizeof(T) * n <= 16, "one access moves at most 16 bytes");
#ifdef TEMPER_SIMULATOR
    simulator::note_vector(address, sizeof(T) * n, false, site);
#endif
    return *reinterpret_cast<const Vector<T, n>*>(address);
}

template <typename T, int n>
__device__ __forceinline__ void store_vector(T* address, const Vector<T, n>& value TEMPER_SITE) {
    static_assert(sizeof(T) * n <= 16, "one access moves at most 16 bytes");
#ifdef TEMPER_SIMULATOR
    simulator::note_vector(address, sizeof(T) * n, true, site);
#endif
    *reinterpret_cast<Vector<T, n>*>(address) = value;
}

// Sum over the 32 lanes, the same bits in all of them.
__device__ __forceinline__ float warp_sum(float value TEMPER_SITE) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(full_warp, value, offset, 32 TEMPER_PASS_SITE);
    return value;
}

__device__ __forceinline__ float warp_max(float value TEMPER_SITE) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(full_warp, value, offset, 32 TEMPER_PASS_SITE));
    }
    return value;
}

// Sum over the block (a multiple of 32 threads), the same bits in all of them. `scratch`: at least 32 floats of shared
// memory that nobody else uses; free again afterwards, because the last thing done is a barrier.
__device__ __forceinline__ float block_sum(float value, float* scratch TEMPER_SITE) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_sum(value TEMPER_PASS_SITE);
    if (lane == 0) scratch[warp] = value;
    __syncthreads(TEMPER_PASS_SITE_ONLY);
    value = warp_sum(lane < warps ? scratch[lane] : 0.0f TEMPER_PASS_SITE);
    __syncthreads(TEMPER_PASS_SITE_ONLY);
    return value;
}

// Maximum over the block; as block_sum.
__device__ __forceinline__ float block_max(float value, float* scratch TEMPER_SITE) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_max(value TEMPER_PASS_SITE);
    if (lane == 0) scratch[warp] = value;
    __syncthreads(TEMPER_PASS_SITE_ONLY);
    value = warp_max(lane < warps ? scratch[lane] : negative_infinity TEMPER_PASS_SITE);
    __syncthreads(TEMPER_PASS_SITE_ONLY);
    return value;
}
