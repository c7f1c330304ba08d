// Rotary position embedding of the query and key heads of qkv, in place.
//
//   rope_*   (a, b) = (a cos - b sin, b cos + a sin) for the pair (i, i + D/2) of every query and key head; the inverse
//            turns by minus the angle
//   qkv [T, (H + 2 G) D] bf16 or f32, positions [T] u32, cos and sin [positions, D/2] f32
//
// Bytes: 2 stored elements (read, written) for each of T (H + G) D; the angles, 4 D bytes a token, are read once and
// kept in registers over the heads. Launch: a block a token, 32 to 256 threads: thread = head * vectors + vector, where
// a half head has `vectors` vectors of 16 bytes; a thread walks over heads with its angles (two f32 for each element of
// a vector). No shared memory. Registers: at most 64 (32 bytes in flight for each of 1,024 threads).
// Width 1 where the half head or a pointer does not allow vectors.
//
// Rejected: rotation in the attention kernel's prologue: keys would be turned once for every query tile and head that
// reads them, and backward needs the turned values anyway.

#include "vectors.cuh"

constexpr int rope_threads = 256;

template <typename T, int width>
__device__ __forceinline__ void rotate(T* __restrict__ qkv, const uint32_t* __restrict__ positions,
                                       const float* __restrict__ cosines, const float* __restrict__ sines, uint32_t cols,
                                       uint32_t heads, uint32_t half, float sign) {
    const uint32_t vectors = half / width, lanes = min(vectors, uint32_t(blockDim.x)), step = blockDim.x / lanes;
    const uint32_t first_head = threadIdx.x / lanes;
    // Threads beyond the last whole head of the block have no work.
    if (first_head >= step) return;
    const uint64_t angle = uint64_t(positions[blockIdx.x]) * half;
    T* row = qkv + uint64_t(blockIdx.x) * cols;
    for (uint32_t i = threadIdx.x % lanes * width; i < half; i += lanes * width) {
        float cosine[width], sine[width];
        load_floats<float, width>(cosines + angle + i, cosine);
        load_floats<float, width>(sines + angle + i, sine);
        for (uint32_t head = first_head; head < heads; head += step) {
            T* low = row + head * 2 * half + i;
            float a[width], b[width];
            load_floats<T, width>(low, a);
            load_floats<T, width>(low + half, b);
#pragma unroll
            for (int k = 0; k < width; k++) {
                const float x = a[k], y = b[k], s = sign * sine[k];
                a[k] = x * cosine[k] - y * s;
                b[k] = y * cosine[k] + x * s;
            }
            store_floats<T, width>(low, a);
            store_floats<T, width>(low + half, b);
        }
    }
}

#define ROPE_KERNEL(name, T)                                                                                         \
    TEMPER_KERNEL(rope_##name, rope_threads, T* __restrict__ qkv, const uint32_t* __restrict__ positions,            \
                  const float* __restrict__ cosines, const float* __restrict__ sines, uint32_t cols, uint32_t heads, \
                  uint32_t half, float sign, uint32_t vectorised) {                                                  \
        if (vectorised) {                                                                                            \
            rotate<T, 16 / sizeof(T)>(qkv, positions, cosines, sines, cols, heads, half, sign);                      \
        } else {                                                                                                     \
            rotate<T, 1>(qkv, positions, cosines, sines, cols, heads, half, sign);                                   \
        }                                                                                                            \
    }

ROPE_KERNEL(bf16, bf16)
ROPE_KERNEL(f32, float)
