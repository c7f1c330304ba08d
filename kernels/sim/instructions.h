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

uint32_t cluster_rank();
void synchronize_cluster(Site site);
void set_registers(uint32_t count, bool increase, Site site);

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Site site);
void mbarrier_arrive(uint64_t* barrier, Site site);
void mbarrier_arrive_remote(uint64_t* barrier, uint32_t rank, Site site);
void mbarrier_expect(uint64_t* barrier, uint32_t bytes, Site site);
bool mbarrier_test(uint64_t* barrier, uint32_t parity, Site site);
void mbarrier_wait(uint64_t* barrier, uint32_t parity, Site site);

void fence_proxy_async(Site site);
void tma_load(void* tile, const void* map, uint64_t* barrier, const int* coordinate, int rank, Site site);
void tma_store(const void* map, const void* tile, const int* coordinate, int rank, bool add, Site site);
void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, Site site);
void bulk_store(void* global, const void* shared, uint32_t bytes, bool add, Site site);
void bulk_commit();
void bulk_wait(int pending, bool read_only);

void wgmma_fence(Site site);
void wgmma_commit(Site site);
void wgmma_wait(int pending, Site site);
void wgmma(float* d, uint32_t n, const uint32_t* a_registers, uint64_t a, uint64_t b, bool a_transposed, bool b_transposed,
           bool accumulate, Site site);

}  // namespace simulator
