// Rows of bf16 or f32 as numbers: vectors that stay whole registers from the load to the store.
//
// A Vector<bf16, 8> is eight 16-bit registers to the compiler once its elements are touched, each extracted, converted
// and inserted alone. Here bf16 travels in pairs: one conversion instruction for two elements, and every access of
// global or shared memory is one instruction.
#pragma once

#include "common.cuh"

// How n elements of type T are held: pairs of bf16 in 32-bit words, everything else as it is.
template <typename T, int n>
struct Held {
    using Element = T;
    static constexpr int count = n;
};
template <int n>
struct Held<bf16, n> {
    static_assert(n % 2 == 0, "pairs, or one");
    using Element = uint32_t;
    static constexpr int count = n / 2;
};
template <>
struct Held<bf16, 1> {
    using Element = bf16;
    static constexpr int count = 1;
};
template <typename T, int n>
using Packed = Vector<typename Held<T, n>::Element, Held<T, n>::count>;

template <typename T, int n>
__device__ __forceinline__ Packed<T, n> load_packed(const T* address TEMPER_SITE) {
    using H = Held<T, n>;
    const auto* source = reinterpret_cast<const typename H::Element*>(address);
    return load_vector<typename H::Element, H::count>(source TEMPER_PASS_SITE);
}

template <typename T, int n>
__device__ __forceinline__ void store_packed(T* address, const Packed<T, n>& packed TEMPER_SITE) {
    store_vector(reinterpret_cast<typename Held<T, n>::Element*>(address), packed TEMPER_PASS_SITE);
}

template <int n>
__device__ __forceinline__ void unpack(const Vector<float, n>& packed, float (&values)[n]) {
#pragma unroll
    for (int i = 0; i < n; i++) values[i] = packed.value[i];
}
template <int n, int twice>
__device__ __forceinline__ void unpack(const Vector<uint32_t, n>& packed, float (&values)[twice]) {
    static_assert(twice == 2 * n, "two numbers in a word");
#pragma unroll
    for (int i = 0; i < n; i++) {
        values[2 * i] = low_float(packed.value[i]);
        values[2 * i + 1] = high_float(packed.value[i]);
    }
}
__device__ __forceinline__ void unpack(const Vector<bf16, 1>& packed, float (&values)[1]) {
    values[0] = to_float(packed.value[0]);
}

// Rounded to T.
template <typename T, int n>
__device__ __forceinline__ Packed<T, n> pack(const float (&values)[n]) {
    Packed<T, n> packed;
#pragma unroll
    for (int i = 0; i < Held<T, n>::count; i++) {
        if constexpr (Held<T, n>::count == n) {
            packed.value[i] = from_float<T>(values[i]);
        } else {
            packed.value[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
        }
    }
    return packed;
}

// n elements as f32; 8 f32 are two accesses.
template <typename T, int n>
__device__ __forceinline__ void load_floats(const T* address, float (&values)[n] TEMPER_SITE) {
    if constexpr (sizeof(T) * n <= 16) {
        unpack(load_packed<T, n>(address TEMPER_PASS_SITE), values);
    } else {
        constexpr int half = n / 2;
        float low[half], high[half];
        load_floats<T, half>(address, low TEMPER_PASS_SITE);
        load_floats<T, half>(address + half, high TEMPER_PASS_SITE);
#pragma unroll
        for (int i = 0; i < half; i++) {
            values[i] = low[i];
            values[half + i] = high[i];
        }
    }
}

// n numbers, rounded to T.
template <typename T, int n>
__device__ __forceinline__ void store_floats(T* address, const float (&values)[n] TEMPER_SITE) {
    if constexpr (sizeof(T) * n <= 16) {
        store_packed<T, n>(address, pack<T, n>(values) TEMPER_PASS_SITE);
    } else {
        constexpr int half = n / 2;
        float low[half], high[half];
#pragma unroll
        for (int i = 0; i < half; i++) {
            low[i] = values[i];
            high[i] = values[half + i];
        }
        store_floats<T, half>(address, low TEMPER_PASS_SITE);
        store_floats<T, half>(address + half, high TEMPER_PASS_SITE);
    }
}

// `values` of a thread in shared memory, `width` for each of the vectors of a row, so that the lanes of a warp touch
// neighbouring 16 bytes: with 8 f32 a thread side by side, every access would meet its banks twice.
template <int width>
struct SharedFloats {
    static constexpr int part = width < 4 ? width : 4;
    float* memory;
    uint32_t vectors;

    __device__ __forceinline__ void load(uint32_t vector, float (&values)[width] TEMPER_SITE) const {
#pragma unroll
        for (int i = 0; i < width; i += part) {
            const auto loaded = load_vector<float, part>(place(vector, i) TEMPER_PASS_SITE);
#pragma unroll
            for (int k = 0; k < part; k++) values[i + k] = loaded.value[k];
        }
    }
    __device__ __forceinline__ void store(uint32_t vector, const float (&values)[width] TEMPER_SITE) const {
#pragma unroll
        for (int i = 0; i < width; i += part) {
            Vector<float, part> stored;
#pragma unroll
            for (int k = 0; k < part; k++) stored.value[k] = values[i + k];
            store_vector(place(vector, i), stored TEMPER_PASS_SITE);
        }
    }

  private:
    __device__ __forceinline__ float* place(uint32_t vector, int i) const { return memory + (i * vectors + vector * part); }
};
