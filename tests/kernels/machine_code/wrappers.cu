// Every function of ptx*.cuh, at every width and in every form, so that ptxas reads the text of those that no kernel uses
// yet. It is compiled and never launched: nothing here makes sense as a program.
#include "common.cuh"

extern "C" __global__ void numbers(uint32_t* out, float low, float high) {
    out[0] = bf16_bits(low);
    out[1] = pack_bf16(low, high);
    out[2] = __float_as_uint(exp2_approximate(low));
    out[3] = shared_address(shared_memory());
}

extern "C" __global__ void fragments(uint32_t* out, float* sums) {
    const unsigned char* row = shared_memory() + threadIdx.x % 32 * 16;
    uint32_t a[4], four[4], two[2], pair[2];
    ldmatrix_x4(a, row);
    ldmatrix_x4_transposed(four, row);
    ldmatrix_x2(two, row);
    ldmatrix_x2_transposed(pair, row);
    float c[4] = {sums[0], sums[1], sums[2], sums[3]};
    mma_m16n8k16(c, a, two);
    mma_m16n8k16(c, four, pair);
    for (int i = 0; i < 4; i++) sums[i] = c[i];
}

extern "C" __global__ void copies(const unsigned char* from, bool valid) {
    copy_async_16(shared_memory(), from, valid);
    copy_async_commit();
    copy_async_wait<1>();
    copy_async_16(shared_memory() + 16, from);
    copy_async_commit();
    copy_async_wait<0>();
}

extern "C" __global__ void __launch_bounds__(384, 1) registers_and_barriers(uint32_t* out) {
    if (threadIdx.x < 128) {
        registers_decrease<24>();
        named_barrier_arrive(1, 384);
    } else {
        registers_increase<240>();
        named_barrier_sync(1, 384);
        if (elect_one()) out[threadIdx.x] = cluster_rank();
    }
    cluster_sync();
}

extern "C" __global__ void mbarriers(uint32_t* out, uint32_t parity) {
    auto* barrier = reinterpret_cast<uint64_t*>(shared_memory());
    mbarrier_init(barrier, 4);
    mbarrier_init_fence();
    mbarrier_arrive(barrier);
    mbarrier_arrive_remote(barrier, 1);
    mbarrier_arrive_expect(barrier, 128);
    mbarrier_expect(barrier, 128);
    out[0] = mbarrier_try_wait(barrier, parity);
    mbarrier_wait(barrier, parity);
}

extern "C" __global__ void tiles(const __grid_constant__ TensorMap map, int at) {
    unsigned char* tile = shared_memory();
    auto* barrier = reinterpret_cast<uint64_t*>(tile + 4096);
    prefetch_tensor_map(&map);
    tma_load(tile, &map, barrier, {at, 0});
    tma_load(tile, &map, barrier, {at, 0, 1});
    tma_load(tile, &map, barrier, {at, 0, 1, 2});
    fence_proxy_async();
    tma_store(&map, tile, {at, 0});
    tma_store(&map, tile, {at, 0, 1});
    tma_store(&map, tile, {at, 0, 1, 2});
    bulk_commit();
    bulk_wait_read<1>();
    tma_reduce_add(&map, tile, {at, 0});
    tma_reduce_add(&map, tile, {at, 0, 1});
    tma_reduce_add(&map, tile, {at, 0, 1, 2});
    bulk_commit();
    bulk_wait<0>();
}

extern "C" __global__ void bulks(float* global, uint32_t bytes) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    bulk_load(shared, global, bytes, reinterpret_cast<uint64_t*>(shared + 1024));
    bulk_store(global, shared, bytes);
    bulk_reduce_add(global, shared, bytes);
    bulk_commit();
    bulk_wait<0>();
}

// The products of one n: both places and both orders of a, both orders of b.
template <int n>
__global__ void products(float* sums, const uint32_t* fragment, uint32_t stride) {
    const uint64_t a = wgmma_descriptor(shared_memory(), Swizzle::bytes_128, 0, stride);
    const uint64_t b = wgmma_descriptor(shared_memory() + 65536, Swizzle::bytes_128, 0, stride);
    const uint32_t left[4] = {fragment[0], fragment[1], fragment[2], fragment[3]};
    float d[n / 2];
    for (int i = 0; i < n / 2; i++) d[i] = sums[i];
    wgmma_hold(d);
    wgmma_fence();
    wgmma<n, Major::k, Major::k>(d, a, b, true);
    wgmma<n, Major::k, Major::mn>(d, a, b, true);
    wgmma<n, Major::mn, Major::k>(d, a, b, true);
    wgmma<n, Major::mn, Major::mn>(d, a, b, true);
    wgmma_registers<n, Major::k>(d, left, b, true);
    wgmma_registers<n, Major::mn>(d, left, b, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(d);
    for (int i = 0; i < n / 2; i++) sums[i] = d[i];
}
#define PRODUCTS(n) template __global__ void products<n>(float*, const uint32_t*, uint32_t);
#define EIGHT_PRODUCTS(first)                                                                          \
    PRODUCTS(first) PRODUCTS(first + 8) PRODUCTS(first + 16) PRODUCTS(first + 24) PRODUCTS(first + 32) \
    PRODUCTS(first + 40) PRODUCTS(first + 48) PRODUCTS(first + 56)
EIGHT_PRODUCTS(8)
EIGHT_PRODUCTS(72)
EIGHT_PRODUCTS(136)
EIGHT_PRODUCTS(200)
