// Attention, backward, bf16, head sizes 64 and 128: probabilities are recomputed from log_sum_exp
// (FlashAttention-2, arXiv 2307.08691). With P = exp(q k^T scale - log_sum_exp) and delta = rowsum(d_out * out):
//   dP = d_out v^T,  dS = P * (dP - delta),  d_v = P^T d_out,  d_q = scale dS k,  d_k = scale dS^T q
//
// qkv, d_qkv [T, (H + 2G) D] bf16, d_out, out [T, H D] bf16, log_sum_exp [T, H] f32. Three kernels:
//
// 1. attention_statistics: for every row and head (log_sum_exp times `unit`, delta), as [H, T] pairs of f32, so that
//    the other two read neighbours; `unit` is log2(e) for these two, which use exp2, and 1 for those of
//    attention_general.cu. A row that saw no key gets 0 instead of -infinity. One warp for a row and head; at most 32
//    registers.
// 2. attention_backward_key_value: a block holds 128 keys and values of one key/value head and passes over every query
//    head of its group and every block of 64 queries that sees them. d_k and d_v have one writer: no atomics, no f32
//    copies to clear and convert, and one order of summation, so the same bits on every run.
// 3. attention_backward_query: a block holds 128 queries and their d_out and passes over blocks of 64 keys.
//
// Why d_q has a kernel of its own: 2 and 3 together do 4 + 3 = 7 products, where one kernel that also adds to d_q in
// memory does 5. But many key blocks add to one d_q: in f32, 8 D bytes of traffic for each query and key block (4.6 GB
// for a layer of 32 heads and 16,384 tokens in sequences of 2,048), a pass to clear and one to convert, and, to keep
// the order fixed, blocks that wait for each other, which published kernels pay with 17 to 37 % of their speed. Two
// products more are 40 % of FLOP and nothing else. Not measured.
//
// Both large kernels have one shape: "fixed" tiles, whose rows the 8 warps divide (16 rows each), and "streamed" tiles
// in two stages. Kernel 2 computes the transposed scores k q^T, so that in both kernels P and dS are accumulators that
// serve as left operands of the next product where they are: no probability goes through shared memory.
//
// Launch: 256 threads; grid.x = segments * G (kernel 2) or segments * H (kernel 3); grid.y = blocks of 128 rows of the
// longest segment. The longest blocks start first: the first keys' in kernel 2, the last queries' in
// kernel 3.
//
// Shared memory (bytes at D = 128 / 64): two fixed tiles, 65,536 / 32,768; two stages of two streamed tiles of 64 rows,
// 65,536 / 32,768; kernel 2: statistics of two stages, 1,024. Results leave through the fixed tiles.
// Registers at D = 128: kernel 2: d_k, d_v 128, P and dP 64; kernel 3: d_q 64, P and dP 64; addresses and fragments
// about 45. At most 255 (one block of 256 threads on a multiprocessor). No spills.
//
// Floor: 14 D FLOP for each visible pair and head (10 D would do, above); q, k, v, out, d_out once and d_qkv once from
// memory, the streamed tiles again from L2. Speed: not measured.
//
// Rejected: f32 atomics on d_q (order shows); storing dS for d_q (bytes grow with the square of the length); 64 fixed
// rows and 4 warps in kernel 2 (96 KiB: one block, hence 4 warps, for each sm_80 multiprocessor).
#include "attention.cuh"

namespace {

using Statistics = AttentionStatistics;

constexpr int fixed_rows = attention_rows, streamed_rows = attention_streamed_rows;
constexpr int threads = attention_backward_threads;

template <int D>
constexpr int fixed_bytes = fixed_rows * D * 2;
template <int D>
constexpr int streamed_bytes = streamed_rows * D * 2;
static_assert(2 * fixed_bytes<128> + 4 * streamed_bytes<128> == attention_query_bytes(128) &&
                  attention_query_bytes(128) + 2 * streamed_rows * sizeof(Statistics) == attention_key_value_bytes(128),
              "the launcher gives a block what its layout needs");

// 16 rows of a warp against the 64 rows of a streamed tile, and against its D columns.
using Scores = float[1][streamed_rows / 8][4];
template <int D>
using Sums = float[1][D / 8][4];

template <typename T, int width>
__device__ __forceinline__ float dot_of_lane(const T* a, const T* b, uint32_t length) {
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 32 * width; i < length; i += 32 * width) {
        const auto x = load_vector<T, width>(a + i), y = load_vector<T, width>(b + i);
#pragma unroll
        for (int j = 0; j < width; ++j) sum = fmaf(to_float(x.value[j]), to_float(y.value[j]), sum);
    }
    return sum;
}

