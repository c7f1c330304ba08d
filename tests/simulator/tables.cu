// The instructions that move and multiply matrices, against loops over the definition: every layout, random numbers that
// any order of summation adds exactly, the same bits under several schedules.
#include <cmath>
#include <cstring>

#include "common.cuh"
#include "harness.h"

namespace {

int failures;

void expect(bool right, const std::string& what, const std::string& report) {
    if (right && report.empty()) return;
    printf("FAIL table %s: %s\n", what.c_str(), report.empty() ? "wrong numbers" : report.c_str());
    failures++;
}

void fill(Buffer<uint16_t>& buffer, uint64_t seed) {
    Numbers random = {seed};
    for (size_t i = 0; i < buffer.count; i++) buffer[i] = bits_of(random.next());
}

float value_of(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

}  // namespace

// c (rows x columns) = a (rows x depth) b, 16 x 8 a warp, from cp.async tiles; b is columns x depth, or depth x columns
// when transposed. Depth need be no multiple of 16, rows and columns no multiple of a tile.
template <bool transposed, int loads>
__device__ void multiply_tile(const bf16* a, const bf16* b, float* c, int rows, int columns, int depth) {
    bf16* left = reinterpret_cast<bf16*>(shared_memory());
    bf16* right = left + 16 * 16;
    const int lane = threadIdx.x, row = blockIdx.y * 16, column = blockIdx.x * 8;
    float sum[4] = {};
    for (int k = 0; k < depth; k += 16) {
        const int r = row + lane / 2, at = k + lane % 2 * 8;
        copy_async_16(left + lane * 8, a + r * depth + at, r < rows && at < depth);
        if (lane < 16 && transposed) copy_async_16(right + lane * 8, b + (k + lane) * columns + column, k + lane < depth);
        if (lane < 16 && !transposed) {
            const int n = column + lane / 2;
            copy_async_16(right + lane * 8, b + n * depth + at, n < columns && at < depth);
        }
        copy_async_commit();
        copy_async_wait<0>();
        __syncwarp();
        uint32_t fa[4], fb[2];
        ldmatrix_x4(fa, left + lane % 16 * 16 + lane / 16 * 8);
        const bf16* piece = transposed ? right + lane % 16 * 8 : right + lane % 8 * 16 + lane / 8 % 2 * 8;
        if constexpr (loads == 2) {
            if constexpr (transposed) ldmatrix_x2_transposed(fb, piece);
            else ldmatrix_x2(fb, piece);
        } else {
            uint32_t four[4];
            if constexpr (transposed) ldmatrix_x4_transposed(four, piece);
            else ldmatrix_x4(four, piece);
            fb[0] = four[0];
            fb[1] = four[1];
        }
        mma_m16n8k16(sum, fa, fb);
        __syncwarp();
    }
    for (int i = 0; i < 4; i++) {
        const int r = row + lane / 4 + i / 2 * 8, n = column + lane % 4 * 2 + i % 2;
        if (r < rows && n < columns) c[r * columns + n] = sum[i];
    }
}
TEMPER_KERNEL(multiply_2, 32, const bf16* a, const bf16* b, float* c, int m, int n, int k) { multiply_tile<false, 2>(a, b, c, m, n, k); }
TEMPER_KERNEL(multiply_4, 32, const bf16* a, const bf16* b, float* c, int m, int n, int k) { multiply_tile<false, 4>(a, b, c, m, n, k); }
TEMPER_KERNEL(multiply_2_transposed, 32, const bf16* a, const bf16* b, float* c, int m, int n, int k) { multiply_tile<true, 2>(a, b, c, m, n, k); }
TEMPER_KERNEL(multiply_4_transposed, 32, const bf16* a, const bf16* b, float* c, int m, int n, int k) { multiply_tile<true, 4>(a, b, c, m, n, k); }

namespace {

void check_mma(const char* kernel, bool transposed) {
    const int rows = 37, columns = transposed ? 24 : 21, depth = 56;
    Buffer<uint16_t> a(rows * depth), b(columns * depth);
    fill(a, 1);
    fill(b, 2);
    std::vector<float> first;
    for (uint64_t seed = 0; seed < 3; seed++) {
        Buffer<float> c(rows * columns);
        const temper_launch shape = {{3, 3, 1}, {1, 1, 1}, 32, 1024, seed};
        const std::string report = launch(kernel, shape, a.data, b.data, c.data, rows, columns, depth);
        bool right = true;
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < columns; j++) {
                float sum = 0.0f;
                for (int k = 0; k < depth; k++) sum += value_of(a[i * depth + k]) * value_of(transposed ? b[k * columns + j] : b[j * depth + k]);
                right = right && sum == c[i * columns + j];
            }
        }
        expect(right, kernel, report);
    }
}

