// The counts of a launch against cases that are counted by hand: coalesced, strided and repeated loads, bank conflicts,
// ldmatrix, products, tiles of the copy engine. Each planted waste stands beside its twin without it.
#include <cstdio>
#include <cstring>

#include "common.cuh"
#include "harness.h"

temper_counters* counted = nullptr;

// out[i] = in[stride * i], for a warp.
TEMPER_KERNEL(load_strided, 32, float* out, const float* in, uint32_t stride) {
    out[threadIdx.x] = in[threadIdx.x * stride];
}

// The same through shared memory: written at `stride`, read back at `back`.
TEMPER_KERNEL(through_shared, 32, float* out, const float* in, uint32_t stride, uint32_t back) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x * stride] = in[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = shared[threadIdx.x * back];
}

// Four floats at once, `stride` floats from one lane to the next.
TEMPER_KERNEL(vectors_through_shared, 32, float* out, const float* in, uint32_t stride) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    store_vector(shared + threadIdx.x * stride, load_vector<float, 4>(in + threadIdx.x * 4));
    __syncwarp();
    store_vector(out + threadIdx.x * 4, load_vector<float, 4>(shared + threadIdx.x * stride));
}

// Two floats of each of 64 lanes at once: halves of a warp are served together.
TEMPER_KERNEL(pairs_through_shared, 32, float* out, const float* in, uint32_t stride) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    store_vector(shared + threadIdx.x * stride, load_vector<float, 2>(in + threadIdx.x * 2));
    __syncwarp();
    store_vector(out + threadIdx.x * 2, load_vector<float, 2>(shared + threadIdx.x * stride));
}

// Four matrices whose rows are `pitch` bytes apart.
TEMPER_KERNEL(load_matrices, 32, uint32_t* out, uint32_t pitch) {
    unsigned char* shared = shared_memory();
    for (uint32_t at = 4 * threadIdx.x; at < 32 * pitch; at += 128) *reinterpret_cast<uint32_t*>(shared + at) = at;
    __syncwarp();
    uint32_t registers[4];
    ldmatrix_x4(registers, shared + threadIdx.x * pitch);
    out[threadIdx.x] = registers[0] + registers[3];
}

// out[i] = the sum of 64 numbers, which are read `passes` times; only the first lanes read more than one.
TEMPER_KERNEL(passes_over, 32, float* out, const float* in, uint32_t passes) {
    float sum = 0.0f;
    for (uint32_t pass = 0; pass < passes; pass++) {
        for (uint32_t i = threadIdx.x; i < 40; i += 32) sum += in[i];
        sum = warp_sum(sum);
    }
    out[threadIdx.x] = exp2_approximate(sum);
}

// Adds one in place; the second half is written without being read.
TEMPER_KERNEL(half_in_place, 32, float* data) {
    const uint32_t i = threadIdx.x;
    data[i] = i < 16 ? data[i] + 1.0f : 2.0f;
    atomicAdd(&data[32 + i % 2], 1.0f);
}

