// The element-wise updates of the optimizers: one launch over the flat parameter buffer.
//
//   optimizer_<rule>_f32    weights [n] f32
//   optimizer_<rule>_bf16   weights [n] bf16 and remainder [n] 16-bit, together exactly one f32:
//                           bits = (weight << 16) + sign-extended remainder
//
//   optimizer_<rule>_bf16_moments   the same weights, and moments [n] bf16, rounded at random
//
// coefficients [9], gradients [n], states [n] f32. Formulas and the meaning of the coefficients: `UpdateRule` in
// src/ops/update.rs. All arithmetic is f32 on the joined weight, so a learning rate that bf16 would swallow is not lost.
// Coefficients come from device memory: a recorded step is replayed with another learning rate.
//
// bf16 moments: a state is read, the step computed in f32 with it, and the new state rounded up or down at random, up
// with the probability that makes it right on average. To the nearest, a second moment with beta2 = 0.999 would not move
// at all: its step is below half the spacing of bf16. The random bits are drawn as `StateRounding` in src/ops/update.rs says: a
// function of seed, draw, step, state and the element's place in the flat buffer. The point z of schedule-free AdamW is
// not a moment and stays f32. A NaN stays one; what is within 2^-8 of the largest f32 may become infinite.
//
// Bytes per element: 12 (gradient read; weight, or weight and remainder, read and written) and 8 for each f32 state: 28
// with two, 20 with one, in both storage forms; and 4 for each bf16 moment: 20 with two, 16 with one. At most 60
// instructions an element (two square roots and a division, without their slow ways), where 28 bytes at 4.3 TB/s leave
// 180; with bf16 moments at most 90 (a block of Philox for four elements), where 20 bytes leave 128.
//
// Launch: blocks of 256 threads, 4 on each multiprocessor, all of them resident, grid-stride over vectors of 4 elements:
// 16 bytes of each f32 array and 8 of each 16-bit one, so that every access of a warp is one contiguous piece in both. 4
// and more operands in flight are 64 bytes a thread. No shared memory. Registers: at most 64, so 1,024 threads and 64 KiB
// in flight on a multiprocessor. Width 1 where a pointer does not allow vectors, or where a vector of bf16 moments would
// not be a group of four that shares a block of Philox.
//
// Rejected: 8 elements a thread (16-byte accesses of the 16-bit arrays, but half of every f32 sector an access);
// a list of tensors (the parameters are one flat buffer); stochastic rounding of bf16 weights (not the f32 result).

#include "philox.cuh"

constexpr int optimizer_threads = 256;
constexpr int resident_blocks = 4;
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

// ---- the rules; c are the coefficients, w, g, s0, s1 one element; FirstState is how s0 is stored among bf16 moments ----

using Coefficients = float[coefficient_count];

__device__ __forceinline__ void moments(float rest1, float beta2, float rest2, float g, float& s0, float& s1) {
    s0 += rest1 * (g - s0);
    s1 = s1 * beta2 + rest2 * g * g;
}

struct Adam {
    static constexpr int states = 2;
    using FirstState = bf16;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        w -= c[4] * w;
        moments(c[0], c[1], c[2], g + c[5] * w, s0, s1);
        w -= c[6] * s0 / (sqrtf(s1) * c[7] + c[3]);
    }
};

struct Sgd {
    static constexpr int states = 1;
    using FirstState = bf16;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float&) {
        g = g + c[2] * w;
        s0 = c[4] != 0.0f ? g : s0 * c[1] + g;
        w -= c[0] * (c[3] != 0.0f ? g + c[1] * s0 : s0);
    }
};

struct Adagrad {
    static constexpr int states = 1;
    using FirstState = bf16;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float&) {
        g = g + c[2] * w;
        s0 += g * g;
        w -= c[0] * g / (sqrtf(s0) + c[1]);
    }
};

struct Adadelta {
    static constexpr int states = 2;
    using FirstState = bf16;
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
    using FirstState = bf16;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        g = g + c[4] * w;
        moments(c[0], c[1], c[2], g, s0, s1);
        w -= (c[6] * g + c[7] * s0) / (sqrtf(s1 * c[5]) + c[3]);
    }
};

