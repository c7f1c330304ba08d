// Losses on hidden states, with their gradients.
//
//   representation_distance_*   value_t = |h_t - reference_t|; d_hidden_t += weight_t (h_t - reference_t) / value_t,
//                               and nothing where value_t = 0; squared: value_t = |h_t - reference_t|^2, d_hidden_t +=
//                               2 weight_t (h_t - reference_t)
//   cosine_margin_*             value_t = max(0, cos(h_t, away_t) + margin); d_hidden_t += weight_t d value_t / d h_t, with
//                               d cos(h, r) / d h = r / (n m) - cos(h, r) h / n^2, and nothing where value_t = 0
//   cosine_margin_two_*         the same of max(0, cos(h_t, away_t) - cos(h_t, toward_t) + margin)
//   random_mapping_*            value_t = 1 - |c|, c = h_t r / (n m), r = table[ids[t]], n = max(|h_t|, 1e-8),
//                               m = max(|r|, 1e-8); d_hidden_t += -weight_t sign(c) (r / (n m) - c h_t / n^2)
//
// hidden, d_hidden [T, d], reference, away, toward [T, d] or [1, d] (a stride of 0) bf16 or f32; table [V, d], weights,
// values [T] f32; ids [T] u32. d_hidden may be null: then only values are computed.
//
// Bytes per element, in stored elements of T d: 4 with a gradient (h, reference, away or table, d_hidden read and written),
// 2 without, one more with toward; a table row is f32. Launch: a block of 32 to 256 threads a token. Shared memory: 512
// bytes of scratch (640 for cosine_margin), then what the gradient reads again: the f32 difference, the f32 direction and h
// as stored, or h, away and toward as stored (a thread reads back only what it wrote). Registers: at most 40. Width 1 where
// columns or pointers do not allow vectors.
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
                                         T* __restrict__ d_hidden, uint32_t cols, uint32_t stride, uint32_t squared) {
    const SharedFloats<width> difference{reinterpret_cast<float*>(shared_memory() + scratch_bytes), cols / width};
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    reference += uint64_t(blockIdx.x) * stride;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    float squares[1] = {0.0f};
    for (uint32_t column = first; column < cols; column += step) {
        float change[width], other[width];
        load_floats<T, width>(hidden + row + column, change);
        load_floats<T, width>(reference + column, other);
#pragma unroll
        for (int k = 0; k < width; k++) {
            change[k] -= other[k];
            squares[0] += change[k] * change[k];
        }
        if (d_hidden != nullptr) difference.store(column / width, change);
    }
    block_sums(squares, reinterpret_cast<float*>(shared_memory()));
    const float value = squared ? squares[0] : sqrtf(squares[0]);
    if (threadIdx.x == 0) values[blockIdx.x] = value;
    if (d_hidden == nullptr || value == 0.0f) return;
    const float factor = squared ? 2.0f * weights[blockIdx.x] : weights[blockIdx.x] / value;
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

// Adds a row's part to |r|^2 and h r, and keeps it where it is wanted again.
template <typename T, int width>
__device__ __forceinline__ void compare(const T* __restrict__ row, T* __restrict__ kept, bool keep, const float (&h)[width],
                                        float& square, float& product) {
    const auto packed = load_packed<T, width>(row);
    float r[width];
    unpack(packed, r);
#pragma unroll
    for (int k = 0; k < width; k++) {
        square += r[k] * r[k];
        product += h[k] * r[k];
    }
    if (keep) store_packed<T, width>(kept, packed);
}

template <typename T, int width, bool two>
__device__ __forceinline__ void cosines(const T* __restrict__ hidden, const T* __restrict__ away,
                                        const T* __restrict__ toward, const float* __restrict__ weights,
                                        float* __restrict__ values, T* __restrict__ d_hidden, uint32_t cols,
                                        uint32_t away_stride, uint32_t toward_stride, float margin) {
    T* const state = reinterpret_cast<T*>(shared_memory() + cosine_scratch_bytes);
    T* const from = state + cols;
    T* const to = from + cols;
    const uint64_t row = uint64_t(blockIdx.x) * cols;
    away += uint64_t(blockIdx.x) * away_stride;
    if constexpr (two) toward += uint64_t(blockIdx.x) * toward_stride;
    const uint32_t first = threadIdx.x * width, step = blockDim.x * width;
    // h h, away away, h away, toward toward, h toward.
    float sums[two ? 5 : 3] = {};
    for (uint32_t column = first; column < cols; column += step) {
        const auto packed = load_packed<T, width>(hidden + row + column);
        float h[width];
        unpack(packed, h);
#pragma unroll
        for (int k = 0; k < width; k++) sums[0] += h[k] * h[k];
        const bool keep = d_hidden != nullptr;
        if (keep) store_packed<T, width>(state + column, packed);
        compare<T, width>(away + column, from + column, keep, h, sums[1], sums[2]);
        if constexpr (two) compare<T, width>(toward + column, to + column, keep, h, sums[3], sums[4]);
    }
    block_sums(sums, reinterpret_cast<float*>(shared_memory()));
    const float norm = fmaxf(sqrtf(sums[0]), least_norm);
    const float length = fmaxf(sqrtf(sums[1]), least_norm);
    float difference = sums[2] / norm / length, other_length = 1.0f;
    if constexpr (two) {
        other_length = fmaxf(sqrtf(sums[3]), least_norm);
        difference -= sums[4] / norm / other_length;
    }
    // fmaxf would make 0 of a NaN.
    const float value = difference + margin <= 0.0f ? 0.0f : difference + margin;
    if (threadIdx.x == 0) values[blockIdx.x] = value;
    if (d_hidden == nullptr || value == 0.0f) return;
    const float factor = weights[blockIdx.x];
    const float along = factor / norm / length, back = factor * difference / norm / norm;
    const float along_other = factor / norm / other_length;
    for (uint32_t column = first; column < cols; column += step) {
        float gradient[width], operand[width];
        load_floats<T, width>(d_hidden + row + column, gradient);
        load_floats<T, width>(state + column, operand);
#pragma unroll
        for (int k = 0; k < width; k++) gradient[k] -= back * operand[k];
        load_floats<T, width>(from + column, operand);
#pragma unroll
        for (int k = 0; k < width; k++) gradient[k] += along * operand[k];
        if constexpr (two) {
            load_floats<T, width>(to + column, operand);
#pragma unroll
            for (int k = 0; k < width; k++) gradient[k] -= along_other * operand[k];
        }
        store_floats<T, width>(d_hidden + row + column, gradient);
    }
}

#define HIDDEN_KERNELS(name, T)                                                                                      \
    TEMPER_KERNEL(representation_distance_##name, hidden_threads, const T* __restrict__ hidden,                      \
                  const T* __restrict__ reference, const float* __restrict__ weights, float* __restrict__ values,    \
                  T* __restrict__ d_hidden, uint32_t cols, uint32_t vectorised, uint32_t stride, uint32_t squared) { \
        if (vectorised) {                                                                                            \
            distance<T, 16 / sizeof(T)>(hidden, reference, weights, values, d_hidden, cols, stride, squared);        \
        } else {                                                                                                     \
            distance<T, 1>(hidden, reference, weights, values, d_hidden, cols, stride, squared);                     \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(cosine_margin_##name, hidden_threads, const T* __restrict__ hidden, const T* __restrict__ away,    \
                  const float* __restrict__ weights, float* __restrict__ values, T* __restrict__ d_hidden,           \
                  uint32_t cols, uint32_t vectorised, uint32_t away_stride, float margin) {                          \
        if (vectorised) {                                                                                            \
            cosines<T, 16 / sizeof(T), false>(hidden, away, nullptr, weights, values, d_hidden, cols, away_stride, 0,\
                                              margin);                                                               \
        } else {                                                                                                     \
            cosines<T, 1, false>(hidden, away, nullptr, weights, values, d_hidden, cols, away_stride, 0, margin);    \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(cosine_margin_two_##name, hidden_threads, const T* __restrict__ hidden, const T* __restrict__ away,\
                  const T* __restrict__ toward, const float* __restrict__ weights, float* __restrict__ values,       \
                  T* __restrict__ d_hidden, uint32_t cols, uint32_t vectorised, uint32_t away_stride,                \
                  uint32_t toward_stride, float margin) {                                                            \
        if (vectorised) {                                                                                            \
            cosines<T, 16 / sizeof(T), true>(hidden, away, toward, weights, values, d_hidden, cols, away_stride,     \
                                             toward_stride, margin);                                                 \
        } else {                                                                                                     \
            cosines<T, 1, true>(hidden, away, toward, weights, values, d_hidden, cols, away_stride, toward_stride,   \
                                margin);                                                                             \
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