namespace {

int failures;

void expect(const char* what, uint64_t found, uint64_t wanted) {
    if (found == wanted) return;
    printf("FAIL counts: %s is %llu, not %llu\n", what, (unsigned long long)found, (unsigned long long)wanted);
    failures++;
}

#define EXPECT(counts, field, wanted) expect(#counts "." #field, (counts).field, wanted)

template <typename... Arguments>
temper_counters counts_of(const char* kernel, uint32_t shared_bytes, Arguments... arguments) {
    temper_counters counters = {};
    counted = &counters;
    const std::string report = launch(kernel, {{1, 1, 1}, {1, 1, 1}, 32, shared_bytes, 0}, arguments...);
    counted = nullptr;
    if (!report.empty()) {
        printf("FAIL counts: %s\n", report.c_str());
        failures++;
    }
    return counters;
}

// Zeros. Buffers of whole kilobytes begin where a sector begins.
struct Floats : Buffer<float> {
    explicit Floats(size_t count) : Buffer<float>(count) {
        for (size_t i = 0; i < count; i++) data[i] = 0.0f;
    }
};

void check_sectors() {
    Floats out(64), in(512);
    const auto load = [&](uint32_t stride) { return counts_of("load_strided", 0, out.data, (const float*)in.data, stride); };
    const temper_counters whole = load(1), every_eighth = load(8), every_second = load(2), one = load(0);
    EXPECT(whole, load_requests, 1);
    EXPECT(whole, load_sectors, 4);
    EXPECT(whole, load_sectors_ideal, 4);
    EXPECT(whole, store_sectors, 4);
    EXPECT(whole, bytes_read, 128);
    EXPECT(every_second, load_sectors, 8);
    EXPECT(every_second, load_sectors_ideal, 4);
    EXPECT(every_eighth, load_sectors, 32);
    EXPECT(every_eighth, load_sectors_ideal, 4);
    EXPECT(every_eighth, unique_bytes_read, 128);
    EXPECT(one, load_sectors, 1);
    EXPECT(one, load_sectors_ideal, 1);
    EXPECT(one, unique_bytes_read, 4);
    EXPECT(one, blocks, 1);
    EXPECT(one, shared_requests, 0);
}

void check_banks() {
    Floats out(128), in(128);
    const auto pass = [&](uint32_t stride, uint32_t back) {
        return counts_of("through_shared", 8192, out.data, (const float*)in.data, stride, back);
    };
    const temper_counters free = pass(1, 1), two_way = pass(2, 2), worst = pass(32, 32), padded = pass(33, 33), same = pass(1, 0);
    EXPECT(free, shared_requests, 2);
    EXPECT(free, shared_wavefronts, 2);
    EXPECT(free, shared_wavefronts_ideal, 2);
    EXPECT(two_way, shared_wavefronts, 4);
    EXPECT(worst, shared_wavefronts, 64);
    EXPECT(worst, shared_wavefronts_ideal, 2);
    EXPECT(padded, shared_wavefronts, 2);
    EXPECT(same, shared_wavefronts, 2);
    const auto vectors = [&](uint32_t stride) {
        return counts_of("vectors_through_shared", 8192, out.data, (const float*)in.data, stride);
    };
    const temper_counters dense = vectors(4), columns = vectors(32), apart = vectors(36);
    EXPECT(dense, shared_requests, 2);
    EXPECT(dense, shared_wavefronts, 8);
    EXPECT(dense, load_requests, 1);
    EXPECT(dense, load_sectors, 16);
    EXPECT(dense, bytes_read, 512);
    EXPECT(columns, shared_wavefronts, 64);
    EXPECT(columns, shared_wavefronts_ideal, 8);
    EXPECT(apart, shared_wavefronts, 8);
    const temper_counters pairs = counts_of("pairs_through_shared", 8192, out.data, (const float*)in.data, 2u);
    const temper_counters crossed = counts_of("pairs_through_shared", 8192, out.data, (const float*)in.data, 4u);
    EXPECT(pairs, shared_wavefronts, 4);
    EXPECT(crossed, shared_wavefronts, 8);
}

void check_matrices() {
    Buffer<uint32_t> out(32);
    // 32 stores of a whole row of banks for each 128 bytes come first.
    const temper_counters dense = counts_of("load_matrices", 8192, out.data, 16u);
    const temper_counters column = counts_of("load_matrices", 8192, out.data, 128u);
    const temper_counters padded = counts_of("load_matrices", 8192, out.data, 144u);
    EXPECT(dense, shared_wavefronts, 4 + 4);
    EXPECT(column, shared_wavefronts, 32 + 32);
    EXPECT(column, shared_wavefronts_ideal, 32 + 4);
    EXPECT(padded, shared_wavefronts, 36 + 4);
}

void check_passes() {
    Floats out(32), in(64), data(64);
    const temper_counters once = counts_of("passes_over", 0, out.data, (const float*)in.data, 1u);
    const temper_counters twice = counts_of("passes_over", 0, out.data, (const float*)in.data, 2u);
    EXPECT(once, load_requests, 2);
    EXPECT(once, load_sectors, 5);
    EXPECT(once, bytes_read, 160);
    EXPECT(once, exponentials, 32);
    EXPECT(twice, load_requests, 4);
    EXPECT(twice, bytes_read, 320);
    EXPECT(twice, unique_bytes_read, 160);
    const temper_counters updated = counts_of("half_in_place", 0, data.data);
    EXPECT(updated, unique_bytes_read, 16 * 4 + 8);
    EXPECT(updated, unique_bytes_written, 34 * 4);
    unsigned char touches[256];
    temper_sim_touches(data.data, sizeof touches, touches);
    expect("what was read first", touches[0], TEMPER_READ | TEMPER_WRITTEN | TEMPER_READ_FIRST);
    expect("what was overwritten", touches[4 * 16], TEMPER_WRITTEN);
    expect("what was left alone", touches[4 * 34], 0);
}

// A case of the other files once more, counted: the numbers have to be the same.
temper_counters counts_of_case(const Case& test) {
    std::vector<float> plain, numbers;
    temper_counters counters = {};
    test.run(0, 0, plain);
    counted = &counters;
    const std::string report = test.run(0, 0, numbers);
    counted = nullptr;
    const bool same = plain.size() == numbers.size() && memcmp(plain.data(), numbers.data(), plain.size() * sizeof(float)) == 0;
    if (!report.empty() || !same) {
        printf("FAIL counts: %s changes when it is counted: %s\n", test.name, report.c_str());
        failures++;
    }
    return counters;
}

void check_cases() {
    for (const Case& test : cases()) counts_of_case(test);
    for (const Case& test : cases()) {
        if (strcmp(test.name, "parity not flipped") != 0) continue;
        const temper_counters pipeline = counts_of_case(test);
        EXPECT(pipeline, wgmma_instructions, 16);
        EXPECT(pipeline, tensor_flop, 2 * 64 * 64 * 256);
        EXPECT(pipeline, wgmma_shared_bytes, 16 * (64 + 64) * 32);
        EXPECT(pipeline, copy_engine_bytes, 2 * 64 * 256 * 2 + 64 * 64 * 4);
        EXPECT(pipeline, unique_bytes_read, 2 * 64 * 256 * 2);
        EXPECT(pipeline, bytes_written, 64 * 64 * 4);
        return;
    }
    printf("FAIL counts: the pipeline was not found\n");
    failures++;
}

}  // namespace

int check_counts() {
    if (!watched) return 0;
    check_sectors();
    check_banks();
    check_matrices();
    check_passes();
    check_cases();
    return failures;
}
