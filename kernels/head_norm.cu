// RMS norm of query and key heads, and its gradient.
//
//   head_norm_forward_*    out = x inverse weight for every head x of queries and keys, inverse = 1 / sqrt(mean(x^2) +
//                          epsilon); value heads are copied
//   head_norm_backward_*   u = d weight; d = inverse (u - x inverse^2 mean(u x)) for query and key heads, in place;
//                          partial[block] = sums of d x inverse over the tokens of the block, of query and of key heads
//                          (rms_norm_weight_f32, norm.cu, adds the blocks to d_weight in their order)
//
// qkv, out, d [T, (H + 2 G) D] and weight [2, D] (queries, keys) in bf16 or f32; partial [blocks, 2 D] f32. Statistics are
// computed again in backward: a head is short, and its two sums cost no traffic.
//
// Bytes per element, the floor: forward 2 stored elements for each of T (H + 2 G) D; backward 3 for each of T (H + G) D. The
// second reading of a head comes from L1. Weights come from L1.
//
// Launch shapes. A warp a head, four elements a lane and step. forward: a block a token, 32 to 512 threads. backward: 32 to 256
// threads; with a weight gradient 1,536 threads on each multiprocessor (never more than T / 8 blocks), which walk over the
// tokens; without, a block a token. Shared memory: backward with a weight gradient, 2 D f32 for each warp, of which a lane reads
// back only what it wrote. Registers: at most 40; 44 for backward in f32 on sm_90a, of which five blocks of 256 threads fit a
// multiprocessor rather than six.
// Where D is no multiple of four, or a pointer does not allow vectors, the same template runs with width 1.
//
// Rejected: the norm in rope's kernel, which would save a pass over queries and keys, but forward and backward differ in
// their order there, and models without norms would share its registers; the kernels of norm.cu, whose rows lie without
// gaps and have one weight. Speed not measured.

#include "vectors.cuh"

constexpr int head_forward_threads = 512;
constexpr int head_backward_threads = 256;

template <typename T, int width>
__device__ __forceinline__ void head_norm_forward(const T* __restrict__ qkv, const T* __restrict__ weight, float epsilon,
                                                  T* __restrict__ out, uint32_t queries, uint32_t keys, uint32_t size) {
    const uint32_t first = threadIdx.x % 32 * width, heads = queries + 2 * keys;
    for (uint32_t head = threadIdx.x / 32; head < heads; head += blockDim.x / 32) {
        const uint64_t place = (uint64_t(blockIdx.x) * heads + head) * size;
        if (head >= queries + keys) {
            for (uint32_t i = first; i < size; i += 32 * width) {
                store_packed<T, width>(out + place + i, load_packed<T, width>(qkv + place + i));
            }
            continue;
        }
        const T* w = weight + (head < queries ? 0 : size);
        float squares = 0.0f;
        for (uint32_t i = first; i < size; i += 32 * width) {
            float x[width];
            load_floats<T, width>(qkv + place + i, x);
#pragma unroll
            for (int k = 0; k < width; k++) squares += x[k] * x[k];
        }
        const float inverse = 1.0f / sqrtf(warp_sum(squares) / size + epsilon);
        for (uint32_t i = first; i < size; i += 32 * width) {
            float x[width], scale[width];
            load_floats<T, width>(qkv + place + i, x);
            load_floats<T, width>(w + i, scale);
#pragma unroll
            for (int k = 0; k < width; k++) x[k] = x[k] * inverse * scale[k];
            store_floats<T, width>(out + place + i, x);
        }
    }
}

template <typename T, int width>
__device__ __forceinline__ void head_norm_backward(const T* __restrict__ qkv, const T* __restrict__ weight, float epsilon,
                                                   T* __restrict__ d_qkv, float* __restrict__ partial, uint32_t rows,
                                                   uint32_t queries, uint32_t keys, uint32_t size) {
    const uint32_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const uint32_t first = threadIdx.x % 32 * width, heads = queries + 2 * keys;
    float* all_sums = reinterpret_cast<float*>(shared_memory());
    float* own_sums = all_sums + warp * 2 * size;
    const float zeros[width] = {};
    for (uint32_t i = first; partial != nullptr && i < size; i += 32 * width) {
        store_floats<float, width>(own_sums + i, zeros);
        store_floats<float, width>(own_sums + size + i, zeros);
    }
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x) {
        for (uint32_t head = warp; head < queries + keys; head += warps) {
            const uint64_t place = (uint64_t(row) * heads + head) * size;
            const uint32_t kind = head < queries ? 0 : size;
            float squares = 0.0f, projection = 0.0f;
            for (uint32_t i = first; i < size; i += 32 * width) {
                float x[width], d[width], w[width];
                load_floats<T, width>(qkv + place + i, x);
                load_floats<T, width>(d_qkv + place + i, d);
                load_floats<T, width>(weight + kind + i, w);
#pragma unroll
                for (int k = 0; k < width; k++) {
                    squares += x[k] * x[k];
                    projection += d[k] * w[k] * x[k];
                }
            }
            const float inverse = 1.0f / sqrtf(warp_sum(squares) / size + epsilon);
            const float mean = warp_sum(projection) / size * inverse * inverse;
            for (uint32_t i = first; i < size; i += 32 * width) {
                float x[width], d[width], w[width];
                load_floats<T, width>(qkv + place + i, x);
                load_floats<T, width>(d_qkv + place + i, d);
                if (partial != nullptr) {
                    load_floats<float, width>(own_sums + kind + i, w);
#pragma unroll
                    for (int k = 0; k < width; k++) w[k] += d[k] * x[k] * inverse;
                    store_floats<float, width>(own_sums + kind + i, w);
                }
                load_floats<T, width>(weight + kind + i, w);
#pragma unroll
                for (int k = 0; k < width; k++) d[k] = inverse * (d[k] * w[k] - x[k] * mean);
                store_floats<T, width>(d_qkv + place + i, d);
            }
        }
    }
    if (partial == nullptr) return;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < 2 * size; i += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t other = 0; other < warps; other++) sum += all_sums[other * 2 * size + i];
        partial[uint64_t(blockIdx.x) * 2 * size + i] = sum;
    }
}

#define HEAD_NORM_KERNELS(name, T)                                                                                   \
    TEMPER_KERNEL(head_norm_forward_##name, head_forward_threads, const T* __restrict__ qkv,                         \
                  const T* __restrict__ weight, float epsilon, T* __restrict__ out, uint32_t queries, uint32_t keys, \
                  uint32_t size, uint32_t vectorised) {                                                              \
        if (vectorised) {                                                                                            \
            head_norm_forward<T, 4>(qkv, weight, epsilon, out, queries, keys, size);                                 \
        } else {                                                                                                     \
            head_norm_forward<T, 1>(qkv, weight, epsilon, out, queries, keys, size);                                 \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(head_norm_backward_##name, head_backward_threads, const T* __restrict__ qkv,                       \
                  const T* __restrict__ weight, float epsilon, T* __restrict__ d_qkv, float* __restrict__ partial,   \
                  uint32_t rows, uint32_t queries, uint32_t keys, uint32_t size, uint32_t vectorised) {              \
        if (vectorised) {                                                                                            \
            head_norm_backward<T, 4>(qkv, weight, epsilon, d_qkv, partial, rows, queries, keys, size);               \
        } else {                                                                                                     \
            head_norm_backward<T, 1>(qkv, weight, epsilon, d_qkv, partial, rows, queries, keys, size);               \
        }                                                                                                            \
    }

HEAD_NORM_KERNELS(bf16, bf16)
HEAD_NORM_KERNELS(f32, float)
