// Planted bugs in what every CUDA kernel does: barriers, shuffles, shared and global memory, cp.async, ldmatrix.
//
// Every kernel computes out[i] for the threads of one block from in[i] = i; `fault` chooses the bug, 0 none.
#include <cmath>

#include "common.cuh"
#include "harness.h"

namespace {

constexpr int threads = 64;

// Adds to the list: the kernel `name` with `fault`, judged by `expected(i)` for each thread.
AddCase plant(const char* name, int fault, float (*expected)(int), std::vector<const char*> words, bool names_line = true) {
    Case test;
    test.name = name;
    test.fault = fault;
    test.run = [name](int chosen, uint64_t seed, std::vector<float>& numbers) {
        Buffer<float> in(threads), out(threads);
        for (int i = 0; i < threads; i++) in[i] = float(i);
        const std::string report = launch(name, {{1, 1, 1}, {1, 1, 1}, threads, 2048, seed}, out.data, (const float*)in.data, chosen);
        numbers.assign(out.data, out.data + threads);
        return report;
    };
    test.right = [expected](const std::vector<float>& numbers) {
        for (int i = 0; i < threads; i++) {
            if (numbers[i] != expected(i)) return false;
        }
        return true;
    };
    test.words = words;
    test.names_line = names_line;
    return AddCase(test);
}

// The same for a bug that, without the watch, shows in the numbers if at all.
AddCase plant_watched(const char* name, int fault, float (*expected)(int), std::vector<const char*> words) {
    AddCase added = plant(name, fault, expected, words, false);
    cases().back().only_watched = true;
    return added;
}

float mirrored(int i) { return float(63 - i); }
float same(int i) { return float(i); }
float warp_total(int i) { return i < 32 ? 496.0f : 1520.0f; }
float neighbour(int i) { return float(i ^ 1); }

}  // namespace

// out[i] = in[63 - i] through shared memory.
TEMPER_KERNEL(mirror, 64, float* out, const float* in, int fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    // 1: no barrier. 2: half of the threads return before it. 3: half of them wait at another one.
    // 4: out of shared memory by one element. 5: further out. 6: one element is never written. 7: before its start.
    shared[i] = in[i];
    if (fault == 2 && i >= 32) { MARK(); return; }
    if (fault == 3 && i >= 32) {
        MARK(); __syncthreads();
    } else if (fault != 1) {
        __syncthreads();
    }
    if (fault == 4 && i == 7) { MARK(); shared[512] = 1.0f; }
    if (fault == 5 && i == 7) { MARK(); shared[1500] = 1.0f; }
    if (fault == 7 && i == 7) shared[-1] = 1.0f;
    if (fault == 6) { MARK(); out[i] = shared[64 + 63 - i]; return; }
    MARK(); out[i] = shared[63 - i];
}
static AddCase mirror_1 = plant_watched("mirror", 1, mirrored, {"race|never written", "reads shared offset"});
static AddCase mirror_2 = plant("mirror", 2, mirrored, {"exited", "__syncthreads"}, false);
static AddCase mirror_3 = plant("mirror", 3, mirrored, {"divergence", "__syncthreads", "core.cu"});
static AddCase mirror_4 = plant("mirror", 4, mirrored, {"out of bounds", "offset 2048", "shared memory", "thread 7 "});
static AddCase mirror_7 = plant("mirror", 7, mirrored, {"memory before the 2048 bytes of shared memory was overwritten"}, false);
static AddCase mirror_5 = plant("mirror", 5, mirrored, {"out of bounds", "thread 7 "});
static AddCase mirror_6 = plant_watched("mirror", 6, mirrored, {"never written"});

// Two rounds through one buffer: out[i] = in[63 - i] again.
TEMPER_KERNEL(two_rounds, 64, float* out, const float* in, int fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    shared[i] = in[i];
    __syncthreads();
    const float value = shared[63 - i];
    // 1: the buffer is reused while others may still read it.
    if (fault != 1) __syncthreads();
    MARK(); shared[i] = value;
    __syncthreads();
    out[i] = shared[i];
}
static AddCase two_rounds_1 = plant_watched("two_rounds", 1, mirrored, {"race"});

