// Host bodies of the instructions in ptx.cuh: what each does is said there, its checks where it is defined.
#pragma once

#include "device.h"

namespace simulator {

uint32_t shared_address(const void* pointer, Site site);

inline uint16_t round_to_bf16(float value) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row, Site site);
void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b, Site site);

void copy_async_16(void* shared, const void* global, bool valid, Site site);
void copy_async_commit(Site site);
void copy_async_wait(int pending, Site site);

}  // namespace simulator
