// The matrix product of any shape: C = alpha op(A) op(B) + beta C, beta 0 or 1, sums in f32.
//
// Shapes: op(A) [m, k], op(B) [k, n], C [m, n], row-major with a leading dimension each. Three layouts:
//   nt  A [m, k], B [n, k]   y = x w^T           (a linear layer; the logits)
//   nn  A [m, k], B [k, n]   dx = dy w
//   tn  A [k, m], B [k, n]   dw += dy^T x        (the meta-gradient accumulates here: f32 C, alpha, beta = 1)
// Dtypes: bf16 A and B with bf16 C (gemm_*_bf16) or f32 C (gemm_*_bf16_to_f32), by tensor cores; f32 throughout
// (gemm_*_f32), by fused multiply-adds: no tf32. `_unaligned`: rows that do not all start at multiples of 16 bytes.
// `live` may name a number on the device: then only rows first_live.. below it exist, of C (nt, nn) or of both
// operands (tn). The loss head uses it to leave out tokens that the host does not know to be dead.
//
// bf16 launch: 256 threads for a tile of 128 x 128, k in steps of 32; grid = tiles, in bands of 8 tile rows, so that
//   blocks which run together share operands in L2. 8 warps as 2 x 4, each 64 x 32: 16 mma for 6 ldmatrix every 16 k.
// bf16 shared memory, 64 KiB: four stages of [A tile 8 KiB | B tile 8 KiB], each [128][32] or, where k runs along
//   memory's rows, [32][128]; swizzled (product_tile.cuh). Three stages are on their way while one is multiplied.
// bf16 registers: 64 accumulators, 16 + 4 of fragments, addresses; at most 128, so that two blocks share a
//   multiprocessor.
// f32 launch: 256 threads for a tile of 128 x 128, k in steps of 8; 8 x 8 numbers a thread as 2 x 2 quadrants of 4 x 4,
//   so that 16-byte reads of shared memory meet no bank conflict. Shared memory, 16.5 KiB: two stages of
//   [A 8 x 132 | B 8 x 132], k-major. Registers: 64 accumulators, 16 operands, 8 on their way from memory; 139 at most.
// Floor: 2 m n k FLOP; (m k + k n) element bytes in, m n out, twice m n with beta = 1.
// Deterministic: one block sums a whole element of C, in ascending k.
// Rejected: split-K (a second pass, or sums in an order of arrival; our shapes have tiles enough); a tile of 256 x 128
//   (its accumulators leave one block a multiprocessor, and the library is the fast path anyway); C by way of shared
//   memory (f32 pairs of a quad fill 32-byte sectors already, bf16 half sectors meet in L2); wgmma (sm_90a only, where
//   the library is present when speed matters). None of these was measured.

#include "product_tile.cuh"

namespace {

constexpr int threads = gemm_threads;
constexpr int tile = gemm_tile;
constexpr int stages = gemm_stages;
constexpr int step = gemm_step;
constexpr int band = 8;

struct Product {
    uint32_t m, n, k;
    uint64_t a_leading, b_leading, c_leading;
    float alpha;
    bool accumulate;
};

// Leaves out what lies beyond the live rows. False when nothing is left to do.
__device__ __forceinline__ bool restrict_rows(uint32_t& rows, const uint32_t* live, uint32_t first_live) {
    if (live == nullptr) return true;
    const uint32_t count = *live;
    rows = min(rows, count > first_live ? count - first_live : 0u);
    return rows != 0;
}

// The tile of this block: bands of 8 tile rows, walked column by column.
__device__ __forceinline__ void place(const Product& p, uint32_t& row, uint32_t& column) {
    const uint32_t tile_rows = ceil_divide(p.m, tile), tile_columns = ceil_divide(p.n, tile);
    const uint32_t in_band = band * tile_columns, first = blockIdx.x / in_band * band;
    const uint32_t height = min(uint32_t(band), tile_rows - first), index = blockIdx.x % in_band;
    row = (first + index % height) * tile;
    column = index / height * tile;
}

// A tile of an operand: k along its columns, or along its rows where `strided`.
template <bool strided>
using OperandTile = Tile<strided ? step : tile, strided ? tile : step>;

template <bool strided, bool aligned>
__device__ __forceinline__ void copy_operand(unsigned char* shared, const PlainRows& rows, uint32_t outer, uint32_t k,
                                             uint32_t outer_count, uint32_t k_count) {
    if constexpr (strided) {
        copy_tile<OperandTile<true>, threads, aligned>(shared, rows, k, outer, k_count, outer_count);
    } else {
        copy_tile<OperandTile<false>, threads, aligned>(shared, rows, outer, k, outer_count, k_count);
    }
}

template <bool a_strided, bool b_strided>
__device__ __forceinline__ void multiply_stage(float (&sum)[4][4][4], const unsigned char* a_tile,
                                               const unsigned char* b_tile, int row, int column, int lane) {
#pragma unroll
    for (int k = 0; k < step; k += 16) {
        uint32_t a[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            load_fragment<OperandTile<a_strided>, a_strided, true>(a[i], a_tile, row + 16 * i, k, lane);
        }
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint32_t b[4];
            load_fragment<OperandTile<b_strided>, b_strided, false>(b, b_tile, column + 8 * j, k, lane);
#pragma unroll
            for (int i = 0; i < 4; i++) multiply_pair(sum[i][j], sum[i][j + 1], a[i], b);
        }
    }
}