// out[i] = in[i ^ 1] through shared memory, within a warp.
TEMPER_KERNEL(pair, 64, float* out, const float* in, int fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    shared[i] = in[i];
    if (fault != 1) __syncwarp();
    MARK(); out[i] = shared[i ^ 1];
}
static AddCase pair_1 = plant_watched("pair", 1, neighbour, {"race|never written", "reads shared offset"});

// out[i] = the sum of the warp.
TEMPER_KERNEL(total, 64, float* out, const float* in, int fault) {
    const int i = threadIdx.x, lane = i % 32;
    float value = in[i];
    // 1: one lane takes another shuffle. 2: a lane is not in its own mask. 3: the mask leaves out the lane that is read.
    // 4: one lane returns first. 5: two masks overlap. 6: lanes 16-31 do not come.
    if (fault == 1 && lane == 5) {
        MARK(); value = warp_sum(value);
    } else if (fault == 2) {
        MARK(); value += __shfl_sync(0x7fffffffu, value, 0);
    } else if (fault == 3 && lane < 16) {
        MARK(); value += __shfl_down_sync(0x0000ffffu, value, 16);
    } else if (fault == 4 && lane == 9) {
        MARK(); return;
    } else if (fault == 5) {
        MARK(); value += __shfl_xor_sync(lane < 16 ? 0x0001ffffu : 0xffff0000u, value, 1);
    } else if (fault == 6 && lane >= 16) {
        named_barrier_sync(1, 64);
    } else {
        if (fault == 6) { MARK(); }
        value = warp_sum(value);
    }
    out[i] = value;
}
static AddCase total_1 = plant("total", 1, warp_total, {"divergence in warp 0", "lanes"});
static AddCase total_2 = plant("total", 2, warp_total, {"does not name the calling lane", "lane 31"});
static AddCase total_3 = plant("total", 3, warp_total, {"reads lane", "does not name"});
static AddCase total_4 = plant("total", 4, warp_total, {"exited", "shuffle"}, false);
static AddCase total_5 = plant("total", 5, warp_total, {"divergence in warp", "mask"});
static AddCase total_6 = plant("total", 6, warp_total, {"deadlock", "shuffle", "named barrier 1", "core.cu"}, false);

// out[i] = in[63 - i], 16 bytes at a time through cp.async.
TEMPER_KERNEL(staged, 64, float* out, const float* in, int fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    // 1: no wait. 2: the wait leaves the group that is needed. 3: no barrier behind the wait. 4: not committed.
    // 5: misaligned in shared, 6: in global memory. 7: beyond the end of the input. 8: read before the wait.
    if (i < 16) {
        if (fault == 5) { MARK(); copy_async_16(shared + i * 4 + 1, in + i * 4); }
        if (fault == 6) { MARK(); copy_async_16(shared + i * 4, in + i * 4 + 2); }
        MARK(); copy_async_16(shared + i * 4, in + (i + (fault == 7)) * 4);
    }
    if (fault != 4) copy_async_commit();
    if (fault == 8 && i == 3) { MARK(); out[i] = shared[i * 4]; }
    if (fault == 2) copy_async_wait<1>();
    if (fault != 1 && fault != 2) copy_async_wait<0>();
    if (fault == 3) { MARK(); out[i] = shared[63 - i]; return; }
    if (fault == 1 || fault == 2 || fault == 4) { out[i] = 0; return; }
    __syncthreads();
    out[i] = shared[63 - i];
}
static AddCase staged_1 = plant("staged", 1, mirrored, {"copies in flight", "never waited"});
static AddCase staged_2 = plant("staged", 2, mirrored, {"copies in flight", "never waited"});
static AddCase staged_3 = plant_watched("staged", 3, mirrored, {"race|never written", "reads shared offset"});
static AddCase staged_4 = plant("staged", 4, mirrored, {"copies in flight", "never waited"});
static AddCase staged_5 = plant("staged", 5, mirrored, {"misaligned copy_async", "shared offset 4"});
static AddCase staged_6 = plant("staged", 6, mirrored, {"misaligned copy_async", "global address"});
static AddCase staged_7 = plant("staged", 7, mirrored, {"out of bounds", "offset 256 of the allocation of 256 bytes", "thread 15 "}, false);
static AddCase staged_8 = plant_watched("staged", 8, mirrored, {"copy_async of this thread is in flight"});

