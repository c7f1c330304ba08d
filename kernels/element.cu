// Element-wise kernels and flat reductions.
//
//   swiglu_forward_*      h = silu(gate) up                                     gate_up [T, 2F] = [gate | up], h [T, F]
//   swiglu_backward_*     d_up = d_h silu(gate), d_gate = d_h up s (1 + gate (1 - s)), s = sigmoid(gate)
//   weighted_sum_f32      out[0] += scale sum a b                               a, b [n] f32, out [1] f32
//   squared_norm_f32      partial[block] = sum x^2 in f64; the host adds the partial sums in order of the blocks
//   sign_mask_f32         a = decay a + fresh g; g = a + scale m where m has the sign of a, elsewhere a     a, g, m [n] f32
//
// Bytes per element, the floor (FLOP do not count here): swiglu forward 3 and backward 5 stored elements of h;
// weighted_sum 8; squared_norm 4; sign_mask 20.
//
// Launch shapes. squared_norm and sign_mask: blocks of 256 threads, 8 on each multiprocessor, grid-stride: a full multiprocessor has
// 2,048 threads with 64 bytes in flight each. swiglu: 32 to 256 threads,
// block = row * chunks + chunk, one vector of 16 bytes per operand and thread, so that a row costs one integer division
// a block and none an element. weighted_sum: one block of 1,024, since its operands are per-token columns.
// Shared memory: only the reductions, sums_scratch<double, 1> = 256 bytes. Registers: at most 32 (full occupancy).
// Where an operand is not aligned to 16 bytes (or F no multiple of the vector), the same template runs with width 1.
//
// Rejected: f32 partial sums in squared_norm, because squares beyond 1e19 overflow, and its result must be finite when
// all x are; the f64 conversions cost a third of the conversion rate at full bandwidth. Atomics, because order shows.
// The bf16 sigmoid uses the approximate exponential and division (errors near 2^-21), the f32 one the exact functions:
// at 3 stored elements of traffic each, the exact ones would not hide behind bf16 memory traffic.

#include "sums.cuh"
#include "vectors.cuh"

constexpr int flat_threads = 256;
constexpr int row_threads = 256;
constexpr int sum_threads = 1024;

