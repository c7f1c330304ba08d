// RMS norm, fused with the residual addition in front of it, and its gradient.
//
//   rms_norm_forward_*    sum = residual + delta (where there is a delta); inverse_rms = 1 / sqrt(mean(sum^2) + epsilon);
//                         normed = sum inverse_rms weight
//   rms_norm_backward_*   u = d_normed weight; d_residual += inverse_rms (u - x inverse_rms^2 mean(u x));
//                         partial[block] = sum of d_normed x inverse_rms over the rows of the block
//   rms_norm_weight_f32   d_weight += the partial sums, in order of the blocks (bias.cu and head_norm.cu use it, too)
//
// residual, delta, sum, normed, d_normed, x, d_residual [T, d] and weight [d] in bf16 or f32; inverse_rms [T],
// partial [blocks, d], d_weight [d] f32. Statistics are taken over the sum as it is stored, which backward reads.
//
// Bytes per element (stored elements of T d): forward 4 with a delta, 2 without; backward 4 (d_normed, x, d_residual
// read and written). Weights come from L1 and L2. The partial sums cost 8 blocks d bytes, mostly in L2: at most 1/8 of
// the main traffic in bf16, because the launcher gives a block at least 8 rows.
//
// Launch shapes. forward: a block of 32 to 256 threads a row. backward: 32 to 512 threads; with a weight gradient
// 1,536 threads on each multiprocessor (never more than T / 8 blocks), which walk over the rows; without, a block a row.
// weight: 1,024 threads for 32 columns, 32 strips of the partial rows, so that its loads are few and wide.
// Shared memory. forward: 128 bytes of scratch, the row as stored. backward: scratch, rows of d_normed and x as stored,
// f32 sums of the block's weight gradient (each a multiple of 16 bytes; a thread reads back only what it wrote). weight:
// 32 x 33 floats. Registers: at most 40 (three backward blocks of 512 threads).
//
// Rejected: the row in registers (a template for every row length, or dynamic indices, which become local memory);
// reading the row again from memory (L1 is not kept for 4 rows of 8 KiB beside others); a weight gradient by columns
// (reads d_normed and x a second time); loops unrolled by hand (the compiler then splits vector stores to shared memory
// into words, and the other warps of a full multiprocessor keep as many bytes in flight).

#include "vectors.cuh"

constexpr int forward_threads = norm_forward_threads;
constexpr int backward_threads = norm_backward_threads;
constexpr int weight_threads = norm_weight_threads;
constexpr unsigned scratch_bytes = norm_scratch_bytes;
static_assert(norm_weight_columns == 32 && weight_threads == 32 * 32, "rms_norm_weight: a warp a strip and a column");

template <typename T, int width, bool added>
__device__ __forceinline__ void forward(const T* __restrict__ residual, const T* __restrict__ delta,
                                        const T* __restrict__ weight, float epsilon, T* __restrict__ sum,
                                        T* __restrict__ normed, float* __restrict__ inverse_rms, uint32_t cols) {
    T* kept = reinterpret_cast<T*>(shared_memory() + scratch_bytes);
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float squares = 0.0f;
    for (uint32_t column = first; column < cols; column += step) {
        auto packed = load_packed<T, width>(residual + row + column);
        float x[width];
        unpack(packed, x);
        if constexpr (added) {
            float d[width];
            load_floats<T, width>(delta + row + column, d);
#pragma unroll
            for (int k = 0; k < width; k++) d[k] += x[k];
            packed = pack<T, width>(d);
            store_packed<T, width>(sum + row + column, packed);
            unpack(packed, x);
        }
        store_packed<T, width>(kept + column, packed);
#pragma unroll
        for (int k = 0; k < width; k++) squares += x[k] * x[k];
    }
    const float mean = block_sum(squares, reinterpret_cast<float*>(shared_memory())) / cols;
    const float inverse = 1.0f / sqrtf(mean + epsilon);
    if (threadIdx.x == 0) inverse_rms[blockIdx.x] = inverse;
    for (uint32_t column = first; column < cols; column += step) {
        float x[width], w[width];
        load_floats<T, width>(kept + column, x);
        load_floats<T, width>(weight + column, w);
#pragma unroll
        for (int k = 0; k < width; k++) x[k] = x[k] * inverse * w[k];
        store_floats<T, width>(normed + row + column, x);
    }
}

template <typename T, int width>
__device__ __forceinline__ void forward_row(const T* residual, const T* delta, const T* weight, float epsilon, T* sum,
                                            T* normed, float* inverse_rms, uint32_t cols) {
    if (delta != nullptr) {
        forward<T, width, true>(residual, delta, weight, epsilon, sum, normed, inverse_rms, cols);
    } else {
        forward<T, width, false>(residual, delta, weight, epsilon, sum, normed, inverse_rms, cols);
    }
}