// `wide`: whether d_out and out may be read four elements at a time.
template <typename T>
__device__ __forceinline__ void attention_statistics(const T* d_out, const T* out, const float* log_sum_exp,
                                                     Statistics* statistics, uint32_t tokens, uint32_t heads,
                                                     uint32_t head_dim, uint32_t wide, float unit) {
    const uint64_t index = uint64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= uint64_t(tokens) * heads) return;
    const T *a = d_out + index * head_dim, *b = out + index * head_dim;
    const float delta = warp_sum(wide ? dot_of_lane<T, 4>(a, b, head_dim) : dot_of_lane<T, 1>(a, b, head_dim));
    if (threadIdx.x % 32 != 0) return;
    const float value = log_sum_exp[index];
    statistics[index % heads * tokens + index / heads] = {value == negative_infinity ? 0.0f : value * unit, delta};
}

// One score and its dP become P and dS.
__device__ __forceinline__ void differentiate(float& score, float& d_score, bool visible, float scale,
                                              Statistics row) {
    score = visible ? exp2_approximate(fmaf(score, scale, -row.log_sum_exp)) : 0.0f;
    d_score = score * (d_score - row.delta);
}

template <int D>
__device__ __forceinline__ void attention_backward_key_value(const bf16* d_out, const bf16* qkv,
                                                             const Statistics* statistics, const uint32_t* segments,
                                                             bf16* d_qkv, uint32_t tokens, uint32_t query_heads,
                                                             uint32_t key_value_heads, uint32_t window,
                                                             float score_scale) {
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / key_value_heads);
    const uint32_t first = blockIdx.y * fixed_rows;
    if (first >= segment.length) return;

    const uint32_t group = blockIdx.x % key_value_heads, heads = query_heads / key_value_heads;
    const uint32_t stride = (query_heads + 2 * key_value_heads) * D, out_stride = query_heads * D;
    const uint64_t start = segment.start, key_column = uint64_t(query_heads + group) * D;
    const uint64_t value_column = key_column + uint64_t(key_value_heads) * D;
    const bf16* rows = qkv + start * stride;
    unsigned char *k_tile = shared_memory(), *v_tile = k_tile + fixed_bytes<D>, *stages = v_tile + fixed_bytes<D>;
    auto* stage_statistics = reinterpret_cast<Statistics*>(stages + 4 * streamed_bytes<D>);

    const AttentionRange range = attention_queries(first, first + fixed_rows - 1, segment, window, streamed_rows);
    const uint32_t blocks = range.end > range.begin ? ceil_divide(range.end - range.begin, streamed_rows) : 0;
    const uint32_t steps = blocks * heads;
    // Starts copying what step `step` streams, and returns the statistics that this thread has to put there.
    const auto load = [&](uint32_t step) -> Statistics {
        const uint32_t head = group * heads + step / blocks, query = range.begin + step % blocks * streamed_rows;
        unsigned char* tile = stages + step % 2 * 2 * streamed_bytes<D>;
        attention_load<streamed_rows, D, threads>(tile, rows + head * D, stride, query, segment.length);
        attention_load<streamed_rows, D, threads>(tile + streamed_bytes<D>, d_out + start * out_stride + head * D,
                                                  out_stride, query, segment.length);
        copy_async_commit();
        const uint32_t row = query + threadIdx.x;
        if (threadIdx.x >= streamed_rows || row >= segment.length) return {0.0f, 0.0f};
        return statistics[uint64_t(head) * tokens + start + row];
    };

    const uint32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const float scale = score_scale * log2_of_e;
    Sums<D> d_key, d_value;
    attention_clear(d_key);
    attention_clear(d_value);
    Statistics mine = {0.0f, 0.0f};
    if (steps > 0) {
        attention_load<fixed_rows, D, threads>(k_tile, rows + key_column, stride, first, segment.valid);
        attention_load<fixed_rows, D, threads>(v_tile, rows + value_column, stride, first, segment.valid);
        mine = load(0);
    }
    for (uint32_t step = 0; step < steps; ++step) {
        Statistics* here = stage_statistics + step % 2 * streamed_rows;
        if (threadIdx.x < streamed_rows) here[threadIdx.x] = mine;
        copy_async_wait<0>();
        __syncthreads();  // this stage is there; nobody still reads the other one
        if (step + 1 < steps) mine = load(step + 1);

        const unsigned char* q_tile = stages + step % 2 * 2 * streamed_bytes<D>;
        const unsigned char* d_out_tile = q_tile + streamed_bytes<D>;
        const uint32_t query = range.begin + step % blocks * streamed_rows;
        Scores p, ds;
        attention_clear(p);
        attention_clear(ds);
        attention_product_transposed<D, fixed_rows, streamed_rows>(p, k_tile, warp_row, q_tile);
        attention_product_transposed<D, fixed_rows, streamed_rows>(ds, v_tile, warp_row, d_out_tile);
#pragma unroll
        for (int n = 0; n < streamed_rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t column = 8 * n + lane % 4 * 2 + e % 2, key = first + warp_row + lane / 4 + e / 2 * 8;
                const bool visible = attention_visible(query + column, key, segment.valid, window);
                differentiate(p[0][n][e], ds[0][n][e], visible, scale, here[column]);
            }
        }
        attention_product<D, streamed_rows>(d_value, p, d_out_tile);
        attention_product<D, streamed_rows>(d_key, ds, q_tile);
    }
    bf16* target = d_qkv + start * stride;
    attention_store<D, fixed_rows>(d_key, score_scale, k_tile, warp_row, target + key_column, stride, first,
                                   segment.length);
    attention_store<D, fixed_rows>(d_value, 1.0f, v_tile, warp_row, target + value_column, stride, first,
                                   segment.length);
}

