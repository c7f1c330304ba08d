// The element-wise updates of the optimizers: one launch over the flat parameter buffer.
//
//   optimizer_<rule>_f32    weights [n] f32
//   optimizer_<rule>_bf16   weights [n] bf16 and remainder [n] 16-bit, together exactly one f32:
//                           bits = (weight << 16) + sign-extended remainder
//
// coefficients [9], gradients [n], states [n] f32. Formulas and the meaning of the coefficients: `UpdateRule` in
// src/ops/update.rs. All arithmetic is f32 on the joined weight, so a learning rate that bf16 would swallow is not lost.
// Coefficients come from device memory: a recorded step is replayed with another learning rate.
//
// Bytes per element: 12 (gradient read; weight, or weight and remainder, read and written) and 8 for each state: 28 with
// two, 20 with one, in both storage forms. At most about 70 instructions an element (two square roots and a division),
// where 28 bytes at 4.3 TB/s leave 180.
//
// Launch: blocks of 256 threads, 4 on each multiprocessor, all of them resident, grid-stride over vectors of 4 elements: 16 bytes of each f32 array and 8 of each 16-bit one, so that every access of a warp is one
// contiguous piece in both. 4 and more operands in flight are 64 bytes a thread. No shared memory. Registers: at most
// 64, so 1,024 threads and 64 KiB in flight on a multiprocessor. Width 1 where a pointer does not allow vectors.
//
// Rejected: 8 elements a thread (16-byte accesses of the 16-bit arrays, but half of every f32 sector an access);
// a list of tensors (the parameters are one flat buffer); stochastic rounding of bf16 weights (not the f32 result).

#include "common.cuh"

constexpr int optimizer_threads = 256;
constexpr int coefficient_count = 9;

// ---- how weights are stored ----

struct FloatWeights {
    float* weights;

    template <int width>
    __device__ __forceinline__ Vector<float, width> load(uint64_t at) const {
        return load_vector<float, width>(weights + at);
    }
    template <int width>
    __device__ __forceinline__ void store(uint64_t at, const Vector<float, width>& values) const {
        store_vector(weights + at, values);
    }
};

// The upper 16 bits as bf16, nearest and ties away from zero, and what that leaves over below it; a NaN becomes the one
// NaN without remainder, because rounding up its bits could leave the range of NaNs.
__device__ __forceinline__ uint32_t weight_bits(float value) { return value != value ? 0x7fc00000u : __float_as_uint(value); }

// Two elements at a time, in words: 16-bit registers would be extracted and inserted one by one.
struct SplitWeights {
    bf16* weights;
    int16_t* remainder;

    template <int width>
    __device__ __forceinline__ Vector<float, width> load(uint64_t at) const {
        Vector<float, width> values;
        if constexpr (width == 1) {
            const uint32_t high = uint32_t(weights[at].bits) << 16;
            values.value[0] = __uint_as_float(high + uint32_t(int32_t(remainder[at])));
        } else {
            const auto high = load_vector<uint32_t, width / 2>(reinterpret_cast<const uint32_t*>(weights + at));
            const auto low = load_vector<uint32_t, width / 2>(reinterpret_cast<const uint32_t*>(remainder + at));
#pragma unroll
            for (int i = 0; i < width / 2; i++) {
                const uint32_t first = uint32_t(int32_t(int16_t(low.value[i])));
                const uint32_t second = uint32_t(int32_t(low.value[i]) >> 16);
                values.value[2 * i] = __uint_as_float((high.value[i] << 16) + first);
                values.value[2 * i + 1] = __uint_as_float((high.value[i] & 0xffff0000u) + second);
            }
        }
        return values;
    }
    template <int width>
    __device__ __forceinline__ void store(uint64_t at, const Vector<float, width>& values) const {
        if constexpr (width == 1) {
            const uint32_t bits = weight_bits(values.value[0]);
            weights[at].bits = uint16_t((bits + 0x8000u) >> 16);
            remainder[at] = int16_t(uint16_t(bits));
        } else {
            Vector<uint32_t, width / 2> high, low;
#pragma unroll
            for (int i = 0; i < width / 2; i++) {
                const uint32_t first = weight_bits(values.value[2 * i]), second = weight_bits(values.value[2 * i + 1]);
                high.value[i] = (first + 0x8000u) >> 16 | ((second + 0x8000u) & 0xffff0000u);
                low.value[i] = (first & 0xffffu) | second << 16;
            }
            store_vector(reinterpret_cast<uint32_t*>(weights + at), high);
            store_vector(reinterpret_cast<uint32_t*>(remainder + at), low);
        }
    }
};

// ---- the rules; c are the coefficients, w, g, s0, s1 one element ----

using Coefficients = float[coefficient_count];

__device__ __forceinline__ void moments(float rest1, float beta2, float rest2, float g, float& s0, float& s1) {
    s0 += rest1 * (g - s0);
    s1 = s1 * beta2 + rest2 * g * g;
}

struct Adam {
    static constexpr int states = 2;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        w -= c[4] * w;
        moments(c[0], c[1], c[2], g + c[5] * w, s0, s1);
        w -= c[6] * s0 / (sqrtf(s1) * c[7] + c[3]);
    }
};