// out[i] = in[i] by vectors of 2.
TEMPER_KERNEL(vectors, 64, float* out, const float* in, int fault) {
    const int i = threadIdx.x;
    if (i >= 32) return;
    // 1, 2: misaligned load and store. 3, 4: beyond the end. 5: before the start.
    if (fault == 1) { MARK(); load_vector<float, 4>(in + i * 2 + 2); }
    const Vector<float, 2> value = load_vector<float, 2>(in + i * 2);
    if (fault == 2) { MARK(); store_vector<float, 2>(out + i * 2 + 1, value); }
    if (fault == 3 && i == 31) { MARK(); out[0] = static_cast<const volatile float*>(in)[64]; }
    if (fault == 4 && i == 31) { MARK(); out[64] = 1.0f; }
    if (fault == 5 && i == 0) { MARK(); out[-1] = 1.0f; }
    store_vector<float, 2>(out + i * 2, value);
}
static AddCase vectors_1 = plant("vectors", 1, same, {"misaligned vector load"});
static AddCase vectors_2 = plant("vectors", 2, same, {"misaligned vector store"});
static AddCase vectors_3 = plant("vectors", 3, same, {"out of bounds", "thread 31 ", "offset 256 of the allocation"});
static AddCase vectors_4 = plant("vectors", 4, same, {"out of bounds", "thread 31 ", "offset 256 of the allocation"});
static AddCase vectors_5 = plant("vectors", 5, same, {"memory before the allocation", "argument 0"}, false);

// out[i] = i from the identity matrix, by ldmatrix and mma.
TEMPER_KERNEL(fragments, 64, float* out, const float* in, int fault) {
    bf16* shared = reinterpret_cast<bf16*>(shared_memory());
    const int i = threadIdx.x, lane = i % 32;
    for (int at = i; at < 256; at += 64) shared[at] = from_float<bf16>(at / 16 == at % 16 ? 1.0f : 0.0f);
    __syncthreads();
    uint32_t a[4], b[2];
    // 1: misaligned row. 2: a row outside. 3: half of the warp leaves the product out.
    if (fault == 1) { MARK(); ldmatrix_x4(a, shared + lane % 16 * 16 + lane / 16 * 8 + 1); }
    if (fault == 2) { MARK(); ldmatrix_x4(a, shared + 1024 + lane % 16 * 16 + lane / 16 * 8); }
    ldmatrix_x4(a, shared + lane % 16 * 16 + lane / 16 * 8);
    // Column n of b, row k: k + 8 n while that is less than 64.
    for (int r = 0; r < 2; r++) {
        const int k = lane % 4 * 2 + r * 8, n = lane / 4;
        b[r] = pack_bf16(k < 8 ? float(k + 8 * n) : 0.0f, k < 8 ? float(k + 1 + 8 * n) : 0.0f);
    }
    float c[4] = {};
    if (fault == 3 && lane < 16) { MARK(); warp_sum(1.0f); }
    if (fault == 3) { MARK(); }
    mma_m16n8k16(c, a, b);
    if (i >= 32) return;
    for (int r = 0; r < 2; r++) out[lane / 4 + 8 * (lane % 4 * 2 + r)] = c[r] * (in[1] + 0.0f);
}
static AddCase fragments_1 = plant("fragments", 1, same, {"misaligned ldmatrix"});
static AddCase fragments_2 = plant("fragments", 2, same, {"ldmatrix", "not in the shared memory"});
static AddCase fragments_3 = plant("fragments", 3, same, {"divergence in warp", "mma", "shuffle"}, false);

