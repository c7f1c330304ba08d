// Low-rank adapters on a fused linear layer: several slices, each y[:, columns] += scale (dropout(x) a^T) b^T, share x.
//
// x, dx [T, in]; y, dy [T, out]; a_i [r_i, in]; b_i [out_i, r_i]; s, ds [T, R], R the sum of the r_i: all bf16 or all
// f32. Gradients of a and b are f32 and added to. With m the mask of kept elements and c = 1 / (1 - p):
//   down             s = c (m x) [a_1; a_2; ..]^T                         reads x once for 64 columns of s
//   rank_gradients   ds_i = scale dy_i b_i, db_i += scale dy_i^T s_i      one pass over dy for 32 columns of s
//   factor_gradients da_i += c ds_i^T (m x)                               reads x once for 64 columns of s
//   input_gradient   dx += c m (ds [a_1; a_2; ..])                        one read and one write of dx
//   sum_parts        adds up, in order, what blocks of the second and third left in scratch
// y += scale s b^T is a plain product with beta = 1 (gemm.cu or the library): it reads and writes y once, its floor.
// These kernels are bf16, with rows aligned to 16 bytes and up to 4 slices. f32, and what is not aligned, goes through
// whole products, for which `drop` writes m x and `add_kept` adds c m (ds a).
//
// The mask: element i of x is kept if word i % 4 of the Philox block (i / 4, site, step) is not below p 2^32: on the
// CPU the same, bit for bit. Elements are zeroed in shared memory, in the chunks of 8 that a thread copied itself: no
// barrier is added, and a block of Philox is computed once a pass. c multiplies f32 sums, so no element is rounded for
// it.
//
// down: 256 threads for 32 tokens x 64 columns of s, `in` in steps of 64; 8 warps as 2 (16 tokens) x 4 (16 of a step),
//   which meet in shared memory at the end. Shared memory, 48 KiB: four stages of [x 32 x 64 | a 64 x 64]; afterwards
//   the four parts of the sums, 32 x 72 f32 each. Registers: 32 accumulators, 87 in all at most. Floor: 2 T in bytes; a
//   comes from L2 once for 32 tokens.
// rank_gradients, factor_gradients: 128 threads for a rectangle of `token_range` tokens x (256 columns of dy | 128 of
//   x), walked in tiles of 64 x 64; a warp has 16 tokens of ds and 16 columns of db (of da). Sums over tokens stay in
//   registers (64 accumulators); those over columns last for a row of tiles (16). Shared memory, 60 | 56 KiB: four
//   stages of a tile, 8 KiB each; three tiles of s | ds, 64 x (32 | 64); b, 256 x 32. Registers: 168 at most, so three
//   blocks share a multiprocessor of sm_90 (two of sm_80, for want of shared memory). Floor: 2 bytes for each element of
//   dy (of x); above it, 4 r / token_range + 4 r / 256 bytes of parts for each, written and read (4 r / token_range alone
//   for x).
// input_gradient: 256 threads for 64 tokens x 128 columns, R in steps of 64; 8 warps as 4 x 2. Shared memory, 34 KiB:
//   [ds 64 x 64 | a 64 x 128]; afterwards the f32 sums, 64 x 136, from which dx is changed in vectors of 16 bytes.
//   Registers: 32 accumulators, 93 in all at most. Floor: 4 T in bytes.
// Tiles are swizzled (product_tile.cuh). FLOP: 2 T r (in + out) forward, 4 T r (in + out) backward: for r up to 64 far
// below the time of the bytes.
// Deterministic: each block sums in a fixed order, and the parts are added in order.
// Rejected: atomics on da and db (their order shows); the mask on fragments (a lane has 2 of the 4 elements of a Philox
// block: twice the work, or shuffles, and another arrangement for each layout); a block that keeps db for all tokens
// (its parts of ds would be as large as dy); a copy of dropout(x) (a write and two reads of x more). None was measured.

#include "philox.cuh"
#include "product_tile.cuh"

namespace {

struct Dropout {
    uint32_t key0, key1, site, step;
    uint32_t limit;