struct Sgd {
    static constexpr int states = 1;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float&) {
        g = g + c[2] * w;
        s0 = c[4] != 0.0f ? g : s0 * c[1] + g;
        w -= c[0] * (c[3] != 0.0f ? g + c[1] * s0 : s0);
    }
};

struct Adagrad {
    static constexpr int states = 1;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float&) {
        g = g + c[2] * w;
        s0 += g * g;
        w -= c[0] * g / (sqrtf(s0) + c[1]);
    }
};

struct Adadelta {
    static constexpr int states = 2;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        g = g + c[4] * w;
        s0 = s0 * c[1] + c[2] * g * g;
        const float u = sqrtf(s1 + c[3]) / sqrtf(s0 + c[3]) * g;
        s1 = s1 * c[1] + c[2] * u * u;
        w -= c[0] * u;
    }
};

struct NAdam {
    static constexpr int states = 2;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        g = g + c[4] * w;
        moments(c[0], c[1], c[2], g, s0, s1);
        w -= (c[6] * g + c[7] * s0) / (sqrtf(s1 * c[5]) + c[3]);
    }
};

struct RAdam {
    static constexpr int states = 2;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        moments(c[0], c[1], c[2], g + c[4] * w, s0, s1);
        w -= c[6] == 0.0f ? c[5] * s0 / (sqrtf(s1) + c[3]) : c[6] * s0;
    }
};

struct ScheduleFreeAdamW {
    static constexpr int states = 2;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& z, float& v) {
        const float start = c[8] != 0.0f ? w : z;
        v = v * c[0] + c[1] * g * g;
        const float n = g / (sqrtf(v * c[7]) + c[2]) + c[3] * w;
        const float way = start - w;
        // Two forms, as PyTorch's lerp: each is exact at its end.
        const float between = c[4] < 0.5f ? w + c[4] * way : start - (1.0f - c[4]) * way;
        w = between + c[6] * n;
        z = start - c[5] * n;
    }
};

// ---- the loop ----

template <typename Rule, typename Weights, int width>
__device__ __forceinline__ void update_range(const Coefficients& c, const Weights& weights,
                                             const float* __restrict__ gradients, float* __restrict__ state0,
                                             float* __restrict__ state1, uint64_t begin, uint64_t end) {
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t at = begin + thread * width; at < end; at += uint64_t(gridDim.x) * blockDim.x * width) {
        auto w = weights.template load<width>(at);
        const auto g = load_vector<float, width>(gradients + at);
        auto s0 = load_vector<float, width>(state0 + at);
        Vector<float, width> s1 = {};
        if constexpr (Rule::states == 2) s1 = load_vector<float, width>(state1 + at);
#pragma unroll
        for (int k = 0; k < width; k++) Rule::update(c, w.value[k], g.value[k], s0.value[k], s1.value[k]);
        weights.template store<width>(at, w);
        store_vector(state0 + at, s0);
        if constexpr (Rule::states == 2) store_vector(state1 + at, s1);
    }
}

template <typename Rule, typename Weights>
__device__ __forceinline__ void update(const float* __restrict__ coefficients, const Weights& weights,
                                       const float* __restrict__ gradients, float* __restrict__ state0,
                                       float* __restrict__ state1, uint64_t n, bool vectorised) {
    float c[coefficient_count];
#pragma unroll
    for (int i = 0; i < coefficient_count; i++) c[i] = coefficients[i];
    const uint64_t whole = vectorised ? n / 4 * 4 : 0;
    update_range<Rule, Weights, 4>(c, weights, gradients, state0, state1, 0, whole);
    update_range<Rule, Weights, 1>(c, weights, gradients, state0, state1, whole, n);
}

#define OPTIMIZER_KERNELS(name, Rule)                                                                                \
    TEMPER_KERNEL(optimizer_##name##_f32, optimizer_threads, const float* __restrict__ coefficients,                 \
                  float* __restrict__ weights, int16_t*, const float* __restrict__ gradients,                        \
                  float* __restrict__ state0, float* __restrict__ state1, uint64_t n, uint32_t vectorised) {         \
        update<Rule>(coefficients, FloatWeights{weights}, gradients, state0, state1, n, vectorised);                 \
    }                                                                                                                \
    TEMPER_KERNEL(optimizer_##name##_bf16, optimizer_threads, const float* __restrict__ coefficients,                \
                  bf16* __restrict__ weights, int16_t* __restrict__ remainder, const float* __restrict__ gradients,  \
                  float* __restrict__ state0, float* __restrict__ state1, uint64_t n, uint32_t vectorised) {         \
        update<Rule>(coefficients, SplitWeights{weights, remainder}, gradients, state0, state1, n, vectorised);      \
    }

OPTIMIZER_KERNELS(adam, Adam)
OPTIMIZER_KERNELS(sgd, Sgd)
OPTIMIZER_KERNELS(adagrad, Adagrad)
OPTIMIZER_KERNELS(adadelta, Adadelta)
OPTIMIZER_KERNELS(nadam, NAdam)
OPTIMIZER_KERNELS(radam, RAdam)
OPTIMIZER_KERNELS(schedule_free_adamw, ScheduleFreeAdamW)