// Where a wgmma operand of `lines` x 64 lies in shared memory, and how its descriptor names it.
struct Placement {
    uint32_t span;
    bool transposed;
    int lines;
    __device__ uint32_t start(int slice) const {
        if (span == 16) return slice * 2 * (transposed ? lines / 8 * 128 : 128);
        if (transposed) return slice * 2 * 8 * span;
        return slice * 32 / span * lines * span + slice * 32 % span;
    }
    __device__ uint32_t leading() const {
        if (span == 16) return transposed ? lines / 8 * 128 : 128;
        return transposed ? 64 * span : 16;
    }
    __device__ uint32_t stride() const {
        if (span == 16) return transposed ? 128 : 8 * 128;
        return 8 * span;
    }
    __device__ Swizzle swizzle() const {
        return span == 128 ? Swizzle::bytes_128 : span == 64 ? Swizzle::bytes_64 : span == 32 ? Swizzle::bytes_32 : Swizzle::none;
    }
};

// Brings lines x 64 (or 64 x lines when transposed) to shared memory: by tile copies where there is a swizzle, else in
// pieces of 8 x 8 by ordinary stores.
__device__ void place(const Placement& placement, unsigned char* to, const TensorMap& map, const bf16* from, uint64_t* barrier) {
    const int width = placement.span / 2, lines = placement.lines;
    if (placement.span == 16) {
        for (int i = threadIdx.x; i < lines * 64; i += 128) {
            const int line = placement.transposed ? i % lines : i / 64, k = placement.transposed ? i / lines : i % 64;
            const int piece = placement.transposed ? k / 8 * (lines / 8) + line / 8 : line / 8 * 8 + k / 8;
            const int within = placement.transposed ? k % 8 * 8 + line % 8 : line % 8 * 8 + k % 8;
            reinterpret_cast<bf16*>(to)[piece * 64 + within] = from[i];
        }
        fence_proxy_async();
        return;
    }
    if (threadIdx.x != 0) return;
    mbarrier_expect(barrier, lines * 64 * 2);
    const int tiles = placement.transposed ? ceil_divide(lines, width) : 64 / width;
    for (int tile = 0; tile < tiles; tile++) {
        tma_load(to + tile * placement.span * (placement.transposed ? 64 : lines), &map, barrier, {tile * width, 0});
    }
}

// out (64 x n) = a (64 x 64) b (n x 64)^T, each operand in any layout.
template <int n, Major a_major, Major b_major>
__device__ void multiply_group(const TensorMap& a_map, const TensorMap& b_map, const bf16* a, const bf16* b, float* out,
                               uint32_t a_span, uint32_t b_span, bool in_registers) {
    unsigned char* shared = shared_memory();
    unsigned char* right = shared + 8192;
    uint64_t* barrier = reinterpret_cast<uint64_t*>(right + 32768);
    const int thread = threadIdx.x, lane = thread % 32;
    if (thread == 0) {
        mbarrier_init(barrier, 128);
        mbarrier_init_fence();
    }
    __syncthreads();
    const Placement left = {a_span, a_major == Major::mn, 64}, other = {b_span, b_major == Major::mn, n};
    if (!in_registers) place(left, shared, a_map, a, barrier);
    place(other, right, b_map, b, barrier);
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0);
    float c[n / 2];
    for (int i = 0; i < n / 2; i++) c[i] = 1.0f;
    uint32_t registers[4][4];
    for (int slice = 0; slice < 4; slice++) {
        for (int i = 0; i < 4 && in_registers; i++) {
            const int row = thread / 32 * 16 + lane / 4 + i % 2 * 8, k = slice * 16 + lane % 4 * 2 + i / 2 * 8;
            registers[slice][i] = pack_bf16(to_float(a[row * 64 + k]), to_float(a[row * 64 + k + 1]));
        }
    }
    wgmma_hold(c);
    wgmma_fence();
    for (int slice = 0; slice < 4; slice++) {
        const uint64_t b_descriptor = wgmma_descriptor(right + other.start(slice), other.swizzle(), other.leading(), other.stride());
        if (in_registers) {
            wgmma_registers<n, b_major>(c, registers[slice], b_descriptor, true);
        } else {
            const uint64_t a_descriptor = wgmma_descriptor(shared + left.start(slice), left.swizzle(), left.leading(), left.stride());
            wgmma<n, a_major, b_major>(c, a_descriptor, b_descriptor, true);
        }
        if (slice == 1) wgmma_commit();
    }
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>();
    wgmma_hold(c);
    for (int i = 0; i < n / 2; i++) {
        out[(thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8) * n + i / 4 * 8 + lane % 4 * 2 + i % 2] = c[i];
    }
}