template <typename Out>
__device__ __forceinline__ void store_sums(const float (&sum)[4][4][4], const Product& p, Out* c, uint32_t row,
                                           uint32_t column, int lane) {
    const bool pairs = allows_pairs(c, p.c_leading);
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t at_row = row + 16 * i + 8 * half + lane / 4;
            if (at_row >= p.m) continue;
            Out* line = c + at_row * p.c_leading;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t at = column + 8 * j + lane % 4 * 2;
                if (at >= p.n) continue;
                put_pair(line + at, p.alpha * sum[i][j][2 * half], p.alpha * sum[i][j][2 * half + 1], p.accumulate,
                         pairs, at + 1 < p.n);
            }
        }
    }
}

template <bool a_strided, bool b_strided, bool aligned, typename Out>
__device__ void multiply_bf16(Product p, const bf16* a, const bf16* b, Out* c, const uint32_t* live,
                              uint32_t first_live) {
    uint32_t row, column;
    place(p, row, column);
    if (!restrict_rows(a_strided ? p.k : p.m, live, first_live) || row >= p.m) return;

    constexpr int a_bytes = OperandTile<a_strided>::bytes, stage_bytes = a_bytes + OperandTile<b_strided>::bytes;
    static_assert(stages * stage_bytes == gemm_bf16_bytes, "the launcher gives a block what its layout needs");
    unsigned char* shared = shared_memory();
    const PlainRows a_rows{a, p.a_leading}, b_rows{b, p.b_leading};
    const uint32_t steps = ceil_divide(p.k, step);
    auto fetch = [&](uint32_t index) {
        if (index < steps) {
            unsigned char* stage = shared + index % stages * stage_bytes;
            copy_operand<a_strided, aligned>(stage, a_rows, row, index * step, p.m, p.k);
            copy_operand<b_strided, aligned>(stage + a_bytes, b_rows, column, index * step, p.n, p.k);
        }
        copy_async_commit();
    };
#pragma unroll
    for (int index = 0; index < stages - 1; index++) fetch(index);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
    float sum[4][4][4] = {};
    for (uint32_t index = 0; index < steps; index++) {
        copy_async_wait<stages - 2>();
        // Behind it every thread's part of this stage is there, and the stage before it is free to be filled again.
        __syncthreads();
        fetch(index + stages - 1);
        const unsigned char* stage = shared + index % stages * stage_bytes;
        multiply_stage<a_strided, b_strided>(sum, stage, stage + a_bytes, warp_row, warp_column, lane);
    }
    copy_async_wait<0>();
    store_sums(sum, p, c, row + warp_row, column + warp_column, lane);
}

// ---- f32 ----

constexpr int f32_step = gemm_f32_step;
constexpr int f32_stride = gemm_f32_stride;
constexpr int f32_loads = tile * f32_step / threads;

// The elements of an operand's tile that this thread carries: neighbours in memory to neighbouring threads.
template <bool strided>
__device__ __forceinline__ void f32_spot(int i, int& outer, int& k) {
    const int thread = threadIdx.x;
    outer = strided ? thread % tile : thread / f32_step + i * (threads / f32_step);
    k = strided ? thread / tile + i * (threads / tile) : thread % f32_step;
}

template <bool strided>
__device__ __forceinline__ void f32_fetch(float (&held)[f32_loads], const float* from, uint64_t leading, uint32_t outer,
                                          uint32_t k, uint32_t outer_count, uint32_t k_count) {
#pragma unroll
    for (int i = 0; i < f32_loads; i++) {
        int in_outer, in_k;
        f32_spot<strided>(i, in_outer, in_k);
        const uint32_t at = outer + in_outer, at_k = k + in_k;
        const bool inside = at < outer_count && at_k < k_count;
        held[i] = inside ? from[strided ? at_k * leading + at : at * leading + at_k] : 0.0f;
    }
}

