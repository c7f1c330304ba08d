// Attention, forward and backward, any head size up to 256, bf16 or f32, without tensor cores. It is for f32 mode
// (parity with the CPU to 1e-5) and for head sizes that the kernels of attention_forward.cu and attention_backward.cu
// do not have: correct and deterministic, not tuned. Formulas, operands and their meaning are the same as in these two files.
//
// Every kernel has one shape. A block of 128 threads holds 16 "fixed" rows, 4 for each warp, and passes over "streamed"
// tiles of 32 rows. For a score, a lane is a streamed row; for a sum, a lane is the columns lane, lane + 32 and so on.
// Forward and d_q: fixed are queries, streamed are keys. d_k and d_v: the other way round, over the query heads of the
// group one after another, so that nothing needs atomics.
//
// Launch: 128 threads; grid.x = segments * H (d_k and d_v: * G), grid.y = blocks of 16 rows of the longest segment.
// Shared memory, all f32: two fixed tiles [16, D], two streamed tiles [32, D + 1] (the odd row length keeps the 32
// lanes of a score in 32 banks), for each warp two tables [4, 32] of what sums are weighted with. Forward has one fixed
// tile and one table. At most 102,656 bytes. Registers: at most 128, of which sums have 32 (d_k and d_v: 64).
// Floor: as in the two files, but at the rate of f32 FMA. Speed: not measured.
//
// Rejected: tf32 products in f32 mode (10 bits of mantissa miss the bound); a template for each head size (compiles for
// long, and test models have these head sizes).
#include "attention.cuh"

namespace {

constexpr int fixed_rows = attention_general_rows, streamed_rows = attention_general_streamed;
constexpr int warp_rows = 4, threads = attention_general_threads, slots = 8;

using Rows = float[warp_rows];
using Columns = float[warp_rows][slots];

// Copies rows first.. of a matrix to shared memory, as f32; rows from `end` on become 0.
template <typename T>
__device__ __forceinline__ void load_rows(float* tile, uint32_t pitch, uint32_t count, const T* source, uint64_t stride,
                                          uint32_t first, uint32_t end, uint32_t head_dim) {
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < count * head_dim; i += threads) {
        const uint32_t row = i / head_dim, column = i % head_dim;
        tile[row * pitch + column] = first + row < end ? to_float(source[(first + row) * stride + column]) : 0.0f;
    }
}

// Products of the warp's fixed rows with the streamed row of this lane.
__device__ __forceinline__ void dot_rows(Rows& dots, const float* fixed, const float* streamed, uint32_t head_dim) {
    const float* mine = streamed + threadIdx.x % 32 * (head_dim + 1);
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) dots[r] = 0.0f;
#pragma unroll 4
    for (uint32_t d = 0; d < head_dim; ++d) {
#pragma unroll
        for (int r = 0; r < warp_rows; ++r) dots[r] = fmaf(fixed[r * head_dim + d], mine[d], dots[r]);
    }
}

// sums[r] += weights[r][k] streamed[k] over all streamed rows k. All lanes' weights have to be there (__syncwarp).
__device__ __forceinline__ void add_rows(Columns& sums, const float* weights, const float* streamed,
                                         uint32_t head_dim) {
#pragma unroll 1
    for (uint32_t k = 0; k < streamed_rows; ++k) {
#pragma unroll
        for (int j = 0; j < slots; ++j) {
            const uint32_t column = threadIdx.x % 32 + 32 * j;
            if (column >= head_dim) break;
            const float value = streamed[k * (head_dim + 1) + column];
#pragma unroll
            for (int r = 0; r < warp_rows; ++r) sums[r][j] = fmaf(weights[r * streamed_rows + k], value, sums[r][j]);
        }
    }
}

__device__ __forceinline__ void clear(Columns& sums) {
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
#pragma unroll
        for (int j = 0; j < slots; ++j) sums[r][j] = 0.0f;
    }
}

// Writes the warp's rows first.. that are before `end`.
template <typename T>
__device__ __forceinline__ void store_rows(const Columns& sums, float factor, T* target, uint64_t stride,
                                           uint32_t first, uint32_t end, uint32_t head_dim) {
    const uint32_t lane = threadIdx.x % 32;
    target += first * stride + lane;
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
        if (first + r >= end) return;
#pragma unroll
        for (int j = 0; j < slots; ++j) {
            if (lane + 32 * j < head_dim) target[32 * j] = from_float<T>(sums[r][j] * factor);
        }
        target += stride;
    }
}