#define GROUP_KERNEL(n, name, a_major, b_major)                                                                            \
    TEMPER_KERNEL(group_##n##_##name, 128, const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map, \
                  const bf16* a, const bf16* b, float* out, uint32_t a_span, uint32_t b_span, int in_registers) {         \
        multiply_group<n, a_major, b_major>(a_map, b_map, a, b, out, a_span, b_span, in_registers != 0);                  \
    }

}  // namespace

#define GROUP_KERNELS(n)                         \
    GROUP_KERNEL(n, kk, Major::k, Major::k)      \
    GROUP_KERNEL(n, km, Major::k, Major::mn)     \
    GROUP_KERNEL(n, mk, Major::mn, Major::k)     \
    GROUP_KERNEL(n, mm, Major::mn, Major::mn)
GROUP_KERNELS(8)
GROUP_KERNELS(64)
GROUP_KERNELS(192)

namespace {

// A map over lines x 64 values, k contiguous, or 64 x lines when transposed, in boxes of one swizzle span.
std::string encode(TensorMap& map, Buffer<uint16_t>& data, int lines, bool transposed, uint32_t span) {
    if (span == 16) return "";
    const uint64_t inner = transposed ? lines : 64, outer = transposed ? 64 : lines, sizes[2] = {inner, outer};
    const uint64_t strides[1] = {inner * 2};
    const uint32_t box[2] = {span / 2, uint32_t(outer)};
    const char* error = temper_sim_encode_tensor_map(&map, TEMPER_TENSOR_BF16, 2, data.data, sizes, strides, box, span);
    return error == nullptr ? "" : error;
}

void check_group(int n, bool a_transposed, bool b_transposed, uint32_t a_span, uint32_t b_span, bool in_registers) {
    const std::string kernel = "group_" + std::to_string(n) + "_" + (a_transposed ? "m" : "k") + (b_transposed ? "m" : "k");
    const std::string name = kernel + " spans " + std::to_string(a_span) + " " + std::to_string(b_span);
    Buffer<uint16_t> a(64 * 64), b(size_t(n) * 64);
    Buffer<float> out(size_t(64) * n);
    fill(a, 3 + n);
    fill(b, 4 + n);
    TensorMap a_map = {}, b_map = {};
    std::string report = encode(a_map, a, 64, a_transposed, a_span) + encode(b_map, b, n, b_transposed, b_span);
    const temper_launch shape = {{1, 1, 1}, {1, 1, 1}, 128, 8192 + 32768 + 16, uint64_t(a_span + b_span) % 3};
    if (report.empty()) report = launch(kernel.c_str(), shape, a_map, b_map, a.data, b.data, out.data, a_span, b_span, int(in_registers));
    bool right = true;
    for (int i = 0; i < 64; i++) {
        for (int j = 0; j < n; j++) {
            float sum = 1.0f;
            for (int k = 0; k < 64; k++) {
                sum += value_of(a_transposed ? a[k * 64 + i] : a[i * 64 + k]) * value_of(b_transposed ? b[k * n + j] : b[j * 64 + k]);
            }
            right = right && sum == out[i * n + j];
        }
    }
    expect(right, name + (in_registers ? " from registers" : ""), report);
}

void check_groups() {
    for (int n : {8, 64, 192}) {
        for (uint32_t a_span : {16u, 32u, 64u, 128u}) {
            for (uint32_t b_span : {16u, 32u, 64u, 128u}) {
                for (int majors = 0; majors < 4; majors++) {
                    const bool a_transposed = majors & 1, b_transposed = majors & 2;
                    // A line of n = 8 is shorter than a swizzle.
                    if (b_transposed && uint32_t(n) < b_span / 2) continue;
                    check_group(n, a_transposed, b_transposed, a_span, b_span, false);
                }
            }
        }
        check_group(n, false, false, 128, 128, true);
        if (n > 8) check_group(n, false, true, 128, 128, true);
    }
}

}  // namespace