// Named barriers: the first warp hands a value to the second.
TEMPER_KERNEL(hand_over, 64, float* out, const float* in, int fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    // 1: the second warp expects more threads than come. 2: the counts differ. 3: another barrier. 4: not a barrier.
    if (i < 32) {
        shared[i] = in[i];
        shared[32 + i] = in[32 + i];
        named_barrier_arrive(fault == 3 ? 2 : 1, 64);
        out[i] = in[i];
    } else {
        if (fault == 4) { MARK(); named_barrier_sync(16, 64); }
        if (fault == 2) { MARK(); named_barrier_sync(1, 32); }
        MARK(); named_barrier_sync(1, 64);
        if (fault == 1) { MARK(); named_barrier_sync(1, 64); }
        out[i] = shared[i];
    }
}
static AddCase hand_over_1 = plant("hand_over", 1, same, {"deadlock", "threads 32-63 wait at named barrier 1", "threads 0-31 exited"});
static AddCase hand_over_2 = plant("hand_over", 2, same, {"barrier 1", "expects 32 threads", "expect 64"});
static AddCase hand_over_3 = plant("hand_over", 3, same, {"deadlock", "named barrier 1"});
static AddCase hand_over_4 = plant("hand_over", 4, same, {"named barrier 16"});

// A local array that no thread has room for.
__attribute__((noinline)) static float large_array(float value) {
    volatile float large[80000];
    large[0] = value;
    return large[0] + float(sizeof large);
}
TEMPER_KERNEL(deep, 64, float* out, const float* in, int fault) {
    const int i = threadIdx.x;
    float value = in[i];
    if (fault == 1) value = large_array(value);
    out[i] = value;
}
static AddCase deep_1 = plant("deep", 1, same, {"stack overflowed"}, false);

int check_launches() {
    int failures = 0;
    Buffer<float> out(64);
    const float* in = out.data;
    const auto expect = [&](const std::string& report, const char* words) {
        if (report.find(words) != std::string::npos) return;
        printf("FAIL launch: \"%s\" is missing in: %s\n", words, report.c_str());
        failures++;
    };
    const temper_launch fine = {{1, 1, 1}, {1, 1, 1}, 64, 2048, 0};
    expect(launch("no_such_kernel", fine, out.data), "no kernel of this name");
    expect(launch("mirror", fine, out.data), "takes 3 arguments, 1 given");
    expect(launch("mirror", {{1, 1, 1}, {1, 1, 1}, 128, 2048, 0}, out.data, in, 0), "128 threads a block, made for 64");
    expect(launch("mirror", {{1, 1, 1}, {1, 1, 1}, 64, 300000, 0}, out.data, in, 0), "bytes of shared memory");
    expect(launch("mirror", {{0, 1, 1}, {1, 1, 1}, 64, 2048, 0}, out.data, in, 0), "no blocks");
    expect(launch("mirror", {{3, 1, 1}, {2, 1, 1}, 64, 2048, 0}, out.data, in, 0), "no multiple of the cluster");
    // After all these reports a launch still works, on stacks that were abandoned.
    for (int i = 0; i < 64; i++) out[i] = float(i);
    if (!launch("vectors", fine, out.data, in, 0).empty()) failures++;
    return failures;
}

// A race that only data decides: in the launches of one shape, the watch sees it in those that it watches.
TEMPER_KERNEL(race_by_data, 64, float* out, const float* fault) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const int i = threadIdx.x;
    shared[i] = float(i);
    if (fault[0] == 0.0f) __syncthreads();
    out[i] = shared[63 - i];
}

// Launches one shape sixteen times and expects the race in the first, second, fourth, eighth and sixteenth; then the same
// with other shapes, which count for themselves. Returns the number of failures.
int check_repeats() {
    if (!watched) return 0;
    int failures = 0;
    Buffer<float> fault(1), out(64);
    fault[0] = 1.0f;
    for (uint32_t blocks = 1; blocks <= 2; blocks++) {
        for (int count = 1; count <= 16; count++) {
            const temper_launch shape = {{blocks, 1, 1}, {1, 1, 1}, 64, 256, 0};
            const std::string report = launch("race_by_data", shape, out.data, (const float*)fault.data);
            const bool reported = !report.empty();
            if (reported != ((count & (count - 1)) == 0)) {
                printf("FAIL launch %d of a shape of %u blocks: %s\n", count, blocks, reported ? report.c_str() : "no report");
                failures++;
            }
        }
    }
    return failures;
}