// Where the tiles lie in shared memory, and which rows of them are this warp's.
struct Tiles {
    float *fixed_a, *fixed_b, *streamed_a, *streamed_b, *weights_a, *weights_b;
    uint32_t warp_row;

    // `pair`: whether there is a second fixed tile and a second table.
    __device__ __forceinline__ Tiles(uint32_t head_dim, bool pair) {
        const uint32_t warp = threadIdx.x / 32;
        const uint32_t fixed = fixed_rows * head_dim, streamed = streamed_rows * (head_dim + 1);
        fixed_a = reinterpret_cast<float*>(shared_memory());
        fixed_b = fixed_a + (pair ? fixed : 0);
        streamed_a = fixed_b + fixed;
        streamed_b = streamed_a + streamed;
        weights_a = streamed_b + streamed + warp * warp_rows * streamed_rows;
        weights_b = weights_a + (pair ? fixed_rows * streamed_rows : 0);
        warp_row = warp * warp_rows;
    }
};

// Sizes and strides of a launch.
struct Shape {
    uint32_t query_heads, key_value_heads, head_dim, window;

    __device__ __forceinline__ uint64_t stride() const {
        return uint64_t(query_heads + 2 * key_value_heads) * head_dim;
    }
    __device__ __forceinline__ uint64_t out_stride() const { return uint64_t(query_heads) * head_dim; }
    __device__ __forceinline__ uint32_t heads_of_group() const { return query_heads / key_value_heads; }
    __device__ __forceinline__ uint64_t key_column(uint32_t group) const {
        return uint64_t(query_heads + group) * head_dim;
    }
    __device__ __forceinline__ uint64_t value_column(uint32_t group) const {
        return uint64_t(query_heads + key_value_heads + group) * head_dim;
    }
};

template <typename T>
__device__ __forceinline__ void forward(const T* qkv, const uint32_t* segments, T* out, float* log_sum_exp, Shape shape,
                                        float scale) {
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / shape.query_heads);
    const uint32_t first = (gridDim.y - 1 - blockIdx.y) * fixed_rows, D = shape.head_dim;
    if (first >= segment.length) return;
    const uint32_t head = blockIdx.x % shape.query_heads, group = head / shape.heads_of_group();
    const uint64_t stride = shape.stride(), start = segment.start;
    const T* rows = qkv + start * stride;
    const Tiles tiles(D, false);
    const uint32_t lane = threadIdx.x % 32, query = first + tiles.warp_row;
    const uint32_t last = min(first + fixed_rows, segment.length) - 1;
    const AttentionRange range = attention_keys(first, last, segment.valid, shape.window, streamed_rows);

    Columns sums;
    Rows maximum, total;
    clear(sums);
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) maximum[r] = negative_infinity, total[r] = 0.0f;
    load_rows(tiles.fixed_a, D, fixed_rows, rows + uint64_t(head) * D, stride, first, segment.length, D);
    for (uint32_t key = range.begin; key < range.end; key += streamed_rows) {
        __syncthreads();  // nobody still reads the last tiles
        const T *k = rows + shape.key_column(group), *v = rows + shape.value_column(group);
        load_rows(tiles.streamed_a, D + 1, streamed_rows, k, stride, key, segment.valid, D);
        load_rows(tiles.streamed_b, D + 1, streamed_rows, v, stride, key, segment.valid, D);
        __syncthreads();
        Rows scores;
        dot_rows(scores, tiles.fixed_a + tiles.warp_row * D, tiles.streamed_a, D);
#pragma unroll
        for (int r = 0; r < warp_rows; ++r) {
            const bool visible = attention_visible(query + r, key + lane, segment.valid, shape.window);
            const float score = visible ? scores[r] * scale : negative_infinity;
            const float largest = fmaxf(maximum[r], warp_max(score));
            const float shift = largest == negative_infinity ? 0.0f : largest;
            const float weight = expf(score - shift), shrink = expf(maximum[r] - shift);
            total[r] = total[r] * shrink + warp_sum(weight);
            maximum[r] = largest;
            tiles.weights_a[r * streamed_rows + lane] = weight;
#pragma unroll
            for (int j = 0; j < slots; ++j) sums[r][j] *= shrink;
        }
        __syncwarp();
        add_rows(sums, tiles.weights_a, tiles.streamed_b, D);
    }
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
        const float inverse = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