template <int D>
__device__ __forceinline__ void attention_backward_query(const bf16* d_out, const bf16* qkv,
                                                         const Statistics* statistics, const uint32_t* segments,
                                                         bf16* d_qkv, uint32_t tokens, uint32_t query_heads,
                                                         uint32_t key_value_heads, uint32_t window, float score_scale) {
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / query_heads);
    const uint32_t first = (gridDim.y - 1 - blockIdx.y) * fixed_rows;
    if (first >= segment.length) return;

    const uint32_t head = blockIdx.x % query_heads, group = head / (query_heads / key_value_heads);
    const uint32_t stride = (query_heads + 2 * key_value_heads) * D, out_stride = query_heads * D;
    const uint64_t start = segment.start, column = uint64_t(head) * D;
    const bf16 *rows = qkv + start * stride, *k = rows + (query_heads + group) * D, *v = k + key_value_heads * D;
    unsigned char *q_tile = shared_memory(), *d_out_tile = q_tile + fixed_bytes<D>;
    unsigned char* stages = d_out_tile + fixed_bytes<D>;

    const uint32_t last = min(first + fixed_rows, segment.length) - 1;
    const AttentionRange range = attention_keys(first, last, segment.valid, window, streamed_rows);
    const auto load = [&](uint32_t key, uint32_t stage) {
        unsigned char* tile = stages + stage * 2 * streamed_bytes<D>;
        attention_load<streamed_rows, D, threads>(tile, k, stride, key, segment.valid);
        attention_load<streamed_rows, D, threads>(tile + streamed_bytes<D>, v, stride, key, segment.valid);
        copy_async_commit();
    };

    const uint32_t lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16;
    const float scale = score_scale * log2_of_e;
    Statistics mine[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t row = first + warp_row + lane / 4 + half * 8;
        mine[half] = {0.0f, 0.0f};
        if (row < segment.length) mine[half] = statistics[uint64_t(head) * tokens + start + row];
    }
    Sums<D> d_query;
    attention_clear(d_query);
    if (range.begin < range.end) {
        attention_load<fixed_rows, D, threads>(q_tile, rows + column, stride, first, segment.length);
        attention_load<fixed_rows, D, threads>(d_out_tile, d_out + start * out_stride + column, out_stride, first,
                                               segment.length);
        load(range.begin, 0);
    }
    uint32_t stage = 0;
    for (uint32_t key = range.begin; key < range.end; key += streamed_rows, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this stage is there; nobody still reads the other one
        if (key + streamed_rows < range.end) load(key + streamed_rows, stage ^ 1);

        const unsigned char *k_tile = stages + stage * 2 * streamed_bytes<D>, *v_tile = k_tile + streamed_bytes<D>;
        Scores p, ds;
        attention_clear(p);
        attention_clear(ds);
        attention_product_transposed<D, fixed_rows, streamed_rows>(p, q_tile, warp_row, k_tile);
        attention_product_transposed<D, fixed_rows, streamed_rows>(ds, d_out_tile, warp_row, v_tile);
#pragma unroll
        for (int n = 0; n < streamed_rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t query = first + warp_row + lane / 4 + e / 2 * 8;
                const uint32_t seen = key + 8 * n + lane % 4 * 2 + e % 2;
                const bool visible = attention_visible(query, seen, segment.valid, window);
                differentiate(p[0][n][e], ds[0][n][e], visible, scale, mine[e / 2]);
            }
        }
        attention_product<D, streamed_rows>(d_query, ds, k_tile);
    }
    attention_store<D, fixed_rows>(d_query, score_scale, q_tile, warp_row, d_qkv + start * stride + column, stride,
                                   first, segment.length);
}

}  // namespace