struct RAdam {
    static constexpr int states = 2;
    using FirstState = bf16;
    static __device__ __forceinline__ void update(const Coefficients& c, float& w, float g, float& s0, float& s1) {
        moments(c[0], c[1], c[2], g + c[4] * w, s0, s1);
        w -= c[6] == 0.0f ? c[5] * s0 / (sqrtf(s1) + c[3]) : c[6] * s0;
    }
};

struct ScheduleFreeAdamW {
    static constexpr int states = 2;
    using FirstState = float;
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

// ---- how states are stored ----

template <typename Rule>
struct FloatStates {
    float* first;
    float* second;

    template <int width>
    __device__ __forceinline__ void load(uint64_t at, Vector<float, width>& s0, Vector<float, width>& s1) const {
        s0 = load_vector<float, width>(first + at);
        if constexpr (Rule::states == 2) s1 = load_vector<float, width>(second + at);
    }
    template <int width>
    __device__ __forceinline__ void store(uint64_t at, const Vector<float, width>& s0,
                                          const Vector<float, width>& s1) const {
        store_vector(first + at, s0);
        if constexpr (Rule::states == 2) store_vector(second + at, s1);
    }
};

// Random words of this step: word i % 4 of the Philox block (i / 4, step, draw, 9), keyed with the seed, for the element
// with place i; its low 16 bits for the first state, the high ones for the second. 9: `Stream::StateRounding`.
struct Rounding {
    uint32_t seed_low, seed_high, step, draw;

    __device__ __forceinline__ explicit Rounding(const uint32_t* key)
        : seed_low(key[0]), seed_high(key[1]), step(key[2]), draw(key[3]) {}

    __device__ __forceinline__ uint4 block(uint64_t place) const {
        const uint64_t group = place / 4;
        return philox(make_uint4(uint32_t(group), step, draw, 9u << 24 | uint32_t(group >> 32)), seed_low, seed_high);
    }
    // The bits of `width` elements: one, or the four of a group.
    template <int width>
    __device__ __forceinline__ Vector<uint32_t, width> words(uint64_t place) const {
        const uint4 all = block(place);
        if constexpr (width == 4) {
            return {all.x, all.y, all.z, all.w};
        } else {
            const uint32_t i = place % 4;
            return {i == 0 ? all.x : i == 1 ? all.y : i == 2 ? all.z : all.w};
        }
    }
};

// The bf16 above or below `value`, as the 16 random bits say.
__device__ __forceinline__ bf16 rounded_at_random(float value, uint32_t random) {
    return bf16{uint16_t((weight_bits(value) + random) >> 16)};
}

template <typename T, int width>
__device__ __forceinline__ Vector<float, width> load_state(const T* from) {
    const auto stored = load_vector<T, width>(from);
    Vector<float, width> values;
#pragma unroll
    for (int i = 0; i < width; i++) values.value[i] = to_float(stored.value[i]);
    return values;
}

template <int width>
__device__ __forceinline__ void store_state(float* to, const Vector<float, width>& values,
                                            const Vector<uint32_t, width>&, int) {
    store_vector(to, values);
}
template <int width>
__device__ __forceinline__ void store_state(bf16* to, const Vector<float, width>& values,
                                            const Vector<uint32_t, width>& words, int shift) {
    Vector<bf16, width> rounded;
#pragma unroll
    for (int i = 0; i < width; i++) {
        rounded.value[i] = rounded_at_random(values.value[i], words.value[i] >> shift & 0xffffu);
    }
    store_vector(to, rounded);
}

// Moments in bf16; `place` is the place of element 0 in the flat buffer.
template <typename Rule>
struct RoundedStates {
    typename Rule::FirstState* first;
    bf16* second;
    Rounding rounding;
    uint64_t place;