    // Bit i: whether element 4 block + i is kept.
    __device__ __forceinline__ uint32_t kept(uint64_t block) const {
        const uint4 words = philox(make_uint4(uint32_t(block), uint32_t(block >> 32), site, step), key0, key1);
        return uint32_t(words.x >= limit) | uint32_t(words.y >= limit) << 1 | uint32_t(words.z >= limit) << 2 |
               uint32_t(words.w >= limit) << 3;
    }
};

// ---- whole-product path ----

constexpr int threads = 256;

// out = x where it is kept, else 0. Not scaled: the product's alpha does that, so that nothing is rounded twice.
template <typename T>
__device__ void drop(const T* x, T* out, uint64_t elements, Dropout dropout) {
    const uint64_t block = uint64_t(blockIdx.x) * threads + threadIdx.x;
    if (block * 4 >= elements) return;
    const uint32_t kept = dropout.kept(block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t at = block * 4 + i;
        if (at < elements) out[at] = kept >> i & 1 ? x[at] : T{};
    }
}

// out += scale * x where it is kept.
template <typename T>
__device__ void add_kept(const float* x, T* out, uint64_t elements, float scale, Dropout dropout) {
    const uint64_t block = uint64_t(blockIdx.x) * threads + threadIdx.x;
    if (block * 4 >= elements) return;
    const uint32_t kept = dropout.kept(block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint64_t at = block * 4 + i;
        if (at < elements && kept >> i & 1) out[at] = from_float<T>(to_float(out[at]) + scale * x[at]);
    }
}

// ---- fused path: bf16, rows aligned to 16 bytes ----

constexpr int stages = lora_stages;
static_assert(lora_tile == 64 && lora_down_tokens == 32 && lora_down_threads == 256 && lora_rectangle_threads == 128 &&
                  lora_input_threads == 256 && lora_input_columns == 128,
              "the warps below divide just these tiles");

// The rows of up to four matrices of one width, one below the other. `end` is the number of rows up to and with each.
struct StackedRows {
    const bf16 *first0, *first1, *first2, *first3;
    uint32_t end0, end1, end2;
    uint64_t leading;
    __device__ __forceinline__ const bf16* operator()(uint32_t row) const {
        if (row < end0) return first0 + row * leading;
        if (row < end1) return first1 + (row - end0) * leading;
        if (row < end2) return first2 + (row - end1) * leading;
        return first3 + (row - end2) * leading;
    }
};

// Bit i: whether element (row, column + i) of x is kept, for 8 elements. `width` and `column` are multiples of 8.
__device__ __forceinline__ uint32_t kept_of_eight(const Dropout& dropout, uint32_t row, uint32_t column,
                                                  uint32_t width) {
    const uint64_t block = (uint64_t(row) * width + column) / 4;
    return dropout.kept(block) | dropout.kept(block + 1) << 4;
}

// Zeroes the dropped elements of a tile of x. Each thread takes the chunks that it copied itself with copy_tile, so it
// may do this between its own wait and the barrier that shows the tile to the others.
template <typename Shape, int thread_count>
__device__ __forceinline__ void drop_tile(unsigned char* tile, const Dropout& dropout, uint32_t row, uint32_t column,
                                          uint32_t width) {
    constexpr int total = Shape::rows * Shape::chunks;
    static_assert(total % thread_count == 0, "every thread has as many chunks");
#pragma unroll
    for (int first = 0; first < total; first += thread_count) {
        const int index = first + int(threadIdx.x), tile_row = index / Shape::chunks, chunk = index % Shape::chunks;
        uint4* eight = reinterpret_cast<uint4*>(tile + Shape::offset(tile_row, chunk));
        const uint32_t kept = kept_of_eight(dropout, row + tile_row, column + chunk * 8, width);
        auto mask = [&](int i) { return (kept >> i & 1 ? 0xffffu : 0u) | (kept >> i & 2 ? 0xffff0000u : 0u); };
        const uint4 all = *eight;
        *eight = make_uint4(all.x & mask(0), all.y & mask(2), all.z & mask(4), all.w & mask(6));
    }
}

using DownInput = Tile<lora_down_tokens, lora_tile>;
using DownFactor = Tile<lora_tile, lora_tile>;
// As sum_stride, below.
constexpr int down_stride = 72;

template <bool dropping>
__device__ void down(const bf16* x, uint32_t tokens, uint32_t input, uint32_t ranks, StackedRows a, bf16* s,
                     float scale, Dropout dropout) {
    constexpr int stage_bytes = DownInput::bytes + DownFactor::bytes;
    static_assert(stages * stage_bytes == lora_down_bytes && 4 * 32 * down_stride * 4 <= lora_down_bytes,
                  "the launcher gives a block what its layout needs");
    const uint32_t rank_tiles = ceil_divide(ranks, 64);
    const uint32_t token = blockIdx.x / rank_tiles * 32, rank = blockIdx.x % rank_tiles * 64;
    const uint32_t steps = ceil_divide(input, 64);
    const PlainRows x_rows{x, input};
    unsigned char* shared = shared_memory();
    auto fetch = [&](uint32_t index) {
        if (index < steps) {
            unsigned char* stage = shared + index % stages * stage_bytes;
            copy_tile<DownInput, 256, true>(stage, x_rows, token, index * 64, tokens, input);
            copy_tile<DownFactor, 256, true>(stage + DownInput::bytes, a, rank, index * 64, ranks, input);
        }
        copy_async_commit();
    };
#pragma unroll
    for (int index = 0; index < stages - 1; index++) fetch(index);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warp_token = warp % 2 * 16, part = warp / 2;
    float sum[8][4] = {};
    for (uint32_t index = 0; index < steps; index++) {
        unsigned char* stage = shared + index % stages * stage_bytes;
        copy_async_wait<stages - 2>();
        if (dropping) drop_tile<DownInput, 256>(stage, dropout, token, index * 64, input);
        __syncthreads();
        fetch(index + stages - 1);
        uint32_t left[4], right[4];
        load_fragment<DownInput, false, true>(left, stage, warp_token, part * 16, lane);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            load_fragment<DownFactor, false, false>(right, stage + DownInput::bytes, 16 * j, part * 16, lane);
            multiply_pair(sum[2 * j], sum[2 * j + 1], left, right);
        }
    }
    copy_async_wait<0>();
    __syncthreads();

