// Philox 4x32-10 (Salmon et al., SC 2011): random words as a function of a counter and a key, so that they depend on no
// launch shape. The same words as `random::philox` on the host.
#pragma once

#include "common.cuh"

__device__ __forceinline__ uint4 philox(uint4 counter, uint32_t key0, uint32_t key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t a_high = __umulhi(counter.x, 0xD2511F53u), a_low = counter.x * 0xD2511F53u;
        const uint32_t b_high = __umulhi(counter.z, 0xCD9E8D57u), b_low = counter.z * 0xCD9E8D57u;
        counter = make_uint4(b_high ^ counter.y ^ key0, b_low, a_high ^ counter.w ^ key1, a_low);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}