TEMPER_KERNEL(attention_statistics_bf16, attention_statistics_threads, const bf16* d_out, const bf16* out,
              const float* log_sum_exp, Statistics* statistics, uint32_t tokens, uint32_t heads,
              uint32_t head_dim, uint32_t wide, float unit) {
    attention_statistics(d_out, out, log_sum_exp, statistics, tokens, heads, head_dim, wide, unit);
}

TEMPER_KERNEL(attention_statistics_f32, attention_statistics_threads, const float* d_out, const float* out,
              const float* log_sum_exp, Statistics* statistics, uint32_t tokens, uint32_t heads,
              uint32_t head_dim, uint32_t wide, float unit) {
    attention_statistics(d_out, out, log_sum_exp, statistics, tokens, heads, head_dim, wide, unit);
}

#define BACKWARD_KERNELS(D)                                                                                           \
    TEMPER_KERNEL(attention_backward_key_value_##D##_bf16, 256, const bf16* d_out, const bf16* qkv,                   \
                  const Statistics* statistics, const uint32_t* segments, bf16* d_qkv, uint32_t tokens,               \
                  uint32_t query_heads, uint32_t key_value_heads, uint32_t window, float score_scale) {               \
        attention_backward_key_value<D>(d_out, qkv, statistics, segments, d_qkv, tokens, query_heads,                 \
                                        key_value_heads, window, score_scale);                                        \
    }                                                                                                                 \
    TEMPER_KERNEL(attention_backward_query_##D##_bf16, 256, const bf16* d_out, const bf16* qkv,                       \
                  const Statistics* statistics, const uint32_t* segments, bf16* d_qkv, uint32_t tokens,               \
                  uint32_t query_heads, uint32_t key_value_heads, uint32_t window, float score_scale) {               \
        attention_backward_query<D>(d_out, qkv, statistics, segments, d_qkv, tokens, query_heads, key_value_heads,    \
                                    window, score_scale);                                                             \
    }

BACKWARD_KERNELS(64)
BACKWARD_KERNELS(128)
