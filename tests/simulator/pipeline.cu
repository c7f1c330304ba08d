// Planted bugs in a kernel of the kind that FlashAttention-3 is: a producer warp feeds two stages through the copy engine
// and mbarriers, a warpgroup multiplies with wgmma, the result leaves through the copy engine.
//
// out (64 x 64, f32) = a (64 x k) times b (64 x k) transposed, bf16. `fault` chooses the bug, 0 none.
#include <cmath>

#include "common.cuh"
#include "harness.h"

namespace {

enum Fault : int {
    none,
    parity_not_flipped,
    parity_starts_wrong,
    producer_does_not_wait,
    consumer_does_not_release,
    consumer_releases_twice,
    expects_too_much,
    expects_too_little,
    swizzle_differs,
    map_not_swizzled,
    stride_differs,
    operand_beyond_memory,
    operand_misaligned,
    no_wgmma_wait,
    no_wgmma_fence,
    accumulator_touched,
    warp_issues_another,
    no_proxy_fence,
    no_barrier_before_store,
    no_read_wait,
    overwrites_source,
    reads_before_load,
    barrier_not_made,
    barrier_made_twice,
    barrier_overwritten,
    tile_beyond_memory,
    tile_misaligned,
    map_of_other_rank,
    map_beyond_tensor,
    too_many_registers,
    load_not_waited,
    deadlock_of_warpgroup,
};

constexpr int rows = 64, depth = 256, steps = depth / 64, stages = 2;

struct Shared {
    uint16_t a[stages][64 * 64];
    uint16_t b[stages][64 * 64];
    float result[64 * 64];
    uint64_t full[stages];
    uint64_t empty[stages];
};

__device__ void produce(Shared& shared, const TensorMap& a, const TensorMap& b, int fault) {
    for (int step = 0; step < steps; step++) {
        const int stage = step % stages, round = step / stages;
        if (fault == producer_does_not_wait) {
            // It goes on although the consumers may still read the stage.
        } else {
            const uint32_t parity = fault == parity_starts_wrong ? round & 1 : (round & 1) ^ 1;
            MARK_IF(fault == parity_starts_wrong || fault == consumer_does_not_release); mbarrier_wait(&shared.empty[stage], parity);
        }
        uint32_t bytes = 2 * sizeof shared.a[0];
        if (fault == expects_too_much) bytes += 16;
        if (fault == expects_too_little) bytes -= 16;
        mbarrier_arrive_expect(&shared.full[stage], bytes);
        unsigned char* tile = reinterpret_cast<unsigned char*>(shared.a[stage]);
        if (fault == tile_beyond_memory) tile = shared_memory() + sizeof(Shared) - 1024;
        if (fault == tile_misaligned) tile += 64;
        const bool guilty = fault == tile_beyond_memory || fault == tile_misaligned || fault == map_beyond_tensor;
        MARK_IF(guilty || fault == barrier_overwritten); tma_load(tile, &a, &shared.full[stage], {step * 64, 0});
        if (fault == map_of_other_rank) { MARK(); tma_load(shared.b[stage], &b, &shared.full[stage], {step * 64, 0, 0}); }
        tma_load(shared.b[stage], &b, &shared.full[stage], {step * 64, 0});
    }
    if (fault == load_not_waited) {
        MARK(); tma_load(shared.b[0], &b, &shared.full[0], {0, 0});
    }
}

__device__ void multiply_stage(Shared& shared, float (&c)[32], int stage, int step, int fault) {
    wgmma_hold(c);
    if (fault != no_wgmma_fence) wgmma_fence();
    for (int slice = 0; slice < 4; slice++) {
        const unsigned char* a = reinterpret_cast<unsigned char*>(shared.a[stage]) + slice * 32;
        const unsigned char* b = reinterpret_cast<unsigned char*>(shared.b[stage]) + slice * 32;
        if (fault == warp_issues_another && threadIdx.x / 32 == 5) b = reinterpret_cast<unsigned char*>(shared.b[stage]);
        if (fault == operand_beyond_memory) b = shared_memory() + sizeof(Shared) / 1024 * 1024;
        if (fault == operand_misaligned) b += 128;
        const uint64_t left = wgmma_descriptor(a, fault == swizzle_differs ? Swizzle::bytes_64 : Swizzle::bytes_128, 16, 1024);
        const uint64_t right = wgmma_descriptor(b, Swizzle::bytes_128, 16, fault == stride_differs ? 512 : 1024);
        MARK_IF(fault >= operand_beyond_memory && fault <= warp_issues_another); wgmma<64>(c, left, right, step > 0 || slice > 0);
    }
    wgmma_commit();
    if (fault == accumulator_touched && threadIdx.x == 200) c[3] = 0.0f;
    if (fault == deadlock_of_warpgroup && threadIdx.x >= 224) return;
    if (fault != no_wgmma_wait) { MARK_IF(fault == deadlock_of_warpgroup); wgmma_wait<0>(); }
    wgmma_hold(c);
}

__device__ void consume(Shared& shared, const TensorMap& out, int fault) {
    const int thread = threadIdx.x - 128, lane = thread % 32;
    float c[32];
    for (int i = 0; i < 32; i++) c[i] = 0.0f;
    for (int step = 0; step < steps; step++) {
        const int stage = step % stages;
        const uint32_t parity = fault == parity_not_flipped ? 0 : step / stages & 1;
        const bool guilty = fault == parity_not_flipped || fault == expects_too_much || fault == expects_too_little;
        if (fault == reads_before_load) { MARK(); c[0] += float(*static_cast<volatile uint16_t*>(&shared.a[stage][thread])); }
        else { MARK_IF(guilty); mbarrier_wait(&shared.full[stage], parity); }
        multiply_stage(shared, c, stage, step, fault);
        if (lane == 0 && fault != consumer_does_not_release) {
            if (fault == consumer_releases_twice) mbarrier_arrive(&shared.empty[stage]);
            mbarrier_arrive(&shared.empty[stage]);
        }
    }
    for (int i = 0; i < 32; i++) {
        const int row = thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        shared.result[row * 64 + column] = c[i];
    }
    if (fault != no_proxy_fence) fence_proxy_async();
    if (fault != no_barrier_before_store) named_barrier_sync(1, 128);
    if (thread == 0) {
        MARK_IF(fault == no_proxy_fence || fault == no_barrier_before_store || fault == no_read_wait); tma_store(&out, shared.result, {0, 0});
        bulk_commit();
        if (fault == overwrites_source) { MARK(); shared.result[5] = 1.0f; }
        if (fault != no_read_wait) bulk_wait_read<0>();
    }
}

}  // namespace

