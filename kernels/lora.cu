// Dropout of the adapters' input for the path that works by whole matrix products.
#include "common.cuh"

namespace {

// One block of Philox 4x32-10: the same words as `random::philox` on the host.
__device__ __forceinline__ uint4 philox(uint64_t block, uint32_t site, uint32_t step, uint32_t key0, uint32_t key1) {
    uint32_t c0 = uint32_t(block), c1 = uint32_t(block >> 32), c2 = site, c3 = step;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t a_high = __umulhi(c0, 0xD2511F53u), a_low = c0 * 0xD2511F53u;
        const uint32_t b_high = __umulhi(c2, 0xCD9E8D57u), b_low = c2 * 0xCD9E8D57u;
        c0 = b_high ^ c1 ^ key0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ key1;
        c3 = a_low;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

struct Dropout {
    uint32_t key0, key1, site, step;
    uint32_t limit;

    // Bit i: whether element 4 block + i is kept.
    __device__ __forceinline__ uint32_t kept(uint64_t block) const {
        const uint4 words = philox(block, site, step, key0, key1);
        return uint32_t(words.x >= limit) | uint32_t(words.y >= limit) << 1 | uint32_t(words.z >= limit) << 2 |
               uint32_t(words.w >= limit) << 3;
    }
};

constexpr int threads = 256;

// out = x where it is kept, else 0. Not scaled: the product's alpha does that, so that nothing is rounded twice.
template <typename T>
__device__ void drop(const T* x, T* out, uint64_t elements, Dropout dropout) {
    const uint64_t block = uint64_t(blockIdx.x) * threads + threadIdx.x;
    if (block * 4 >= elements) return;
    const uint32_t kept = dropout.kept(block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t at = block * 4 + i;
        if (at < elements) out[at] = kept >> i & 1 ? x[at] : T{};
    }
}

// out += scale * x where it is kept.
template <typename T>
__device__ void add_kept(const float* x, T* out, uint64_t elements, float scale, Dropout dropout) {
    const uint64_t block = uint64_t(blockIdx.x) * threads + threadIdx.x;
    if (block * 4 >= elements) return;
    const uint32_t kept = dropout.kept(block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t at = block * 4 + i;
        if (at < elements && kept >> i & 1) out[at] = from_float<T>(to_float(out[at]) + scale * x[at]);
    }
}

}  // namespace

#define TEMPER_LORA_DROPOUT(dtype, T)                                                                                 \
    TEMPER_KERNEL(lora_drop_##dtype, 256, const T* x, T* out, uint64_t elements, uint32_t key0, uint32_t key1,        \
                  uint32_t site, uint32_t step, uint32_t limit) {                                                     \
        drop<T>(x, out, elements, Dropout{key0, key1, site, step, limit});                                            \
    }                                                                                                                 \
    TEMPER_KERNEL(lora_add_kept_##dtype, 256, const float* x, T* out, uint64_t elements, float scale, uint32_t key0,  \
                  uint32_t key1, uint32_t site, uint32_t step, uint32_t limit) {                                      \
        add_kept<T>(x, out, elements, scale, Dropout{key0, key1, site, step, limit});                                 \
    }

TEMPER_LORA_DROPOUT(bf16, bf16)
TEMPER_LORA_DROPOUT(f32, float)
