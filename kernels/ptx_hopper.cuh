// The part of ptx.cuh that only sm_90a has: mbarriers, tile copies by the copy engine, clusters, register reallocation.
// ptx_wgmma.cuh, included at the end, has the matrix products of a warpgroup.
//
// Kernels that use these also get compiled for other architectures, where each of them traps.
#pragma once

#if defined(TEMPER_SIMULATOR)
#define TEMPER_HOPPER_ASM(...) static_cast<void>(0)
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TEMPER_HOPPER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define TEMPER_HOPPER_ASM(...) __trap()
#endif

#ifdef TEMPER_SIMULATOR
#define TEMPER_SIMULATED(...) __VA_ARGS__
#else
#define TEMPER_SIMULATED(...)
#endif

// Describes a tensor in global memory and the tile that one copy moves; encoded by the runtime, passed as a
// `const __grid_constant__ TensorMap` parameter.
struct alignas(64) TensorMap {
    uint64_t words[16];
};

// ---- clusters ----

// The rank of this block in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank = 0;
#ifdef TEMPER_SIMULATOR
    rank = simulator::cluster_rank();
#else
    TEMPER_HOPPER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
}

// Barrier over all threads of the cluster.
__device__ __forceinline__ void cluster_sync(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::synchronize_cluster(site);)
    TEMPER_HOPPER_ASM("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// True in exactly one lane of the warp, which must be whole here.
__device__ __forceinline__ bool elect_one(TEMPER_SITE_ONLY) {
    uint32_t elected = 0;
#ifdef TEMPER_SIMULATOR
    elected = simulator::elect(~0u, site);
#else
    TEMPER_HOPPER_ASM("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
#endif
    return elected != 0;
}

// ---- registers of a warpgroup (n a multiple of 8 from 24 to 256; all four warps call it) ----

template <int n>
__device__ __forceinline__ void registers_decrease(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::set_registers(n, false, site);)
    TEMPER_HOPPER_ASM("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ __forceinline__ void registers_increase(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::set_registers(n, true, site);)
    TEMPER_HOPPER_ASM("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// ---- mbarriers: 8 bytes of shared memory that count arrivals and bytes, phase by phase ----

// Made by one thread, before mbarrier_init_fence and a barrier let others use it. The first phase has parity 0.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::mbarrier_init(barrier, arrivals, site);)
    TEMPER_HOPPER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Lets the copy engine and other blocks of the cluster see the barriers that this thread made.
__device__ __forceinline__ void mbarrier_init_fence() {
    TEMPER_HOPPER_ASM("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::mbarrier_arrive(barrier, site);)
    TEMPER_HOPPER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives at the barrier at the same place in the block `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_remote(uint64_t* barrier, uint32_t rank TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::mbarrier_arrive_remote(barrier, rank, site);)
    TEMPER_HOPPER_ASM(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// Announces that copies will bring `bytes` in this phase, and arrives.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::mbarrier_expect(barrier, bytes, site);)
    TEMPER_SIMULATED(simulator::mbarrier_arrive(barrier, site);)
    TEMPER_HOPPER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                      : "memory");
}

// Announces without arriving.
__device__ __forceinline__ void mbarrier_expect(uint64_t* barrier, uint32_t bytes TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::mbarrier_expect(barrier, bytes, site);)
    TEMPER_HOPPER_ASM("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                      : "memory");
}

// Whether the phase of this parity is complete: the phase before the current one, where parities differ. A fresh barrier
// answers true for parity 1.
__device__ __forceinline__ bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity TEMPER_SITE) {
    uint32_t complete = 0;
#ifdef TEMPER_SIMULATOR
    complete = simulator::mbarrier_test(barrier, parity, site);
#else
    TEMPER_HOPPER_ASM(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(complete)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
#endif
    return complete != 0;
}

// Waits until the phase of this parity is complete.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::mbarrier_wait(barrier, parity, site);
#else
    while (!mbarrier_try_wait(barrier, parity)) {
    }
#endif
}

// ---- the copy engine ----

// Makes what this thread wrote to shared memory by ordinary stores visible to the copy engine and to wgmma.
__device__ __forceinline__ void fence_proxy_async(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::fence_proxy_async(site);)
    TEMPER_HOPPER_ASM("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
    TEMPER_SIMULATED(static_cast<void>(map);)
    TEMPER_HOPPER_ASM("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts the copy of one tile into shared memory; its bytes count towards the barrier. coordinate[0] is the innermost
// and counts elements; a tile may reach over every edge, where zeros are written. One thread calls it:
//   tma_load(tile, &map, &barrier, {column, row});
template <int rank>
__device__ __forceinline__ void tma_load(void* tile, const TensorMap* map, uint64_t* barrier,
                                         const int (&coordinate)[rank] TEMPER_SITE) {
    static_assert(rank >= 2 && rank <= 4, "tiles have 2 to 4 dimensions");
#ifdef TEMPER_SIMULATOR
    simulator::tma_load(tile, map, barrier, coordinate, rank, site);
#else
    if constexpr (rank == 2) {
        TEMPER_HOPPER_ASM(
            "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                shared_address(tile)),
            "l"(map), "r"(shared_address(barrier)), "r"(coordinate[0]), "r"(coordinate[1])
            : "memory");
    } else if constexpr (rank == 3) {
        TEMPER_HOPPER_ASM(
            "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                shared_address(tile)),
            "l"(map), "r"(shared_address(barrier)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2])
            : "memory");
    } else {
        TEMPER_HOPPER_ASM(
            "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
            "[%2];" ::"r"(shared_address(tile)),
            "l"(map), "r"(shared_address(barrier)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2]),
            "r"(coordinate[3])
            : "memory");
    }
#endif
}

// Starts the copy of one tile to global memory; elements out of bounds are dropped. The tile must not be written before
// bulk_wait_read, the result can be read by others after bulk_wait.
template <int rank>
__device__ __forceinline__ void tma_store(const TensorMap* map, const void* tile,
                                          const int (&coordinate)[rank] TEMPER_SITE) {
    static_assert(rank >= 2 && rank <= 4, "tiles have 2 to 4 dimensions");
#ifdef TEMPER_SIMULATOR
    simulator::tma_store(map, tile, coordinate, rank, false, site);
#else
    if constexpr (rank == 2) {
        TEMPER_HOPPER_ASM("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                          "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1])
                          : "memory");
    } else if constexpr (rank == 3) {
        TEMPER_HOPPER_ASM("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                          "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2])
                          : "memory");
    } else {
        TEMPER_HOPPER_ASM(
            "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
            "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2]), "r"(coordinate[3])
            : "memory");
    }
#endif
}

// The same, adding the tile to what is there (f32 or bf16, as the map says).
template <int rank>
__device__ __forceinline__ void tma_reduce_add(const TensorMap* map, const void* tile,
                                               const int (&coordinate)[rank] TEMPER_SITE) {
    static_assert(rank >= 2 && rank <= 4, "tiles have 2 to 4 dimensions");
#ifdef TEMPER_SIMULATOR
    simulator::tma_store(map, tile, coordinate, rank, true, site);
#else
    if constexpr (rank == 2) {
        TEMPER_HOPPER_ASM("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                          "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1])
                          : "memory");
    } else if constexpr (rank == 3) {
        TEMPER_HOPPER_ASM(
            "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
            "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2])
            : "memory");
    } else {
        TEMPER_HOPPER_ASM(
            "cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
            "r"(shared_address(tile)), "r"(coordinate[0]), "r"(coordinate[1]), "r"(coordinate[2]), "r"(coordinate[3])
            : "memory");
    }
#endif
}

// Copies without a map: `bytes` a multiple of 16, both addresses 16-byte aligned.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::bulk_load(shared, global, bytes, barrier, site);)
    TEMPER_HOPPER_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                          shared_address(shared)),
                      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
                      : "memory");
}
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::bulk_store(global, shared, bytes, false, site);)
    TEMPER_HOPPER_ASM("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)),
                      "r"(shared_address(shared)), "r"(bytes)
                      : "memory");
}
__device__ __forceinline__ void bulk_reduce_add(float* global, const float* shared, uint32_t bytes TEMPER_SITE) {
    TEMPER_SIMULATED(simulator::bulk_store(global, shared, bytes, true, site);)
    TEMPER_HOPPER_ASM("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                          __cvta_generic_to_global(global)),
                      "r"(shared_address(shared)), "r"(bytes)
                      : "memory");
}

// Closes the group of the stores and reductions that this thread started since the last commit.
__device__ __forceinline__ void bulk_commit() {
    TEMPER_SIMULATED(simulator::bulk_commit();)
    TEMPER_HOPPER_ASM("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most n of the latest groups have still to read their source: it may be overwritten then.
template <int n>
__device__ __forceinline__ void bulk_wait_read() {
    TEMPER_SIMULATED(simulator::bulk_wait(n, true);)
    TEMPER_HOPPER_ASM("cp.async.bulk.wait_group.read %0;" ::"n"(n) : "memory");
}

// Waits until at most n of the latest groups are unfinished: the others are in global memory.
template <int n>
__device__ __forceinline__ void bulk_wait() {
    TEMPER_SIMULATED(simulator::bulk_wait(n, false);)
    TEMPER_HOPPER_ASM("cp.async.bulk.wait_group %0;" ::"n"(n) : "memory");
}

#include "ptx_wgmma.cuh"
