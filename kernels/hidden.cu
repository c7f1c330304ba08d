// Losses on hidden states, with their gradients.
//
//   representation_distance_*   value_t = |h_t - reference_t|; d_hidden_t += weight_t (h_t - reference_t) / value_t,
//                               and nothing where value_t = 0
//   random_mapping_*            value_t = 1 - |c|, c = h_t r / (n m), r = table[ids[t]], n = max(|h_t|, 1e-8),
//                               m = max(|r|, 1e-8); d_hidden_t += -weight_t sign(c) (r / (n m) - c h_t / n^2)
//
// hidden, reference, d_hidden [T, d] bf16 or f32; table [V, d], weights, values [T] f32; ids [T] u32. d_hidden may be
// null: then only values are computed.
//
// Bytes per element, in stored elements of T d: 4 with a gradient (h, reference or table, d_hidden read and written),
// 2 without; a table row is f32. Launch: a block of 32 to 256 threads a token. Shared memory: 512 bytes of scratch, then
// what the gradient reads again: the f32 difference, or the f32 direction and h as stored (a thread reads back only what
// it wrote). Registers: at most 40. Width 1 where columns or pointers do not allow vectors.
//
// Rejected: a second pass over memory for the gradient; a warp a token (rows of 4,096 columns want more bytes in flight).

#include "sums.cuh"
#include "vectors.cuh"

constexpr int hidden_threads = 256;
constexpr unsigned scratch_bytes = hidden_scratch_bytes;
constexpr float least_norm = 1e-8f;

template <typename T, int width>
__device__ __forceinline__ void distance(const T* __restrict__ hidden, const T* __restrict__ reference,
                                         const float* __restrict__ weights, float* __restrict__ values,
                                         T* __restrict__ d_hidden, uint32_t cols) {
    const SharedFloats<width> difference{reinterpret_cast<float*>(shared_memory() + scratch_bytes), cols / width};
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float squares[1] = {0.0f};
    for (uint32_t column = first; column < cols; column += step) {
        float change[width], other[width];
        load_floats<T, width>(hidden + row + column, change);
        load_floats<T, width>(reference + row + column, other);
#pragma unroll
        for (int k = 0; k < width; k++) {
            change[k] -= other[k];
            squares[0] += change[k] * change[k];
        }
        if (d_hidden != nullptr) difference.store(column / width, change);
    }
    block_sums(squares, reinterpret_cast<float*>(shared_memory()));
    const float value = sqrtf(squares[0]);
    if (threadIdx.x == 0) values[blockIdx.x] = value;
    if (d_hidden == nullptr || value == 0.0f) return;
    const float factor = weights[blockIdx.x] / value;
    for (uint32_t column = first; column < cols; column += step) {
        float gradient[width], change[width];
        load_floats<T, width>(d_hidden + row + column, gradient);
        difference.load(column / width, change);
#pragma unroll
        for (int k = 0; k < width; k++) gradient[k] += factor * change[k];
        store_floats<T, width>(d_hidden + row + column, gradient);
    }
}

template <typename T, int width>
__device__ __forceinline__ void mapping(const T* __restrict__ hidden, const float* __restrict__ table,
                                        const uint32_t* __restrict__ ids, const float* __restrict__ weights,
                                        float* __restrict__ values, T* __restrict__ d_hidden, uint32_t cols) {
    float* memory = reinterpret_cast<float*>(shared_memory() + scratch_bytes);
    const SharedFloats<width> direction{memory, cols / width};
    T* state = reinterpret_cast<T*>(memory + round_up(cols, 4u));
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    const float* source = table + uint64_t(ids[blockIdx.x]) * cols;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (uint32_t column = first; column < cols; column += step) {
        const auto packed = load_packed<T, width>(hidden + row + column);
        float h[width], r[width];
        unpack(packed, h);
        load_floats<float, width>(source + column, r);
#pragma unroll
        for (int k = 0; k < width; k++) {
            sums[0] += h[k] * h[k];
            sums[1] += r[k] * r[k];
            sums[2] += h[k] * r[k];
        }
        if (d_hidden != nullptr) {
            direction.store(column / width, r);
            store_packed<T, width>(state + column, packed);
        }
    }
    block_sums(sums, reinterpret_cast<float*>(shared_memory()));
    const float norm = fmaxf(sqrtf(sums[0]), least_norm), length = fmaxf(sqrtf(sums[1]), least_norm);
    // A product of the norms could leave the range of f32 where the cosine does not.
    const float cosine = sums[2] / norm / length;
    if (threadIdx.x == 0) values[blockIdx.x] = 1.0f - fabsf(cosine);
    if (d_hidden == nullptr) return;
    const float factor = cosine == 0.0f ? 0.0f : -weights[blockIdx.x] * copysignf(1.0f, cosine);
    const float along = factor / norm / length, back = factor * cosine / norm / norm;
    for (uint32_t column = first; column < cols; column += step) {
        float gradient[width], h[width], r[width];
        load_floats<T, width>(d_hidden + row + column, gradient);
        load_floats<T, width>(state + column, h);
        direction.load(column / width, r);
#pragma unroll
        for (int k = 0; k < width; k++) gradient[k] += along * r[k] - back * h[k];
        store_floats<T, width>(d_hidden + row + column, gradient);
    }
}

#define HIDDEN_KERNELS(name, T)                                                                                      \
    TEMPER_KERNEL(representation_distance_##name, hidden_threads, const T* __restrict__ hidden,                      \
                  const T* __restrict__ reference, const float* __restrict__ weights, float* __restrict__ values,    \
                  T* __restrict__ d_hidden, uint32_t cols, uint32_t vectorised) {                                    \
        if (vectorised) {                                                                                            \
            distance<T, 16 / sizeof(T)>(hidden, reference, weights, values, d_hidden, cols);                         \
        } else {                                                                                                     \
            distance<T, 1>(hidden, reference, weights, values, d_hidden, cols);                                      \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(random_mapping_##name, hidden_threads, const T* __restrict__ hidden,                               \
                  const float* __restrict__ table, const uint32_t* __restrict__ ids,                                 \
                  const float* __restrict__ weights, float* __restrict__ values, T* __restrict__ d_hidden,           \
                  uint32_t cols, uint32_t vectorised) {                                                              \
        if (vectorised) {                                                                                            \
            mapping<T, 16 / sizeof(T)>(hidden, table, ids, weights, values, d_hidden, cols);                         \
        } else {                                                                                                     \
            mapping<T, 1>(hidden, table, ids, weights, values, d_hidden, cols);                                      \
        }                                                                                                            \
    }

HIDDEN_KERNELS(bf16, bf16)
HIDDEN_KERNELS(f32, float)