    template <int width>
    __device__ __forceinline__ void load(uint64_t at, Vector<float, width>& s0, Vector<float, width>& s1) const {
        s0 = load_state<typename Rule::FirstState, width>(first + at);
        if constexpr (Rule::states == 2) s1 = load_state<bf16, width>(second + at);
    }
    template <int width>
    __device__ __forceinline__ void store(uint64_t at, const Vector<float, width>& s0,
                                          const Vector<float, width>& s1) const {
        const auto words = rounding.words<width>(place + at);
        store_state(first + at, s0, words, 0);
        if constexpr (Rule::states == 2) store_state(second + at, s1, words, 16);
    }
};

// ---- the loop ----

template <typename Rule, typename Weights, typename States, int width>
__device__ __forceinline__ void update_range(const Coefficients& c, const Weights& weights,
                                             const float* __restrict__ gradients, const States& states, uint64_t begin,
                                             uint64_t end) {
    const uint64_t thread = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (uint64_t at = begin + thread * width; at < end; at += uint64_t(gridDim.x) * blockDim.x * width) {
        auto w = weights.template load<width>(at);
        const auto g = load_vector<float, width>(gradients + at);
        Vector<float, width> s0, s1 = {};
        states.template load<width>(at, s0, s1);
#pragma unroll
        for (int k = 0; k < width; k++) Rule::update(c, w.value[k], g.value[k], s0.value[k], s1.value[k]);
        weights.template store<width>(at, w);
        states.template store<width>(at, s0, s1);
    }
}

template <typename Rule, typename Weights, typename States>
__device__ __forceinline__ void update(const float* __restrict__ coefficients, const Weights& weights,
                                       const float* __restrict__ gradients, const States& states, uint64_t n,
                                       bool vectorised) {
    float c[coefficient_count];
#pragma unroll
    for (int i = 0; i < coefficient_count; i++) c[i] = coefficients[i];
    const uint64_t whole = vectorised ? n / 4 * 4 : 0;
    update_range<Rule, Weights, States, 4>(c, weights, gradients, states, 0, whole);
    update_range<Rule, Weights, States, 1>(c, weights, gradients, states, whole, n);
}

#define OPTIMIZER_KERNELS(name, Rule)                                                                                \
    TEMPER_KERNEL(optimizer_##name##_f32, optimizer_threads, const float* __restrict__ coefficients,                 \
                  float* __restrict__ weights, int16_t*, const float* __restrict__ gradients,                        \
                  float* __restrict__ state0, float* __restrict__ state1, uint64_t n, uint32_t vectorised) {         \
        update<Rule>(coefficients, FloatWeights{weights}, gradients, FloatStates<Rule>{state0, state1}, n,           \
                     vectorised);                                                                                    \
    }                                                                                                                \
    TEMPER_KERNEL(optimizer_##name##_bf16, optimizer_threads, const float* __restrict__ coefficients,                \
                  bf16* __restrict__ weights, int16_t* __restrict__ remainder, const float* __restrict__ gradients,  \
                  float* __restrict__ state0, float* __restrict__ state1, uint64_t n, uint32_t vectorised) {         \
        update<Rule>(coefficients, SplitWeights{weights, remainder}, gradients, FloatStates<Rule>{state0, state1},   \
                     n, vectorised);                                                                                 \
    }                                                                                                                \
    TEMPER_KERNEL_RESIDENT(optimizer_##name##_bf16_moments, optimizer_threads, resident_blocks,                      \
                           const float* __restrict__ coefficients, bf16* __restrict__ weights,                       \
                           int16_t* __restrict__ remainder, const float* __restrict__ gradients,                     \
                           Rule::FirstState* __restrict__ state0, bf16* __restrict__ state1, uint64_t n,             \
                           uint32_t vectorised, const uint32_t* __restrict__ key, uint64_t place) {                  \
        const RoundedStates<Rule> states{state0, state1, Rounding(key), place};                                      \
        update<Rule>(coefficients, SplitWeights{weights, remainder}, gradients, states, n, vectorised);              \
    }

OPTIMIZER_KERNELS(adam, Adam)
OPTIMIZER_KERNELS(sgd, Sgd)
OPTIMIZER_KERNELS(adagrad, Adagrad)
OPTIMIZER_KERNELS(adadelta, Adadelta)
OPTIMIZER_KERNELS(nadam, NAdam)
OPTIMIZER_KERNELS(radam, RAdam)
OPTIMIZER_KERNELS(schedule_free_adamw, ScheduleFreeAdamW)