// Copies one tile through shared memory: to `out` by store, to `sum` by addition.
template <int rank>
__device__ void pass_tile(const TensorMap& in, const TensorMap& out, const TensorMap& sum, const int (&at)[rank], uint32_t bytes) {
    uint64_t* barrier = reinterpret_cast<uint64_t*>(shared_memory() + 16384);
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
        prefetch_tensor_map(&in);
        mbarrier_arrive_expect(barrier, bytes);
        tma_load(shared_memory(), &in, barrier, at);
        while (!mbarrier_try_wait(barrier, 0)) {
        }
        tma_store(&out, shared_memory(), at);
        tma_reduce_add(&sum, shared_memory(), at);
        bulk_commit();
        bulk_wait<0>();
    }
}
TEMPER_KERNEL(pass_2d, 32, const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap out,
              const __grid_constant__ TensorMap sum, int x, int y, int, int, uint32_t bytes) {
    pass_tile<2>(in, out, sum, {x, y}, bytes);
}
TEMPER_KERNEL(pass_3d, 32, const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap out,
              const __grid_constant__ TensorMap sum, int x, int y, int z, int, uint32_t bytes) {
    pass_tile<3>(in, out, sum, {x, y, z}, bytes);
}
TEMPER_KERNEL(pass_4d, 32, const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap out,
              const __grid_constant__ TensorMap sum, int x, int y, int z, int w, uint32_t bytes) {
    pass_tile<4>(in, out, sum, {x, y, z, w}, bytes);
}

namespace {

// A tile that reaches over every edge passes unchanged, whatever the swizzle, and what lies outside is left alone.
template <typename T>
void check_pass(int rank, uint32_t swizzle, int type) {
    const uint64_t sizes[4] = {24, 7, rank > 2 ? 5u : 1u, rank > 3 ? 3u : 1u};
    const uint32_t box[4] = {uint32_t(32 / sizeof(T)), 4, 3, 2};
    uint64_t strides[3] = {24 * sizeof(T), 24 * 7 * sizeof(T), 24 * 7 * 5 * sizeof(T)};
    const size_t count = 24 * 7 * sizes[2] * sizes[3];
    uint32_t bytes = sizeof(T);
    for (int i = 0; i < rank; i++) bytes *= box[i];
    const int corners[3][4] = {{0, 0, 0, 0}, {-8, -2, -1, -1}, {16, 5, 3, 2}};
    for (const auto& at : corners) {
        Buffer<T> in(count), out(count), sum(count);
        Numbers random = {uint64_t(swizzle + rank)};
        for (size_t i = 0; i < count; i++) {
            const float value = random.next();
            if constexpr (sizeof(T) == 2) in[i] = bits_of(value);
            else in[i] = value;
            sum[i] = in[i];
        }
        TensorMap maps[3];
        T* data[3] = {in.data, out.data, sum.data};
        std::string report;
        for (int i = 0; i < 3; i++) {
            const char* error = temper_sim_encode_tensor_map(&maps[i], type, uint32_t(rank), data[i], sizes, strides, box, swizzle);
            if (error != nullptr) report = error;
        }
        const std::string kernel = "pass_" + std::to_string(rank) + "d";
        if (report.empty()) {
            report = launch(kernel.c_str(), {{1, 1, 1}, {1, 1, 1}, 32, 16392, swizzle}, maps[0], maps[1], maps[2], at[0], at[1], at[2], at[3], bytes);
        }
        bool right = true;
        for (size_t i = 0; i < count; i++) {
            const int index[4] = {int(i % 24), int(i / 24 % 7), int(i / 168 % 5), int(i / 840)};
            bool inside = true;
            for (int d = 0; d < rank; d++) inside = inside && index[d] >= at[d] && index[d] < at[d] + int(box[d]);
            float have, added, source;
            if constexpr (sizeof(T) == 2) have = value_of(out[i]), added = value_of(sum[i]), source = value_of(in[i]);
            else have = out[i], added = sum[i], source = in[i];
            right = right && (inside ? have == source && added == 2 * source : have != have && added == source);
        }
        expect(right, kernel + " swizzle " + std::to_string(swizzle), report);
    }
}

}  // namespace

