// The bias of a linear layer, and its gradient.
//
//   add_bias_*            y += bias, on every row
//   bias_sums_*           partial[chunk] = sum of dy over the rows of the chunk; rms_norm_weight_f32 (norm.cu) adds the
//                         chunks to d_bias in their order
//
// y, dy [T, out] and bias [out] in bf16 or f32; partial [chunks, out] f32.
//
// Bytes per element (stored elements of T out), the floor: add_bias 2, bias_sums 1. The bias comes from L1 and L2; partial
// sums cost 8 chunks out bytes, at most 1/8 of the main traffic in bf16, because a chunk has at least 64 rows.
//
// Launch shapes. add_bias: 32 to 256 threads, block = row * blocks of a row + part, one vector of 16 bytes a thread.
// bias_sums: 256 threads, block = chunk * groups + group; a group is 32 vectors of columns, a warp takes every eighth row of
// the chunk. Shared memory: bias_sums, a row of f32 of the group's columns for each warp. Registers: at most 32.
// Where an operand is not aligned to 16 bytes (or out no multiple of the vector), the same template runs with width 1.
//
// Rejected: the bias in the epilogue of the product: the library's epilogue would save both passes over y, but our own
// products would need a second version of each kernel, for 2 (H + 2G) D of the 20 and more stored elements a token and layer
// that a layer moves. Not measured.

#include "vectors.cuh"

constexpr int add_threads = 256;

template <typename T, int width>
__device__ __forceinline__ void add_bias(const T* __restrict__ bias, T* __restrict__ y, uint32_t cols, uint32_t parts) {
    const uint32_t row = blockIdx.x / parts, part = blockIdx.x - row * parts;
    const uint32_t column = (part * blockDim.x + threadIdx.x) * width;
    if (column >= cols) return;
    T* place = y + uint64_t(row) * cols + column;
    float b[width], sum[width];
    load_floats<T, width>(bias + column, b);
    load_floats<T, width>(place, sum);
#pragma unroll
    for (int k = 0; k < width; k++) sum[k] += b[k];
    store_floats<T, width>(place, sum);
}

template <typename T, int width>
__device__ __forceinline__ void bias_sums(const T* __restrict__ dy, float* __restrict__ partial, uint32_t rows,
                                          uint32_t cols, uint32_t groups, uint32_t chunk_rows) {
    constexpr uint32_t group_cols = 32 * width;
    float* strips = reinterpret_cast<float*>(shared_memory());
    const uint32_t chunk = blockIdx.x / groups, group = blockIdx.x - chunk * groups;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t column = group * group_cols + lane * width;
    const uint32_t first = chunk * chunk_rows, end = min(rows, first + chunk_rows);
    float sum[width] = {};
    if (column < cols) {
#pragma unroll 4
        for (uint32_t row = first + warp; row < end; row += bias_warps) {
            float d[width];
            load_floats<T, width>(dy + uint64_t(row) * cols + column, d);
#pragma unroll
            for (int k = 0; k < width; k++) sum[k] += d[k];
        }
    }
    store_floats<float, width>(strips + warp * group_cols + lane * width, sum);
    __syncthreads();
    const uint32_t own = group * group_cols + threadIdx.x;
    if (threadIdx.x >= group_cols || own >= cols) return;
    float total = 0.0f;
#pragma unroll
    for (int strip = 0; strip < bias_warps; strip++) total += strips[strip * group_cols + threadIdx.x];
    partial[uint64_t(chunk) * cols + own] = total;
}

#define BIAS_KERNELS(name, T)                                                                                        \
    TEMPER_KERNEL(add_bias_##name, add_threads, const T* __restrict__ bias, T* __restrict__ y, uint32_t cols,        \
                  uint32_t parts, uint32_t vectorised) {                                                             \
        if (vectorised) {                                                                                            \
            add_bias<T, 16 / sizeof(T)>(bias, y, cols, parts);                                                       \
        } else {                                                                                                     \
            add_bias<T, 1>(bias, y, cols, parts);                                                                    \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(bias_sums_##name, 32 * bias_warps, const T* __restrict__ dy, float* __restrict__ partial,          \
                  uint32_t rows, uint32_t cols, uint32_t groups, uint32_t chunk_rows, uint32_t vectorised) {         \
        if (vectorised) {                                                                                            \
            bias_sums<T, 16 / sizeof(T)>(dy, partial, rows, cols, groups, chunk_rows);                               \
        } else {                                                                                                     \
            bias_sums<T, 1>(dy, partial, rows, cols, groups, chunk_rows);                                            \
        }                                                                                                            \
    }

BIAS_KERNELS(bf16, bf16)
BIAS_KERNELS(f32, float)