#pragma unroll
        for (int j = 0; j < slots; ++j) sums[r][j] *= inverse;
        if (lane == 0 && query + r < segment.length) {
            log_sum_exp[(start + query + r) * shape.query_heads + head] =
                total[r] > 0.0f ? maximum[r] + logf(total[r]) : negative_infinity;
        }
    }
    store_rows(sums, 1.0f, out + start * shape.out_stride() + uint64_t(head) * D, shape.out_stride(), query,
               segment.length, D);
}

// P and dS of the warp's fixed rows with this lane's streamed row, from the scores and dP.
__device__ __forceinline__ void differentiate(float& score, float& d_score, bool visible, float scale,
                                              AttentionStatistics row) {
    score = visible ? expf(score * scale - row.log_sum_exp) : 0.0f;
    d_score = score * (d_score - row.delta);
}

template <typename T>
__device__ __forceinline__ void backward_query(const T* d_out, const T* qkv, const AttentionStatistics* statistics,
                                               const uint32_t* segments, T* d_qkv, uint32_t tokens, Shape shape,
                                               float scale) {
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / shape.query_heads);
    const uint32_t first = (gridDim.y - 1 - blockIdx.y) * fixed_rows, D = shape.head_dim;
    if (first >= segment.length) return;
    const uint32_t head = blockIdx.x % shape.query_heads, group = head / shape.heads_of_group();
    const uint64_t stride = shape.stride(), start = segment.start, column = uint64_t(head) * D;
    const T* rows = qkv + start * stride;
    const Tiles tiles(D, true);
    const uint32_t lane = threadIdx.x % 32, query = first + tiles.warp_row;
    const uint32_t last = min(first + fixed_rows, segment.length) - 1;
    const AttentionRange range = attention_keys(first, last, segment.valid, shape.window, streamed_rows);

    Columns d_query;
    clear(d_query);
    load_rows(tiles.fixed_a, D, fixed_rows, rows + column, stride, first, segment.length, D);
    load_rows(tiles.fixed_b, D, fixed_rows, d_out + start * shape.out_stride() + column, shape.out_stride(), first,
              segment.length, D);
    AttentionStatistics mine[warp_rows];
#pragma unroll
    for (int r = 0; r < warp_rows; ++r) {
        mine[r] = {0.0f, 0.0f};
        if (query + r < segment.length) mine[r] = statistics[uint64_t(head) * tokens + start + query + r];
    }
    for (uint32_t key = range.begin; key < range.end; key += streamed_rows) {
        __syncthreads();  // nobody still reads the last tiles
        const T *k = rows + shape.key_column(group), *v = rows + shape.value_column(group);
        load_rows(tiles.streamed_a, D + 1, streamed_rows, k, stride, key, segment.valid, D);
        load_rows(tiles.streamed_b, D + 1, streamed_rows, v, stride, key, segment.valid, D);
        __syncthreads();
        Rows p, ds;
        dot_rows(p, tiles.fixed_a + tiles.warp_row * D, tiles.streamed_a, D);
        dot_rows(ds, tiles.fixed_b + tiles.warp_row * D, tiles.streamed_b, D);
#pragma unroll
        for (int r = 0; r < warp_rows; ++r) {
            const bool visible = attention_visible(query + r, key + lane, segment.valid, shape.window);
            differentiate(p[r], ds[r], visible, scale, mine[r]);
            tiles.weights_a[r * streamed_rows + lane] = ds[r];
        }
        __syncwarp();
        add_rows(d_query, tiles.weights_a, tiles.streamed_a, D);
    }
    store_rows(d_query, scale, d_qkv + start * stride + column, stride, query, segment.length, D);
}