__device__ __forceinline__ uint64_t flat_index() { return uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ uint64_t flat_stride() { return uint64_t(gridDim.x) * blockDim.x; }

// ---- SwiGLU ----

template <typename T>
__device__ __forceinline__ float sigmoid(float x);
template <>
__device__ __forceinline__ float sigmoid<float>(float x) {
    return 1.0f / (1.0f + expf(-x));
}
template <>
__device__ __forceinline__ float sigmoid<bf16>(float x) {
    // The limit keeps the divisor below 2^126, where the approximate division ends; the sigmoid is 0 to bf16 from there.
    return __fdividef(1.0f, 1.0f + exp2_approximate(fminf(x * -1.442695041f, 125.0f)));
}

// The row of this block and the first column of this thread.
struct Place {
    uint64_t row;
    uint32_t column;
};

__device__ __forceinline__ Place swiglu_place(uint32_t chunks, int width) {
    const uint32_t row = blockIdx.x / chunks, chunk = blockIdx.x - row * chunks;
    return {row, (chunk * blockDim.x + threadIdx.x) * width};
}

template <typename T, int width>
__device__ __forceinline__ void swiglu_forward(const T* __restrict__ gate_up, T* __restrict__ h, uint32_t cols,
                                               uint32_t chunks) {
    const Place place = swiglu_place(chunks, width);
    if (place.column >= cols) return;
    const T* source = gate_up + place.row * 2 * cols + place.column;
    float gate[width], up[width], out[width];
    load_floats<T, width>(source, gate);
    load_floats<T, width>(source + cols, up);
#pragma unroll
    for (int k = 0; k < width; k++) out[k] = gate[k] * sigmoid<T>(gate[k]) * up[k];
    store_floats<T, width>(h + place.row * cols + place.column, out);
}

template <typename T, int width>
__device__ __forceinline__ void swiglu_backward(const T* __restrict__ d_h, const T* __restrict__ gate_up,
                                                T* __restrict__ d_gate_up, uint32_t cols, uint32_t chunks) {
    const Place place = swiglu_place(chunks, width);
    if (place.column >= cols) return;
    const uint64_t at = place.row * 2 * cols + place.column;
    float gate[width], up[width], d[width];
    load_floats<T, width>(gate_up + at, gate);
    load_floats<T, width>(gate_up + at + cols, up);
    load_floats<T, width>(d_h + place.row * cols + place.column, d);
#pragma unroll
    for (int k = 0; k < width; k++) {
        const float s = sigmoid<T>(gate[k]), silu = gate[k] * s;
        gate[k] = d[k] * up[k] * (s + silu * (1.0f - s));
        up[k] = d[k] * silu;
    }
    store_floats<T, width>(d_gate_up + at, gate);
    store_floats<T, width>(d_gate_up + at + cols, up);
}

#define SWIGLU_KERNELS(name, T)                                                                                      \
    TEMPER_KERNEL(swiglu_forward_##name, row_threads, const T* __restrict__ gate_up, T* __restrict__ h, uint32_t cols,\
                  uint32_t chunks, uint32_t vectorised) {                                                            \
        if (vectorised) {                                                                                            \
            swiglu_forward<T, 16 / sizeof(T)>(gate_up, h, cols, chunks);                                             \
        } else {                                                                                                     \
            swiglu_forward<T, 1>(gate_up, h, cols, chunks);                                                          \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(swiglu_backward_##name, row_threads, const T* __restrict__ d_h, const T* __restrict__ gate_up,     \
                  T* __restrict__ d_gate_up, uint32_t cols, uint32_t chunks, uint32_t vectorised) {                  \
        if (vectorised) {                                                                                            \
            swiglu_backward<T, 16 / sizeof(T)>(d_h, gate_up, d_gate_up, cols, chunks);                               \
        } else {                                                                                                     \
            swiglu_backward<T, 1>(d_h, gate_up, d_gate_up, cols, chunks);                                            \
        }                                                                                                            \
    }

SWIGLU_KERNELS(bf16, bf16)
SWIGLU_KERNELS(f32, float)

// ---- reductions ----

TEMPER_KERNEL(weighted_sum_f32, sum_threads, const float* a, const float* b, float scale, float* out, uint64_t n) {
    double sum[1] = {0.0};
    for (uint64_t i = threadIdx.x; i < n; i += blockDim.x) sum[0] += double(a[i]) * double(b[i]);
    block_sums(sum, reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0) out[0] += float(double(scale) * sum[0]);
}

template <int width>
__device__ __forceinline__ double square(const Vector<float, width>& x) {
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < width; k++) sum += double(x.value[k]) * double(x.value[k]);
    return sum;
}

template <int width>
__device__ __forceinline__ double squares(const float* __restrict__ x, uint64_t n) {
    const uint64_t vectors = n / width, stride = flat_stride();
    double sum = 0.0;
    uint64_t i = flat_index();
    for (; i + 3 * stride < vectors; i += 4 * stride) {
        Vector<float, width> loaded[4];
#pragma unroll
        for (int k = 0; k < 4; k++) loaded[k] = load_vector<float, width>(x + (i + k * stride) * width);
#pragma unroll
        for (int k = 0; k < 4; k++) sum += square<width>(loaded[k]);
    }
    for (; i < vectors; i += stride) sum += square<width>(load_vector<float, width>(x + i * width));
    for (i = vectors * width + flat_index(); i < n; i += stride) sum += double(x[i]) * double(x[i]);
    return sum;
}

TEMPER_KERNEL(squared_norm_f32, flat_threads, const float* __restrict__ x, double* __restrict__ partial, uint64_t n,
              uint32_t vectorised) {
    double sum[1] = {vectorised ? squares<4>(x, n) : squares<1>(x, n)};
    block_sums(sum, reinterpret_cast<double*>(shared_memory()));
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

// ---- combinations of gradients ----

template <int width>
__device__ __forceinline__ void sign_mask(const float* __restrict__ masked, float* __restrict__ accumulated,
                                          float* __restrict__ gradient, float scale, float decay, float fresh,
                                          uint64_t place) {
    const auto m = load_vector<float, width>(masked + place);
    auto a = load_vector<float, width>(accumulated + place);
    auto g = load_vector<float, width>(gradient + place);
#pragma unroll
    for (int k = 0; k < width; k++) {
        // Rounded where the oracle rounds: a sign that turns on the last bit is an element more or less.
        a.value[k] = fmaf(decay, a.value[k], fresh * g.value[k]);
        // What is not a number is apart from nothing, and stays.
        const bool apart = (a.value[k] <= 0.0f && m.value[k] >= 0.0f) || (a.value[k] >= 0.0f && m.value[k] <= 0.0f);
        g.value[k] = apart ? a.value[k] : fmaf(scale, m.value[k], a.value[k]);
    }
    store_vector(accumulated + place, a);
    store_vector(gradient + place, g);
}

TEMPER_KERNEL(sign_mask_f32, flat_threads, const float* __restrict__ masked, float* __restrict__ accumulated,
              float* __restrict__ gradient, float scale, float decay, float fresh, uint64_t n, uint32_t vectorised) {
    const uint64_t vectors = vectorised ? n / 4 : 0;
    for (uint64_t i = flat_index(); i < vectors; i += flat_stride()) {
        sign_mask<4>(masked, accumulated, gradient, scale, decay, fresh, 4 * i);
    }
    for (uint64_t i = 4 * vectors + flat_index(); i < n; i += flat_stride()) {
        sign_mask<1>(masked, accumulated, gradient, scale, decay, fresh, i);
    }
}