template <typename T, int width>
__device__ __forceinline__ void backward(const T* __restrict__ d_normed, const T* __restrict__ x,
                                         const T* __restrict__ weight, const float* __restrict__ inverse_rms,
                                         T* __restrict__ d_residual, float* __restrict__ partial, uint32_t rows,
                                         uint32_t cols) {
    const uint32_t row_bytes = round_up(cols * uint32_t(sizeof(T)), 16u);
    T* kept_d = reinterpret_cast<T*>(shared_memory() + scratch_bytes);
    T* kept_x = reinterpret_cast<T*>(shared_memory() + scratch_bytes + row_bytes);
    float* all_sums = reinterpret_cast<float*>(shared_memory() + scratch_bytes + 2 * row_bytes);
    const SharedFloats<width> sums{all_sums, cols / width};
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    for (uint32_t column = first; partial != nullptr && column < cols; column += step) {
        const float zeros[width] = {};
        sums.store(column / width, zeros);
    }
    for (uint32_t r = blockIdx.x; r < rows; r += gridDim.x) {
        const uint64_t row = uint64_t(r) * cols;
        const float inverse = inverse_rms[r];
        float projection = 0.0f;
        for (uint32_t column = first; column < cols; column += step) {
            const auto packed_d = load_packed<T, width>(d_normed + row + column);
            const auto packed_x = load_packed<T, width>(x + row + column);
            float d[width], v[width], w[width];
            load_floats<T, width>(weight + column, w);
            unpack(packed_d, d);
            unpack(packed_x, v);
#pragma unroll
            for (int k = 0; k < width; k++) projection += d[k] * w[k] * v[k];
            store_packed<T, width>(kept_d + column, packed_d);
            store_packed<T, width>(kept_x + column, packed_x);
        }
        projection = block_sum(projection, reinterpret_cast<float*>(shared_memory()));
        const float mean = projection / cols * inverse * inverse;
        for (uint32_t column = first; column < cols; column += step) {
            float out[width], d[width], v[width], w[width];
            load_floats<T, width>(d_residual + row + column, out);
            load_floats<T, width>(kept_d + column, d);
            load_floats<T, width>(kept_x + column, v);
            load_floats<T, width>(weight + column, w);
#pragma unroll
            for (int k = 0; k < width; k++) out[k] += inverse * (d[k] * w[k] - v[k] * mean);
            store_floats<T, width>(d_residual + row + column, out);
            if (partial != nullptr) {
                sums.load(column / width, w);
#pragma unroll
                for (int k = 0; k < width; k++) w[k] += d[k] * v[k] * inverse;
                sums.store(column / width, w);
            }
        }
    }
    for (uint32_t column = first; partial != nullptr && column < cols; column += step) {
        float sum[width];
        sums.load(column / width, sum);
        store_floats<float, width>(partial + uint64_t(blockIdx.x) * cols + column, sum);
    }
}

#define NORM_KERNELS(name, T)                                                                                        \
    TEMPER_KERNEL(rms_norm_forward_##name, forward_threads, const T* __restrict__ residual,                          \
                  const T* __restrict__ delta, const T* __restrict__ weight, float epsilon, T* __restrict__ sum,     \
                  T* __restrict__ normed, float* __restrict__ inverse_rms, uint32_t cols, uint32_t vectorised) {     \
        if (vectorised) {                                                                                            \
            forward_row<T, 16 / sizeof(T)>(residual, delta, weight, epsilon, sum, normed, inverse_rms, cols);        \
        } else {                                                                                                     \
            forward_row<T, 1>(residual, delta, weight, epsilon, sum, normed, inverse_rms, cols);                     \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(rms_norm_backward_##name, backward_threads, const T* __restrict__ d_normed,                        \
                  const T* __restrict__ x, const T* __restrict__ weight, const float* __restrict__ inverse_rms,      \
                  T* __restrict__ d_residual, float* __restrict__ partial, uint32_t rows, uint32_t cols,             \
                  uint32_t vectorised) {                                                                             \
        if (vectorised) {                                                                                            \
            backward<T, 16 / sizeof(T)>(d_normed, x, weight, inverse_rms, d_residual, partial, rows, cols);          \
        } else {                                                                                                     \
            backward<T, 1>(d_normed, x, weight, inverse_rms, d_residual, partial, rows, cols);                       \
        }                                                                                                            \
    }

NORM_KERNELS(bf16, bf16)
NORM_KERNELS(f32, float)

TEMPER_KERNEL(rms_norm_weight_f32, weight_threads, const float* __restrict__ partial, uint32_t blocks, uint32_t cols,
              float* __restrict__ d_weight) {
    // Padded by one column, so that the strips of a column lie in different banks.
    float* strips = reinterpret_cast<float*>(shared_memory());
    const uint32_t lane = threadIdx.x % 32, strip = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t block = strip; block < blocks; block += 32) {
        if (column < cols) sum += partial[uint64_t(block) * cols + column];
    }
    strips[strip * 33 + lane] = sum;
    __syncthreads();
    // Now a warp is a column: its lanes are the strips.
    sum = warp_sum(strips[lane * 33 + strip]);
    if (lane == 0 && blockIdx.x * 32 + strip < cols) d_weight[blockIdx.x * 32 + strip] += sum;
}