    // The four warps of the same tokens each have a part of the sum.
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp_token + lane / 4 + 8 * half, column = 8 * j + lane % 4 * 2;
            store_vector<float, 2>(sums + (part * 32 + row) * down_stride + column,
                                   Vector<float, 2>{{sum[j][2 * half], sum[j][2 * half + 1]}});
        }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < 32 * 64; index += 256) {
        const uint32_t at_token = token + index / 64, at_rank = rank + index % 64;
        if (at_token >= tokens || at_rank >= ranks) continue;
        const float* first = sums + index / 64 * down_stride + index % 64;
        constexpr int next = 32 * down_stride;
        const float total = ((first[0] + first[next]) + first[2 * next]) + first[3 * next];
        s[at_token * uint64_t(ranks) + at_rank] = from_float<bf16>(scale * total);
    }
}

// Parts of wide^T low, for wide [T, columns] (dy or x) and low [T, R] (s or ds), and where `with_low` of wide factor,
// for factor [columns, R]. wide_parts: [token range][columns][R], or [token range][R][columns] where not `with_low`;
// low_parts: [column block][T][R].
struct Rectangle {
    const bf16* wide;
    uint64_t wide_leading;
    uint32_t tokens, columns;
    const bf16* low;
    uint64_t low_leading;
    uint32_t ranks;
    const bf16* factor;
    float *wide_parts, *low_parts;
    uint32_t token_range;
    bool aligned_ranks;
};

using WideTile = Tile<lora_tile, lora_tile>;

// Tiles with ranks along their rows: three of `low`, then those of the factor.
template <int rank_tile, int factor_tiles>
struct RectangleTiles {
    using Low = Tile<lora_tile, rank_tile>;
    static_assert(stages * WideTile::bytes + (3 + factor_tiles) * Low::bytes ==
                      lora_rectangle_bytes(rank_tile, factor_tiles),
                  "the launcher gives a block what its layout needs");
};

// A tile with ranks along its rows, which are aligned only where the ranks are so.
template <typename Shape>
__device__ __forceinline__ void copy_ranks(unsigned char* shared, const bf16* from, uint64_t leading, uint32_t row,
                                           uint32_t rank, uint32_t rows, uint32_t ranks, bool aligned) {
    if (aligned) copy_tile<Shape, 128, true>(shared, PlainRows{from, leading}, row, rank, rows, ranks);
    else copy_tile<Shape, 128, false>(shared, PlainRows{from, leading}, row, rank, rows, ranks);
}

// Two neighbours of a row of parts, as far as they exist.
__device__ __forceinline__ void store_part(float* row, uint32_t rank, uint32_t ranks, float first, float second) {
    if (rank < ranks) row[rank] = first;
    if (rank + 1 < ranks) row[rank + 1] = second;
}