// Two blocks of a cluster: each tells the other, through a remote arrival, that it may go on.
TEMPER_KERNEL(pair_of_blocks, 64, float* out) {
    uint64_t* barrier = reinterpret_cast<uint64_t*>(shared_memory());
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 64);
        mbarrier_init_fence();
    }
    cluster_sync();
    out[blockIdx.x * 64 + threadIdx.x] = float(cluster_rank());
    mbarrier_arrive_remote(barrier, cluster_rank() ^ 1);
    mbarrier_wait(barrier, 0);
    out[128 + blockIdx.x * 64 + threadIdx.x] = out[(blockIdx.x ^ 1) * 64 + threadIdx.x];
    cluster_sync();
}

namespace {

void check_cluster() {
    for (uint64_t seed = 0; seed < 3; seed++) {
        Buffer<float> out(256);
        const std::string report = launch("pair_of_blocks", {{2, 1, 1}, {2, 1, 1}, 64, 64, seed}, out.data);
        bool right = true;
        for (int i = 0; i < 64; i++) right = right && out[i] == 0 && out[64 + i] == 1 && out[128 + i] == 1 && out[192 + i] == 0;
        expect(right, "pair_of_blocks", report);
    }
}

void check_maps() {
    TensorMap map;
    Buffer<uint16_t> data(4096);
    const uint64_t sizes[2] = {64, 64}, strides[1] = {128}, odd[1] = {120};
    const uint32_t box[2] = {64, 64}, large[2] = {64, 257}, narrow[2] = {4, 64};
    const auto refused = [&](const char* error, const char* words) {
        expect(error != nullptr && strstr(error, words) != nullptr, std::string("tensor map: ") + words, "");
    };
    refused(temper_sim_encode_tensor_map(&map, 0, 2, data.data + 1, sizes, strides, box, 128), "base address");
    refused(temper_sim_encode_tensor_map(&map, 0, 2, data.data, sizes, odd, box, 128), "stride");
    refused(temper_sim_encode_tensor_map(&map, 0, 2, data.data, sizes, strides, large, 128), "box");
    refused(temper_sim_encode_tensor_map(&map, 0, 2, data.data, sizes, strides, narrow, 128), "16 bytes");
    refused(temper_sim_encode_tensor_map(&map, 0, 2, data.data, sizes, strides, box, 64), "exceeds the swizzle");
    refused(temper_sim_encode_tensor_map(&map, 0, 5, data.data, sizes, strides, box, 64), "dimensions");
}

}  // namespace

int check_tables() {
    for (const char* kernel : {"multiply_2", "multiply_4"}) check_mma(kernel, false);
    for (const char* kernel : {"multiply_2_transposed", "multiply_4_transposed"}) check_mma(kernel, true);
    check_groups();
    for (int rank = 2; rank <= 4; rank++) {
        for (uint32_t swizzle : {0u, 32u, 64u, 128u}) {
            check_pass<uint16_t>(rank, swizzle, TEMPER_TENSOR_BF16);
            check_pass<float>(rank, swizzle, TEMPER_TENSOR_F32);
        }
    }
    check_cluster();
    check_maps();
    return failures;
}