TEMPER_KERNEL(pipeline, 256, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
              const __grid_constant__ TensorMap out, int fault) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    if (threadIdx.x == 0 && fault != barrier_not_made) {
        for (int stage = 0; stage < stages; stage++) {
            mbarrier_init(&shared.full[stage], 1);
            mbarrier_init(&shared.empty[stage], 4);
        }
        if (fault == barrier_made_twice) { MARK(); mbarrier_init(&shared.full[0], 1); }
        if (fault == barrier_overwritten) shared.full[1] = 0;
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_decrease<40>();
        if (threadIdx.x < 32 && elect_one()) {
            produce(shared, a, b, fault);
        }
    } else {
        if (fault == too_many_registers) {
            registers_increase<256>();
            registers_decrease<40>();
            MARK(); registers_decrease<48>();
        }
        registers_increase<256>();
        consume(shared, out, fault);
    }
}

namespace {

std::string run_pipeline(int fault, uint64_t seed, std::vector<float>& numbers) {
    Buffer<uint16_t> a(rows * depth), b(rows * depth);
    Buffer<float> out(rows * 64);
    Numbers random = {77};
    for (size_t i = 0; i < a.count; i++) a[i] = bits_of(random.next());
    for (size_t i = 0; i < b.count; i++) b[i] = bits_of(random.next());
    TensorMap a_map, b_map, out_map;
    const uint64_t sizes[2] = {depth, rows}, strides[1] = {depth * 2}, out_sizes[2] = {64, rows}, out_strides[1] = {256};
    const uint64_t too_many[2] = {depth, rows}, beyond[1] = {depth * 4};
    const uint32_t box[2] = {64, 64};
    const char* error = temper_sim_encode_tensor_map(&a_map, TEMPER_TENSOR_BF16, 2, a.data,
                                                     fault == map_beyond_tensor ? too_many : sizes,
                                                     fault == map_beyond_tensor ? beyond : strides, box, 128);
    if (error == nullptr) error = temper_sim_encode_tensor_map(&b_map, TEMPER_TENSOR_BF16, 2, b.data, sizes, strides, box,
                                                                  fault == map_not_swizzled ? 0 : 128);
    if (error == nullptr) error = temper_sim_encode_tensor_map(&out_map, TEMPER_TENSOR_F32, 2, out.data, out_sizes, out_strides, box, 0);
    if (error != nullptr) return error;
    const std::string report = launch("pipeline", {{1, 1, 1}, {1, 1, 1}, 256, sizeof(Shared), seed}, a_map, b_map, out_map, fault);
    numbers.assign(out.data, out.data + out.count);
    return report;
}

// Every number here is a multiple of 1/256 below 2^12: the sums are exact in any order.
bool pipeline_right(const std::vector<float>& numbers) {
    Numbers random = {77};
    std::vector<float> a(rows * depth), b(rows * depth);
    for (float& value : a) value = random.next();
    for (float& value : b) value = random.next();
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < 64; j++) {
            float sum = 0.0f;
            for (int k = 0; k < depth; k++) sum += a[i * depth + k] * b[j * depth + k];
            if (numbers[i * 64 + j] != sum) return false;
        }
    }
    return true;
}