template <int rank_tile, int tiles, bool with_low, bool dropping>
__device__ void rectangle(Rectangle p, Dropout dropout) {
    using LowTile = typename RectangleTiles<rank_tile, with_low ? tiles : 0>::Low;
    constexpr int rank_groups = rank_tile / 16;
    const uint32_t column = blockIdx.x * (tiles * 64), rank = blockIdx.z * rank_tile;
    const uint32_t token = blockIdx.y * p.token_range;
    const uint32_t token_end = min(p.tokens, token + p.token_range), rows_of_tiles = ceil_divide(token_end - token, 64);
    const PlainRows wide_rows{p.wide, p.wide_leading};
    unsigned char* shared = shared_memory();
    unsigned char *low_tiles = shared + stages * WideTile::bytes, *factor_tiles = low_tiles + 3 * LowTile::bytes;
    auto fetch = [&](uint32_t index) {
        const uint32_t row = index / tiles, tile = index % tiles, at = token + row * 64;
        if (row < rows_of_tiles) {
            copy_tile<WideTile, 128, true>(shared + index % stages * WideTile::bytes, wide_rows, at, column + tile * 64,
                                           token_end, p.columns);
            // Three tiles of `low`: the one in use, and of those on their way at most two are of later rows.
            if (tile == 0) {
                copy_ranks<LowTile>(low_tiles + row % 3 * LowTile::bytes, p.low, p.low_leading, at, rank, token_end,
                                    p.ranks, p.aligned_ranks);
            }
        }
        copy_async_commit();
    };
    if (with_low) {
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            copy_ranks<LowTile>(factor_tiles + tile * LowTile::bytes, p.factor, p.ranks, column + tile * 64, rank,
                                p.columns, p.ranks, p.aligned_ranks);
        }
    }
#pragma unroll
    for (int index = 0; index < stages - 1; index++) fetch(index);

    const int lane = threadIdx.x % 32, outer = threadIdx.x / 32 * 16;
    const uint32_t in_row = lane / 4, in_rank = rank + lane % 4 * 2;
    float wide_sum[tiles][2 * rank_groups][4] = {};
    for (uint32_t row = 0; row < rows_of_tiles; row++) {
        float low_sum[2 * rank_groups][4] = {};
        const unsigned char* low_tile = low_tiles + row % 3 * LowTile::bytes;
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            const uint32_t index = row * tiles + tile;
            unsigned char* wide_tile = shared + index % stages * WideTile::bytes;
            copy_async_wait<stages - 2>();
            if (dropping) {
                drop_tile<WideTile, 128>(wide_tile, dropout, token + row * 64, column + tile * 64, p.columns);
            }
            __syncthreads();
            fetch(index + stages - 1);
#pragma unroll
            for (int k = 0; k < 64; k += 16) {
                uint32_t left[4], right[4];
                load_fragment<WideTile, true, true>(left, wide_tile, outer, k, lane);
#pragma unroll
                for (int j = 0; j < rank_groups; j++) {
                    load_fragment<LowTile, true, false>(right, low_tile, 16 * j, k, lane);
                    multiply_pair(wide_sum[tile][2 * j], wide_sum[tile][2 * j + 1], left, right);
                }
                if constexpr (with_low) {
                    const unsigned char* factor_tile = factor_tiles + tile * LowTile::bytes;
                    load_fragment<WideTile, false, true>(left, wide_tile, outer, k, lane);
#pragma unroll
                    for (int j = 0; j < rank_groups; j++) {
                        load_fragment<LowTile, true, false>(right, factor_tile, 16 * j, k, lane);
                        multiply_pair(low_sum[2 * j], low_sum[2 * j + 1], left, right);
                    }
                }
            }
        }
        if constexpr (with_low) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t at = token + row * 64 + outer + in_row + 8 * half;
                if (at >= token_end) continue;
                float* line = p.low_parts + (uint64_t(blockIdx.x) * p.tokens + at) * p.ranks;
#pragma unroll
                for (int j = 0; j < 2 * rank_groups; j++) {
                    store_part(line, in_rank + 8 * j, p.ranks, low_sum[j][2 * half], low_sum[j][2 * half + 1]);
                }
            }
        }
    }
    copy_async_wait<0>();
    if (p.wide_parts == nullptr) return;
    float* parts = p.wide_parts + uint64_t(blockIdx.y) * p.columns * p.ranks;