template <typename T>
__device__ __forceinline__ void backward_key_value(const T* d_out, const T* qkv, const AttentionStatistics* statistics,
                                                   const uint32_t* segments, T* d_qkv, uint32_t tokens, Shape shape,
                                                   float scale) {
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / shape.key_value_heads);
    const uint32_t first = blockIdx.y * fixed_rows, D = shape.head_dim;
    if (first >= segment.length) return;
    const uint32_t group = blockIdx.x % shape.key_value_heads, heads = shape.heads_of_group();
    const uint64_t stride = shape.stride(), out_stride = shape.out_stride(), start = segment.start;
    const T* rows = qkv + start * stride;
    const Tiles tiles(D, true);
    const uint32_t lane = threadIdx.x % 32, key = first + tiles.warp_row;
    const AttentionRange range =
        attention_queries(first, first + fixed_rows - 1, segment, shape.window, streamed_rows);

    Columns d_key, d_value;
    clear(d_key);
    clear(d_value);
    load_rows(tiles.fixed_a, D, fixed_rows, rows + shape.key_column(group), stride, first, segment.valid, D);
    load_rows(tiles.fixed_b, D, fixed_rows, rows + shape.value_column(group), stride, first, segment.valid, D);
    for (uint32_t head = group * heads; head < (group + 1) * heads; ++head) {
        for (uint32_t query = range.begin; query < range.end; query += streamed_rows) {
            const uint64_t column = uint64_t(head) * D;
            __syncthreads();  // nobody still reads the last tiles
            load_rows(tiles.streamed_a, D + 1, streamed_rows, rows + column, stride, query, segment.length, D);
            load_rows(tiles.streamed_b, D + 1, streamed_rows, d_out + start * out_stride + column, out_stride, query,
                      segment.length, D);
            AttentionStatistics mine = {0.0f, 0.0f};
            if (query + lane < segment.length) mine = statistics[uint64_t(head) * tokens + start + query + lane];
            __syncthreads();
            Rows p, ds;
            dot_rows(p, tiles.fixed_a + tiles.warp_row * D, tiles.streamed_a, D);
            dot_rows(ds, tiles.fixed_b + tiles.warp_row * D, tiles.streamed_b, D);
#pragma unroll
            for (int r = 0; r < warp_rows; ++r) {
                const bool visible = attention_visible(query + lane, key + r, segment.valid, shape.window);
                differentiate(p[r], ds[r], visible, scale, mine);
                tiles.weights_a[r * streamed_rows + lane] = p[r];
                tiles.weights_b[r * streamed_rows + lane] = ds[r];
            }
            __syncwarp();
            add_rows(d_value, tiles.weights_a, tiles.streamed_b, D);
            add_rows(d_key, tiles.weights_b, tiles.streamed_a, D);
        }
    }
    T* target = d_qkv + start * stride;
    store_rows(d_key, scale, target + shape.key_column(group), stride, key, segment.length, D);
    store_rows(d_value, 1.0f, target + shape.value_column(group), stride, key, segment.length, D);
}

}  // namespace

#define GENERAL_KERNELS(type, suffix)                                                                                 \
    TEMPER_KERNEL(attention_general_forward_##suffix, 128, const type* qkv, const uint32_t* segments, type* out,      \
                  float* log_sum_exp, uint32_t query_heads, uint32_t key_value_heads, uint32_t head_dim,              \
                  uint32_t window, float scale) {                                                                     \
        forward(qkv, segments, out, log_sum_exp, {query_heads, key_value_heads, head_dim, window}, scale);            \
    }                                                                                                                 \
    TEMPER_KERNEL(attention_general_backward_query_##suffix, 128, const type* d_out, const type* qkv,                 \
                  const AttentionStatistics* statistics, const uint32_t* segments, type* d_qkv, uint32_t tokens,      \
                  uint32_t query_heads, uint32_t key_value_heads, uint32_t head_dim, uint32_t window, float scale) {  \
        backward_query(d_out, qkv, statistics, segments, d_qkv, tokens,                                               \
                       {query_heads, key_value_heads, head_dim, window}, scale);                                      \
    }                                                                                                                 \
    TEMPER_KERNEL(attention_general_backward_key_value_##suffix, 128, const type* d_out, const type* qkv,             \
                  const AttentionStatistics* statistics, const uint32_t* segments, type* d_qkv, uint32_t tokens,      \
                  uint32_t query_heads, uint32_t key_value_heads, uint32_t head_dim, uint32_t window, float scale) {  \
        backward_key_value(d_out, qkv, statistics, segments, d_qkv, tokens,                                           \
                           {query_heads, key_value_heads, head_dim, window}, scale);                                  \
    }

GENERAL_KERNELS(bf16, bf16)
GENERAL_KERNELS(float, f32)
