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

constexpr int hidden_threads = 256;
constexpr unsigned scratch_bytes = 512;
constexpr float least_norm = 1e-8f;

// Loads and stores `width` f32, in accesses of at most 16 bytes.
template <int width>
__device__ __forceinline__ void load_floats(const float* source, float (&values)[width]) {
    constexpr int part = width < 4 ? width : 4;
#pragma unroll
    for (int i = 0; i < width; i += part) {
        const auto loaded = load_vector<float, part>(source + i);
#pragma unroll
        for (int k = 0; k < part; k++) values[i + k] = loaded.value[k];
    }
}
template <int width>
__device__ __forceinline__ void store_floats(float* target, const float (&values)[width]) {
    constexpr int part = width < 4 ? width : 4;
#pragma unroll
    for (int i = 0; i < width; i += part) {
        Vector<float, part> stored;
#pragma unroll
        for (int k = 0; k < part; k++) stored.value[k] = values[i + k];
        store_vector(target + i, stored);
    }
}

template <typename T, int width>
__device__ __forceinline__ void distance(const T* __restrict__ hidden, const T* __restrict__ reference,
                                         const float* __restrict__ weights, float* __restrict__ values,
                                         T* __restrict__ d_hidden, uint32_t cols) {
    float* difference = reinterpret_cast<float*>(shared_memory() + scratch_bytes);
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float squares[1] = {0.0f};
    for (uint32_t column = first; column < cols; column += step) {
        const auto a = load_vector<T, width>(hidden + row + column), b = load_vector<T, width>(reference + row + column);
        float change[width];
#pragma unroll
        for (int k = 0; k < width; k++) {
            change[k] = to_float(a.value[k]) - to_float(b.value[k]);
            squares[0] += change[k] * change[k];
        }
        if (d_hidden != nullptr) store_floats<width>(difference + column, change);
    }
    block_sums(squares, reinterpret_cast<float*>(shared_memory()));
    const float value = sqrtf(squares[0]);
    if (threadIdx.x == 0) values[blockIdx.x] = value;
    if (d_hidden == nullptr || value == 0.0f) return;
    const float factor = weights[blockIdx.x] / value;
    for (uint32_t column = first; column < cols; column += step) {
        auto gradient = load_vector<T, width>(d_hidden + row + column);
        float change[width];
        load_floats<width>(difference + column, change);
#pragma unroll
        for (int k = 0; k < width; k++) {
            gradient.value[k] = from_float<T>(to_float(gradient.value[k]) + factor * change[k]);
        }
        store_vector(d_hidden + row + column, gradient);
    }
}

template <typename T, int width>
__device__ __forceinline__ void mapping(const T* __restrict__ hidden, const float* __restrict__ table,
                                        const uint32_t* __restrict__ ids, const float* __restrict__ weights,
                                        float* __restrict__ values, T* __restrict__ d_hidden, uint32_t cols) {
    float* direction = reinterpret_cast<float*>(shared_memory() + scratch_bytes);
    T* state = reinterpret_cast<T*>(direction + round_up(cols, 4u));
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    const float* source = table + uint64_t(ids[blockIdx.x]) * cols;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float sums[3] = {0.0f, 0.0f, 0.0f};
    for (uint32_t column = first; column < cols; column += step) {
        const auto h = load_vector<T, width>(hidden + row + column);
        float r[width];
        load_floats<width>(source + column, r);
#pragma unroll
        for (int k = 0; k < width; k++) {
            const float x = to_float(h.value[k]);
            sums[0] += x * x;
            sums[1] += r[k] * r[k];
            sums[2] += x * r[k];
        }
        if (d_hidden != nullptr) {
            store_floats<width>(direction + column, r);
            store_vector(state + column, h);
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
        auto gradient = load_vector<T, width>(d_hidden + row + column);
        const auto h = load_vector<T, width>(state + column);
        float r[width];
        load_floats<width>(direction + column, r);
#pragma unroll
        for (int k = 0; k < width; k++) {
            const float change = along * r[k] - back * to_float(h.value[k]);
            gradient.value[k] = from_float<T>(to_float(gradient.value[k]) + change);
        }
        store_vector(d_hidden + row + column, gradient);
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