#pragma unroll
    for (int tile = 0; tile < tiles; tile++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t at = column + tile * 64 + outer + in_row + 8 * half;
            if (at >= p.columns) continue;
#pragma unroll
            for (int j = 0; j < 2 * rank_groups; j++) {
                const float first = wide_sum[tile][j][2 * half], second = wide_sum[tile][j][2 * half + 1];
                const uint32_t at_rank = in_rank + 8 * j;
                if (with_low) {
                    store_part(parts + uint64_t(at) * p.ranks, at_rank, p.ranks, first, second);
                } else {
                    if (at_rank < p.ranks) parts[uint64_t(at_rank) * p.columns + at] = first;
                    if (at_rank + 1 < p.ranks) parts[uint64_t(at_rank + 1) * p.columns + at] = second;
                }
            }
        }
    }
}

// out[row, column] = scale times the sum of the parts, each rows x columns and `stride` apart; f32 adds to what is
// there.
template <typename T>
__device__ void sum_parts(const float* parts, uint64_t stride, uint32_t count, uint64_t elements, uint32_t columns,
                          T* out, uint64_t leading, float scale) {
    const uint64_t index = uint64_t(blockIdx.x) * threads + threadIdx.x;
    if (index >= elements) return;
    float sum = 0.0f;
    for (uint32_t part = 0; part < count; part++) sum += parts[part * stride + index];
    T* target = out + index / columns * leading + index % columns;
    constexpr bool accumulate = sizeof(T) == sizeof(float);
    *target = from_float<T>(accumulate ? to_float(*target) + scale * sum : scale * sum);
}

using GradientLow = Tile<lora_tile, lora_tile>;
using GradientFactor = Tile<lora_tile, lora_input_columns>;
// Rows of f32 sums: 8 floats beyond a multiple of 32, so that the pairs which half a warp stores fall into different
// banks.
constexpr int sum_stride = lora_input_columns + 8;
static_assert(lora_tile * sum_stride * 4 == lora_input_bytes &&
                  GradientLow::bytes + GradientFactor::bytes <= lora_input_bytes,
              "the launcher gives a block what its layout needs");

template <bool dropping>
__device__ void input_gradient(const bf16* ds, uint32_t tokens, uint32_t input, uint32_t ranks, StackedRows a, bf16* dx,
                               float scale, Dropout dropout, bool aligned_ranks) {
    const uint32_t column_tiles = ceil_divide(input, 128);
    const uint32_t token = blockIdx.x / column_tiles * 64, column = blockIdx.x % column_tiles * 128;
    const PlainRows ds_rows{ds, ranks};
    unsigned char *shared = shared_memory(), *factor = shared + GradientLow::bytes;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_token = warp / 2 * 16, warp_column = warp % 2 * 64;
    float sum[8][4] = {};
    for (uint32_t rank = 0; rank < ranks; rank += 64) {
        if (aligned_ranks) copy_tile<GradientLow, 256, true>(shared, ds_rows, token, rank, tokens, ranks);
        else copy_tile<GradientLow, 256, false>(shared, ds_rows, token, rank, tokens, ranks);
        copy_tile<GradientFactor, 256, true>(factor, a, rank, column, ranks, input);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 64; k += 16) {
            uint32_t left[4], right[4];
            load_fragment<GradientLow, false, true>(left, shared, warp_token, k, lane);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                load_fragment<GradientFactor, true, false>(right, factor, warp_column + 16 * j, k, lane);
                multiply_pair(sum[2 * j], sum[2 * j + 1], left, right);
            }
        }
        __syncthreads();
    }
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = warp_token + lane / 4 + 8 * half, at = warp_column + 8 * j + lane % 4 * 2;
            store_vector<float, 2>(sums + row * sum_stride + at,
                                   Vector<float, 2>{{sum[j][2 * half], sum[j][2 * half + 1]}});
        }
    }
    __syncthreads();
    for (int index = threadIdx.x; index < 64 * 16; index += 256) {
        const uint32_t row = index / 16, chunk = index % 16 * 8, at_token = token + row, at = column + chunk;
        if (at_token >= tokens || at >= input) continue;
        bf16* target = dx + uint64_t(at_token) * input + at;
        const uint32_t kept = dropping ? kept_of_eight(dropout, at_token, at, input) : 0xffu;
        Vector<bf16, 8> eight = load_vector<bf16, 8>(target);
        Vector<float, 4> added[2];
        added[0] = load_vector<float, 4>(sums + row * sum_stride + chunk);
        added[1] = load_vector<float, 4>(sums + row * sum_stride + chunk + 4);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float more = kept >> i & 1 ? scale * added[i / 4].value[i % 4] : 0.0f;
            eight.value[i] = from_float<bf16>(to_float(eight.value[i]) + more);
        }
        store_vector<bf16, 8>(target, eight);
    }
}

}  // namespace