AddCase plant(const char* name, int fault, std::vector<const char*> words, bool names_line = true) {
    Case test;
    test.name = name;
    test.fault = fault;
    test.run = run_pipeline;
    test.right = pipeline_right;
    test.words = words;
    test.names_line = names_line;
    return AddCase(test);
}

// The same for a bug that only the watch reports under every schedule.
AddCase plant_watched(const char* name, int fault, std::vector<const char*> words) {
    AddCase added = plant(name, fault, words, false);
    cases().back().only_watched = true;
    return added;
}

const AddCase planted[] = {
    plant("parity not flipped", parity_not_flipped, {"mbarrier", "waits for it again|deadlock", "parity"}),
    plant("parity starts wrong", parity_starts_wrong, {"deadlock", "phase of parity 0", "lacks 4 of 4 arrivals"}),
    plant_watched("producer does not wait", producer_does_not_wait, {"race|in flight|one arrival more"}),
    plant("consumer does not release", consumer_does_not_release, {"deadlock", "lacks 4 of 4 arrivals and 0 bytes"}),
    plant_watched("consumer releases twice", consumer_releases_twice, {"one arrival more than the 4 of a phase|race|deadlock"}),
    plant("expects too much", expects_too_much, {"deadlock", "lacks 0 of 1 arrivals and 16 bytes"}),
    plant("expects too little", expects_too_little, {"deadlock", "and -16 bytes"}),
    plant("swizzle differs", swizzle_differs, {"misaligned wgmma: operand a", "512-byte pattern"}, false),
    plant("map not swizzled", map_not_swizzled, {}),
    plant("stride differs", stride_differs, {}),
    plant("operand beyond memory", operand_beyond_memory, {"out of bounds|never written|fence_proxy_async", "wgmma"}),
    plant("operand misaligned", operand_misaligned, {"misaligned wgmma: operand b"}),
    plant("no wgmma wait", no_wgmma_wait, {"wgmmas in flight", "never waited"}),
    plant("no wgmma fence", no_wgmma_fence, {"wgmma_fence is missing"}),
    plant("accumulator touched", accumulator_touched, {"accumulator", "written before wgmma_wait", "thread 200 "}),
    plant("warp issues another", warp_issues_another, {"divergence", "different wgmmas", "warp 5"}),
    plant_watched("no proxy fence", no_proxy_fence, {"tma_store", "no fence_proxy_async"}),
    plant_watched("no barrier before store", no_barrier_before_store, {"tma_store|copy engine", "never written|race"}),
    plant("no read wait", no_read_wait, {"bulk_wait_read is missing"}),
    plant_watched("overwrites source", overwrites_source, {"copy engine still reads", "bulk_wait_read"}),
    plant_watched("reads before load", reads_before_load, {"never written|in flight|race"}),
    plant("barrier not made", barrier_not_made, {"no mbarrier", "never initialised"}, false),
    plant("barrier made twice", barrier_made_twice, {"live mbarrier"}),
    plant("barrier overwritten", barrier_overwritten, {"no mbarrier", "overwritten"}, false),
    plant("tile beyond memory", tile_beyond_memory, {"tma_load", "not within"}),
    plant("tile misaligned", tile_misaligned, {"misaligned tma_load"}),
    plant("map of other rank", map_of_other_rank, {"3 coordinates for a tensor map of 2 dimensions"}),
    plant("map beyond tensor", map_beyond_tensor, {"out of bounds: the copy engine", "of the allocation of 32768 bytes"}),
    plant("too many registers", too_many_registers, {"registers_decrease to 48: the warp has 40"}),
    plant("load not waited", load_not_waited, {"still in flight when the block ended|race|in flight|bytes outstanding"}, false),
    plant("deadlock of warpgroup", deadlock_of_warpgroup, {"deadlock", "wgmma_wait", "mbarrier|exited"}),
};

}  // namespace