template <bool strided>
__device__ __forceinline__ void f32_keep(float* shared, const float (&held)[f32_loads]) {
#pragma unroll
    for (int i = 0; i < f32_loads; i++) {
        int in_outer, in_k;
        f32_spot<strided>(i, in_outer, in_k);
        shared[in_k * f32_stride + in_outer] = held[i];
    }
}

__device__ __forceinline__ void f32_multiply(float (&sum)[8][8], const float* a_tile, const float* b_tile) {
    const int thread_row = threadIdx.x / 16 * 4, thread_column = threadIdx.x % 16 * 4;
#pragma unroll
    for (int k = 0; k < f32_step; k++) {
        Vector<float, 4> a[2], b[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            a[half] = load_vector<float, 4>(a_tile + k * f32_stride + 64 * half + thread_row);
            b[half] = load_vector<float, 4>(b_tile + k * f32_stride + 64 * half + thread_column);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i][j] += a[i / 4].value[i % 4] * b[j / 4].value[j % 4];
        }
    }
}

template <bool a_strided, bool b_strided>
__device__ void multiply_f32(Product p, const float* a, const float* b, float* c, const uint32_t* live,
                             uint32_t first_live) {
    uint32_t row, column;
    place(p, row, column);
    if (!restrict_rows(a_strided ? p.k : p.m, live, first_live) || row >= p.m) return;

    constexpr int operand = f32_step * f32_stride;
    static_assert(2 * 2 * operand * 4 == gemm_f32_bytes, "the launcher gives a block what its layout needs");
    float* shared = reinterpret_cast<float*>(shared_memory());
    float a_held[f32_loads], b_held[f32_loads];
    float sum[8][8] = {};
    f32_fetch<a_strided>(a_held, a, p.a_leading, row, 0, p.m, p.k);
    f32_fetch<b_strided>(b_held, b, p.b_leading, column, 0, p.n, p.k);
    int stage = 0;
    for (uint32_t k = 0; k < p.k; k += f32_step, stage ^= 1) {
        float *a_tile = shared + stage * 2 * operand, *b_tile = a_tile + operand;
        f32_keep<a_strided>(a_tile, a_held);
        f32_keep<b_strided>(b_tile, b_held);
        // One barrier a step is enough: the stage written next was last read before the barrier of this step.
        __syncthreads();
        f32_fetch<a_strided>(a_held, a, p.a_leading, row, k + f32_step, p.m, p.k);
        f32_fetch<b_strided>(b_held, b, p.b_leading, column, k + f32_step, p.n, p.k);
        f32_multiply(sum, a_tile, b_tile);
    }
    const uint32_t first_row = row + threadIdx.x / 16 * 4, first_column = column + threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t at_row = first_row + i / 4 * 64 + i % 4;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const uint32_t at = first_column + j / 4 * 64 + j % 4;
            if (at_row >= p.m || at >= p.n) continue;
            float* target = c + at_row * p.c_leading + at;
            *target = p.accumulate ? p.alpha * sum[i][j] + *target : p.alpha * sum[i][j];
        }
    }
}

}  // namespace

#define TEMPER_GEMM(name, In, Out, body)                                                                             \
    TEMPER_KERNEL(name, 256, uint32_t m, uint32_t n, uint32_t k, const In* a, uint64_t a_leading, const In* b,       \
                  uint64_t b_leading, Out* c, uint64_t c_leading, float alpha, uint32_t accumulate,                  \
                  const uint32_t* live, uint32_t first_live) {                                                       \
        body(Product{m, n, k, a_leading, b_leading, c_leading, alpha, accumulate != 0}, a, b, c, live, first_live); \
    }

// A of layout t, B of layout n and the like: whether k runs along memory's rows.
#define TEMPER_GEMM_LAYOUT(layout, a_strided, b_strided)                                                               \
    TEMPER_GEMM(gemm_##layout##_bf16, bf16, bf16, (multiply_bf16<a_strided, b_strided, true, bf16>))                   \
    TEMPER_GEMM(gemm_##layout##_bf16_unaligned, bf16, bf16, (multiply_bf16<a_strided, b_strided, false, bf16>))        \
    TEMPER_GEMM(gemm_##layout##_bf16_to_f32, bf16, float, (multiply_bf16<a_strided, b_strided, true, float>))          \
    TEMPER_GEMM(gemm_##layout##_bf16_to_f32_unaligned, bf16, float, (multiply_bf16<a_strided, b_strided, false, float>)) \
    TEMPER_GEMM(gemm_##layout##_f32, float, float, (multiply_f32<a_strided, b_strided>))

TEMPER_GEMM_LAYOUT(nt, false, false)
TEMPER_GEMM_LAYOUT(nn, false, true)
TEMPER_GEMM_LAYOUT(tn, true, true)