#define TEMPER_LORA_DROPOUT(dtype, T)                                                                                 \
    TEMPER_KERNEL(lora_drop_##dtype, 256, const T* x, T* out, uint64_t elements, uint32_t key0, uint32_t key1,        \
                  uint32_t site, uint32_t step, uint32_t limit) {                                                     \
        drop<T>(x, out, elements, Dropout{key0, key1, site, step, limit});                                            \
    }                                                                                                                 \
    TEMPER_KERNEL(lora_add_kept_##dtype, 256, const float* x, T* out, uint64_t elements, float scale, uint32_t key0,  \
                  uint32_t key1, uint32_t site, uint32_t step, uint32_t limit) {                                      \
        add_kept<T>(x, out, elements, scale, Dropout{key0, key1, site, step, limit});                                 \
    }

TEMPER_LORA_DROPOUT(bf16, bf16)
TEMPER_LORA_DROPOUT(f32, float)

#define TEMPER_LORA_FUSED(suffix, dropping)                                                                           \
    TEMPER_KERNEL(lora_down##suffix##_bf16, 256, const bf16* x, uint32_t tokens, uint32_t input, uint32_t ranks,      \
                  const bf16* a0, const bf16* a1, const bf16* a2, const bf16* a3, uint32_t end0, uint32_t end1,       \
                  uint32_t end2, bf16* s, float scale, uint32_t key0, uint32_t key1, uint32_t site, uint32_t step,    \
                  uint32_t limit) {                                                                                   \
        down<dropping>(x, tokens, input, ranks, StackedRows{a0, a1, a2, a3, end0, end1, end2, input}, s, scale,       \
                       Dropout{key0, key1, site, step, limit});                                                       \
    }                                                                                                                 \
    TEMPER_KERNEL(lora_factor_gradients##suffix##_bf16, 128, const bf16* x, uint32_t tokens, uint32_t input,          \
                  const bf16* ds, uint32_t ranks, float* parts, uint32_t token_range, uint32_t aligned_ranks,         \
                  uint32_t key0, uint32_t key1, uint32_t site, uint32_t step, uint32_t limit) {                       \
        rectangle<lora_factor_ranks, lora_factor_tiles, false, dropping>(                                             \
            Rectangle{x, input, tokens, input, ds, ranks, ranks, nullptr, parts, nullptr, token_range,                \
                      aligned_ranks != 0},                                                                            \
            Dropout{key0, key1, site, step, limit});                                                                  \
    }                                                                                                                 \
    TEMPER_KERNEL(lora_input_gradient##suffix##_bf16, 256, const bf16* ds, uint32_t tokens, uint32_t input,           \
                  uint32_t ranks, const bf16* a0, const bf16* a1, const bf16* a2, const bf16* a3, uint32_t end0,      \
                  uint32_t end1, uint32_t end2, bf16* dx, float scale, uint32_t aligned_ranks, uint32_t key0,         \
                  uint32_t key1, uint32_t site, uint32_t step, uint32_t limit) {                                      \
        input_gradient<dropping>(ds, tokens, input, ranks, StackedRows{a0, a1, a2, a3, end0, end1, end2, input}, dx,  \
                                 scale, Dropout{key0, key1, site, step, limit}, aligned_ranks != 0);                  \
    }

TEMPER_LORA_FUSED(, false)
TEMPER_LORA_FUSED(_dropout, true)

TEMPER_KERNEL(lora_rank_gradients_bf16, 128, const bf16* dy, uint64_t dy_leading, uint32_t tokens, uint32_t columns,
              const bf16* s, uint64_t s_leading, uint32_t ranks, const bf16* b, float* db_parts, float* ds_parts,
              uint32_t token_range, uint32_t aligned_ranks) {
    rectangle<lora_rank_ranks, lora_rank_tiles, true, false>(
        Rectangle{dy, dy_leading, tokens, columns, s, s_leading, ranks, b, db_parts, ds_parts, token_range,
                  aligned_ranks != 0},
        Dropout{});
}

#define TEMPER_LORA_SUM(dtype, T)                                                                                     \
    TEMPER_KERNEL(lora_sum_parts_##dtype, 256, const float* parts, uint64_t stride, uint32_t count,                   \
                  uint64_t elements, uint32_t columns, T* out, uint64_t leading, float scale) {                       \
        sum_parts<T>(parts, stride, count, elements, columns, out, leading, scale);                                   \
    }

TEMPER_LORA_SUM(bf16, bf16)
TEMPER_LORA_SUM(f32, float)
