// Every PTX instruction that the kernels use, each a small function with two bodies: the instruction for nvcc, and a call
// of the host machine (sim/) when TEMPER_SIMULATOR is defined. No other file contains inline PTX.
//
// This file has the instructions of sm_80. ptx_hopper.cuh, included at the end, adds the instructions that sm_90a alone has.
#pragma once

#include <stdint.h>

#ifdef TEMPER_SIMULATOR
#include "sim/device.h"
#include "sim/instructions.h"
#define TEMPER_KERNEL_ALONE TEMPER_KERNEL
#define TEMPER_KERNEL_RESIDENT(name, max_threads, blocks, ...) TEMPER_KERNEL(name, max_threads, __VA_ARGS__)
#else
#define TEMPER_SITE
#define TEMPER_SITE_ONLY
#define TEMPER_PASS_SITE
#define TEMPER_PASS_SITE_ONLY
// A kernel: its name, the number of threads a block has, and its parameters; the body follows.
#define TEMPER_KERNEL(name, max_threads, ...) extern "C" __global__ void __launch_bounds__(max_threads) name(__VA_ARGS__)
// The same for a kernel whose warpgroups give registers to each other: one block has a multiprocessor to itself.
#define TEMPER_KERNEL_ALONE(name, max_threads, ...) \
    extern "C" __global__ void __launch_bounds__(max_threads, 1) name(__VA_ARGS__)
// The same for a kernel of which so many blocks are to fit a multiprocessor.
#define TEMPER_KERNEL_RESIDENT(name, max_threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(max_threads, blocks) name(__VA_ARGS__)
#endif

// The dynamic shared memory of the block, the only shared memory there is. Aligned to 1024 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
#ifdef TEMPER_SIMULATOR
    return simulator::current->shared;
#else
    extern __shared__ __align__(1024) unsigned char temper_shared_memory[];
    return temper_shared_memory;
#endif
}

// An address in shared memory as the 32-bit number that instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* pointer TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    return simulator::shared_address(pointer, site);
#else
    return uint32_t(__cvta_generic_to_shared(pointer));
#endif
}

// ---- numbers ----

// f32 to bf16, nearest even.
__device__ __forceinline__ uint16_t bf16_bits(float value) {
#ifdef TEMPER_SIMULATOR
    return simulator::round_to_bf16(value);
#else
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

// Two f32 to two bf16 in one register, `low` in its lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef TEMPER_SIMULATOR
    return uint32_t(simulator::round_to_bf16(low)) | uint32_t(simulator::round_to_bf16(high)) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

// 2 to the power of `value`, about 2 units in the last place.
__device__ __forceinline__ float exp2_approximate(float value) {
#ifdef TEMPER_SIMULATOR
    if (simulator::compiled_with_watch) simulator::count_exponential();
    return exp2f(value);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
#endif
}

// ---- matrix fragments (all 32 lanes) ----

// Loads 8x8 matrices of 16-bit elements. Lane 8i + j passes the address of row j of matrix i (16 bytes, 16-byte aligned,
// in shared memory); lane l receives columns 2(l%4) and 2(l%4)+1 of row l/4 of matrix i in r[i]. Addresses of lanes
// beyond the last matrix are ignored.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::ldmatrix(r, 4, false, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// The same, each matrix transposed: lane l receives rows 2(l%4) and 2(l%4)+1 of column l/4.
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::ldmatrix(r, 4, true, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::ldmatrix(r, 2, false, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* row TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::ldmatrix(r, 2, true, row, site);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// c += a b with a 16x16 row-major, b 16x8 column-major (bf16), c 16x8 (f32). With g = lane/4 and t = lane%4, each
// register of a and b holding two neighbours along k:
//   a[0]: row g,   k 2t      a[1]: row g+8, k 2t      a[2]: row g, k 2t+8      a[3]: row g+8, k 2t+8
//   b[0]: column g, k 2t     b[1]: column g, k 2t+8
//   c[0], c[1]: row g, columns 2t, 2t+1               c[2], c[3]: row g+8, columns 2t, 2t+1
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::mma_m16n8k16(c, a, b, site);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- asynchronous copies of one thread ----

// Starts a copy of 16 bytes from global to shared memory (both 16-byte aligned). When not `valid`, zeros are written and
// `global` is not read. The data is there after copy_async_wait, for other threads after a barrier behind it.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::copy_async_16(shared, global, valid, site);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// Closes the group of the copies started since the last commit (it may be empty).
__device__ __forceinline__ void copy_async_commit(TEMPER_SITE_ONLY) {
#ifdef TEMPER_SIMULATOR
    simulator::copy_async_commit(site);
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most n of the latest groups of this thread are unfinished.
template <int n>
__device__ __forceinline__ void copy_async_wait(TEMPER_SITE_ONLY) {
#ifdef TEMPER_SIMULATOR
    simulator::copy_async_wait(n, site);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

// ---- barriers of a part of the block ----

// Waits at barrier `id` (1 to 15; 0 is __syncthreads) until `threads` threads, a multiple of 32, have come, whether they
// wait or only arrive. Whole warps call it.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::synchronize_named(id, threads, site);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// Counts towards barrier `id` without waiting.
__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads TEMPER_SITE) {
#ifdef TEMPER_SIMULATOR
    simulator::arrive_named(id, threads, site);
#else
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

#include "ptx_hopper.cuh"
