// Attention, backward, bf16, head sizes 64 and 128, on Hopper: formulas, operands, statistics and the two kernels (one
// for d_k and d_v, one for d_q, and why) are those of attention_backward.cu; here with tile copies and wgmma.
//
// In both kernels warpgroup 0 is the producer, and warpgroups 1 and 2 own 64 of the 128 fixed rows each. A step is:
// issue the scores; wait for the step before and free its stage; issue dP; P from the scores while dP is multiplied;
// issue d_v; dS; issue d_k (or d_q). So the tensor cores have work during most of the exponentials, and the other
// warpgroup's between steps. P and dS are packed to bf16 in registers: kernel 1 computes transposed scores, so that
// they are left operands as they are.
//
// 1. sm90_attention_backward_key_value: fixed 128 keys and values, streamed 64 queries and their d_out, three stages.
//    One thread fetches tiles, and one warp copies the statistics of their rows, which have no alignment that a tile
//    copy asks for; both count towards the barrier of the stage.
// 2. sm90_attention_backward_query: fixed 128 queries and d_out, streamed 128 keys and values, two stages.
//
// Launch: 384 threads; grids as attention_backward.cu. `qkv` and `d_out` are maps of (64 columns, rows, panels) with
// boxes of 64 rows (kernel 1) or 128 rows (kernel 2). A box may bring rows of the next sequence: of fixed rows nothing
// is stored there; streamed rows are cleared in shared memory in a last tile, because they are multiplied with zeros,
// and so are values, streamed or fixed, that are not keys: where P is 0, dP has to be finite.
//
// P of hidden pairs becomes 0 behind a branch that tiles without hidden pairs jump over. It stands between the
// exponentials and the wait for dP for another reason, too: ptxas moves a wait up to the last branch before it.
//
// Shared memory (bytes at D = 128 / 64):
//   kernel 1: fixed k and v, each two tiles of 64 rows, 65,536 / 32,768; three stages of q and d_out, 98,304 / 49,152;
//             statistics 1,536; barriers 56; together 165,432 / 83,512
//   kernel 2: fixed q and d_out 65,536 / 32,768; two stages of k and v, 131,072 / 65,536; barriers 40; together
//             196,648 / 98,344
// Results leave through the fixed tiles.
// Registers: producer 24, consumers 240. Kernel 1 at D = 128: d_k and d_v 128, P and dP 64, packed 32. Kernel 2: d_q
// 64, P and dP 128, packed 32.
//
// Floor: as attention_backward.cu. Speed: not measured.
//
// Rejected: issuing dP before the wait for the step before (its packed operands would live beside the sums, P and dP:
// ptxas then runs the products one by one); 128 streamed queries in kernel 1 (P and dP would need 128 registers beside
// 128 of sums); selecting dS = 0 where P is 0 instead of clearing values (two instructions an element, and behind a
// branch in kernel 1 ptxas runs the products one by one); P and dS through shared memory as FlashAttention-3 does (it
// needs dS for d_q in the same kernel; here d_q has its own).
#include "sm90_attention.cuh"

namespace {

using Statistics = AttentionStatistics;

constexpr int fixed_rows = sm90_attention_rows, half_rows = 64;
static_assert(half_rows == sm90_key_value_box, "fixed and streamed rows of kernel 1 have one map");

template <int stages>
struct Barriers {
    uint64_t fixed, full[stages], empty[stages];
};

// By one thread; the others wait at the barrier of the block. `arrivals`: of the producer's side, for each stage.
template <int stages>
__device__ __forceinline__ void start(Barriers<stages>& barriers, uint32_t arrivals) {
    if (threadIdx.x == 0) {
        mbarrier_init(&barriers.fixed, 1);
        for (int i = 0; i < stages; ++i) {
            mbarrier_init(&barriers.full[i], arrivals);
            mbarrier_init(&barriers.empty[i], hopper_releases);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
}

// ---- keys and values ----

template <int D>
struct KeyValue {
    static constexpr int stages = sm90_key_value_stages, streamed_rows = sm90_key_value_box;
    static constexpr uint32_t half_bytes = half_rows * D * 2, streamed_bytes = streamed_rows * D * 2;
    static_assert(4 * half_bytes + stages * (2 * streamed_bytes + streamed_rows * sizeof(Statistics)) +
                          sizeof(Barriers<stages>) ==
                      sm90_key_value_bytes(D),
                  "the launcher gives a block what its layout needs");
    AttentionSegment segment;
    AttentionRange range;
    uint32_t first, group, heads, steps;
    unsigned char *k, *v, *stage_tiles;
    Statistics* stage_statistics;
    Barriers<stages>* barriers;

    __device__ __forceinline__ unsigned char* q_tile(uint32_t stage) const {
        return stage_tiles + stage * 2 * streamed_bytes;
    }
};

// Which queries a step streams: every block of the range for one head of the group, then for the next. Counted rather
// than divided.
template <int D>
struct Streamed {
    AttentionRange range;
    uint32_t head, query;

    __device__ __forceinline__ explicit Streamed(const KeyValue<D>& work)
        : range(work.range), head(work.group * work.heads), query(work.range.begin) {}

    __device__ __forceinline__ void next() {
        query += KeyValue<D>::streamed_rows;
        if (query >= range.end) query = range.begin, ++head;
    }
};

template <int D>
__device__ __forceinline__ void fetch_tiles(const TensorMap& d_out, const TensorMap& qkv, const KeyValue<D>& work,
                                            uint32_t query_heads, uint32_t key_value_heads) {
    using Work = KeyValue<D>;
    auto& barriers = *work.barriers;
    const int start = int(work.segment.start), panels = D / 64;
    const int key_panel = int(query_heads + work.group) * panels;
    const int value_panel = key_panel + int(key_value_heads) * panels;
    mbarrier_arrive_expect(&barriers.fixed, 4 * Work::half_bytes);
    for (int half = 0; half < 2; ++half) {
        const int row = start + int(work.first) + half * half_rows;
        tma_load(work.k + half * Work::half_bytes, &qkv, &barriers.fixed, {0, row, key_panel});
        tma_load(work.v + half * Work::half_bytes, &qkv, &barriers.fixed, {0, row, value_panel});
    }
    HopperStage<Work::stages> stage;
    Streamed<D> streamed(work);
    for (uint32_t step = 0; step < work.steps; ++step, stage.next(), streamed.next()) {
        const int row = start + int(streamed.query), panel = int(streamed.head) * panels;
        unsigned char* tile = work.q_tile(stage.index);
        mbarrier_wait(&barriers.empty[stage.index], stage.parity ^ 1);
        mbarrier_arrive_expect(&barriers.full[stage.index], 2 * Work::streamed_bytes);
        tma_load(tile, &qkv, &barriers.full[stage.index], {0, row, panel});
        tma_load(tile + Work::streamed_bytes, &d_out, &barriers.full[stage.index], {0, row, panel});
    }
}

template <int D>
__device__ __forceinline__ void fetch_statistics(const Statistics* statistics, const KeyValue<D>& work,
                                                 uint32_t tokens) {
    using Work = KeyValue<D>;
    HopperStage<Work::stages> stage;
    Streamed<D> streamed(work);
    for (uint32_t step = 0; step < work.steps; ++step, stage.next(), streamed.next()) {
        const Statistics* from = statistics + uint64_t(streamed.head) * tokens + work.segment.start;
        mbarrier_wait(&work.barriers->empty[stage.index], stage.parity ^ 1);
        for (uint32_t i = threadIdx.x % 32; i < Work::streamed_rows; i += 32) {
            const uint32_t row = streamed.query + i;
            Statistics value = {0.0f, 0.0f};
            if (row < work.segment.length) value = from[row];
            work.stage_statistics[stage.index * Work::streamed_rows + i] = value;
        }
        mbarrier_arrive(&work.barriers->full[stage.index]);
    }
}

// Probabilities of keys (rows) that a query (column) does not see become 0.
template <int columns>
__device__ __forceinline__ void hide_transposed(float (&p)[1][columns][4], uint32_t first_query, uint32_t first_key,
                                                uint32_t valid, uint32_t window) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < columns; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const uint32_t query = first_query + 8 * n + lane % 4 * 2 + e % 2, key = first_key + lane / 4 + e / 2 * 8;
            if (!attention_visible(query, key, valid, window)) p[0][n][e] = 0.0f;
        }
    }
}

// d_k / scale and d_v of a warpgroup's 64 keys, the `half`-th of the block.
template <int D>
__device__ __forceinline__ void sum_key_value(const KeyValue<D>& work, uint32_t half, uint32_t window, float scale,
                                              float (&d_key)[1][D / 8][4], float (&d_value)[1][D / 8][4]) {
    using Work = KeyValue<D>;
    constexpr int rows = Work::streamed_rows;
    auto& barriers = *work.barriers;
    const uint32_t lane = threadIdx.x % 32, first_key = work.first + half * half_rows;
    const uint32_t key = first_key + threadIdx.x % 128 / 32 * 16;
    const unsigned char *k = work.k + half * Work::half_bytes, *v = work.v + half * Work::half_bytes;
    float p[1][rows / 8][4], ds[1][rows / 8][4];
    uint32_t packed_p[rows / 16][4], packed_ds[rows / 16][4];

    HopperStage<Work::stages> stage;
    Streamed<D> streamed(work);
    uint32_t before = 0;
    mbarrier_wait(&barriers.fixed, 0);
    if (work.first + fixed_rows > work.segment.valid) {
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t keys = work.segment.valid - min(work.first + i * half_rows, work.segment.valid);
            hopper_clear_rows<D, half_rows>(work.v + i * Work::half_bytes, keys);
        }
        hopper_cleared();
    }
    for (uint32_t step = 0; step < work.steps; ++step, stage.next(), streamed.next()) {
        const uint32_t query = streamed.query;
        unsigned char *q_tile = work.q_tile(stage.index), *d_out_tile = q_tile + Work::streamed_bytes;
        mbarrier_wait(&barriers.full[stage.index], stage.parity);
        if (query + rows > work.segment.length) {
            hopper_clear_rows<D, rows>(q_tile, work.segment.length - query);
            hopper_clear_rows<D, rows>(d_out_tile, work.segment.length - query);
            hopper_cleared();
        }
        wgmma_hold(flat(p));
        wgmma_fence();
        hopper_product_transposed<D, half_rows, rows>(p, k, 0, q_tile);
        wgmma_commit();
        wgmma_wait<1>();  // all of the step before; its packed registers are free
        if (step > 0) hopper_release(&barriers.empty[before]);
        before = stage.index;
        wgmma_hold(flat(ds));
        wgmma_fence();
        hopper_product_transposed<D, half_rows, rows>(ds, v, 0, d_out_tile);
        wgmma_commit();
        wgmma_wait<1>();  // the scores
        wgmma_hold(flat(p));

        const Statistics* here = work.stage_statistics + stage.index * rows;
#pragma unroll
        for (int n = 0; n < rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t column = 8 * n + lane % 4 * 2 + e % 2;
                p[0][n][e] = exp2_approximate(fmaf(p[0][n][e], scale, -here[column].log_sum_exp));
            }
        }
        const bool all_visible =
            attention_all_visible(query, rows, first_key, half_rows, work.segment.valid, window);
        if (!all_visible) hide_transposed(p, query, key, work.segment.valid, window);
        hopper_pack(packed_p, p);
        wgmma_fence();
        hopper_product<D, rows>(d_value, packed_p, d_out_tile);
        wgmma_commit();
        wgmma_wait<1>();  // dP
        wgmma_hold(flat(ds));
#pragma unroll
        for (int n = 0; n < rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - here[8 * n + lane % 4 * 2 + e % 2].delta);
            }
        }
        hopper_pack(packed_ds, ds);
        wgmma_fence();
        hopper_product<D, rows>(d_key, packed_ds, q_tile);
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_hold(flat(d_key));
    wgmma_hold(flat(d_value));
}

template <int D>
__device__ __forceinline__ void attention_backward_key_value(const TensorMap& d_out, const TensorMap& qkv,
                                                             const Statistics* statistics, const uint32_t* segments,
                                                             bf16* d_qkv, uint32_t tokens, uint32_t query_heads,
                                                             uint32_t key_value_heads, uint32_t window,
                                                             float score_scale) {
    using Work = KeyValue<D>;
    Work work;
    work.segment = attention_segment(segments, blockIdx.x / key_value_heads);
    work.first = blockIdx.y * fixed_rows;
    if (work.first >= work.segment.length) return;
    work.group = blockIdx.x % key_value_heads;
    work.heads = query_heads / key_value_heads;
    work.range = attention_queries(work.first, work.first + fixed_rows - 1, work.segment, window, Work::streamed_rows);
    const AttentionRange range = work.range;
    work.steps = range.end > range.begin ? ceil_divide(range.end - range.begin, Work::streamed_rows) * work.heads : 0;
    work.k = shared_memory();
    work.v = work.k + 2 * Work::half_bytes;
    work.stage_tiles = work.v + 2 * Work::half_bytes;
    work.stage_statistics = reinterpret_cast<Statistics*>(work.q_tile(Work::stages));
    Statistics* statistics_end = work.stage_statistics + Work::stages * Work::streamed_rows;
    work.barriers = reinterpret_cast<Barriers<Work::stages>*>(statistics_end);
    start(*work.barriers, 1 + 32);
    if (threadIdx.x < 128) {
        registers_decrease<24>();
        if (work.steps == 0) return;
        if (threadIdx.x == 0) fetch_tiles(d_out, qkv, work, query_heads, key_value_heads);
        if (threadIdx.x / 32 == 1) fetch_statistics(statistics, work, tokens);
        return;
    }
    registers_increase<240>();
    float d_key[1][D / 8][4], d_value[1][D / 8][4];
    attention_clear(d_key);
    attention_clear(d_value);
    const uint32_t half = hopper_warpgroup() - 1;
    if (work.steps > 0) sum_key_value(work, half, window, score_scale * log2_of_e, d_key, d_value);

    const uint64_t stride = uint64_t(query_heads + 2 * key_value_heads) * D;
    bf16* key_target = d_qkv + work.segment.start * stride + uint64_t(query_heads + work.group) * D;
    const uint32_t warp_row = threadIdx.x % 128 / 32 * 16, first = work.first + half * half_rows;
    hopper_meet();
    attention_store<D, half_rows>(d_key, score_scale, work.k + half * Work::half_bytes, warp_row, key_target, stride,
                                  first, work.segment.length);
    attention_store<D, half_rows>(d_value, 1.0f, work.v + half * Work::half_bytes, warp_row,
                                  key_target + uint64_t(key_value_heads) * D, stride, first, work.segment.length);
}

// ---- queries ----

template <int D>
struct Query {
    static constexpr int stages = sm90_query_stages, streamed_rows = sm90_query_box;
    static_assert(streamed_rows == fixed_rows, "fixed and streamed rows have one map");
    static constexpr uint32_t tile_bytes = fixed_rows * D * 2;  // of fixed and of streamed tiles
    static_assert((2 + 2 * stages) * tile_bytes + sizeof(Barriers<stages>) == sm90_query_bytes(D),
                  "the launcher gives a block what its layout needs");
    AttentionSegment segment;
    AttentionRange range;
    uint32_t first, head, group, tiles;
    unsigned char *q, *d_out, *stage_tiles;
    Barriers<stages>* barriers;

    __device__ __forceinline__ unsigned char* k_tile(uint32_t stage) const {
        return stage_tiles + stage * 2 * tile_bytes;
    }
};

template <int D>
__device__ __forceinline__ void fetch_tiles(const TensorMap& d_out, const TensorMap& qkv, const Query<D>& work,
                                            uint32_t query_heads, uint32_t key_value_heads) {
    using Work = Query<D>;
    auto& barriers = *work.barriers;
    const int start = int(work.segment.start), panels = D / 64, panel = int(work.head) * panels;
    const int key_panel = int(query_heads + work.group) * panels;
    const int value_panel = key_panel + int(key_value_heads) * panels;
    mbarrier_arrive_expect(&barriers.fixed, 2 * Work::tile_bytes);
    tma_load(work.q, &qkv, &barriers.fixed, {0, start + int(work.first), panel});
    tma_load(work.d_out, &d_out, &barriers.fixed, {0, start + int(work.first), panel});
    HopperStage<Work::stages> stage;
    for (uint32_t tile = 0; tile < work.tiles; ++tile, stage.next()) {
        const int row = start + int(work.range.begin + tile * Work::streamed_rows);
        unsigned char* to = work.k_tile(stage.index);
        mbarrier_wait(&barriers.empty[stage.index], stage.parity ^ 1);
        mbarrier_arrive_expect(&barriers.full[stage.index], 2 * Work::tile_bytes);
        tma_load(to, &qkv, &barriers.full[stage.index], {0, row, key_panel});
        tma_load(to + Work::tile_bytes, &qkv, &barriers.full[stage.index], {0, row, value_panel});
    }
}

// d_q / scale of a warpgroup's 64 queries, from row `row` of the fixed tiles on.
template <int D>
__device__ __forceinline__ void sum_query(const Query<D>& work, uint32_t row, uint32_t window, float scale,
                                          const Statistics (&mine)[2], float (&d_query)[1][D / 8][4]) {
    using Work = Query<D>;
    constexpr int rows = Work::streamed_rows;
    auto& barriers = *work.barriers;
    const uint32_t first = work.first + row, warp_first = first + threadIdx.x % 128 / 32 * 16;
    float p[1][rows / 8][4], ds[1][rows / 8][4];
    uint32_t packed[rows / 16][4];

    HopperStage<Work::stages> stage;
    uint32_t before = 0;
    mbarrier_wait(&barriers.fixed, 0);
    for (uint32_t tile = 0; tile < work.tiles; ++tile, stage.next()) {
        const uint32_t key = work.range.begin + tile * rows;
        unsigned char *k_tile = work.k_tile(stage.index), *v_tile = k_tile + Work::tile_bytes;
        mbarrier_wait(&barriers.full[stage.index], stage.parity);
        if (key + rows > work.segment.valid) {
            hopper_clear_rows<D, rows>(k_tile, work.segment.valid - key);
            hopper_clear_rows<D, rows>(v_tile, work.segment.valid - key);
            hopper_cleared();
        }
        wgmma_hold(flat(p));
        wgmma_fence();
        hopper_product_transposed<D, fixed_rows, rows>(p, work.q, row, k_tile);
        wgmma_commit();
        wgmma_wait<1>();  // d_q of the tile before; its packed registers are free
        if (tile > 0) hopper_release(&barriers.empty[before]);
        before = stage.index;
        wgmma_hold(flat(ds));
        wgmma_fence();
        hopper_product_transposed<D, fixed_rows, rows>(ds, work.d_out, row, v_tile);
        wgmma_commit();
        wgmma_wait<1>();  // the scores
        wgmma_hold(flat(p));
#pragma unroll
        for (int n = 0; n < rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                p[0][n][e] = exp2_approximate(fmaf(p[0][n][e], scale, -mine[e / 2].log_sum_exp));
            }
        }
        const bool all_visible = attention_all_visible(first, half_rows, key, rows, work.segment.valid, window);
        if (!all_visible) attention_hide(p, warp_first, key, work.segment.valid, window, 0.0f);
        wgmma_wait<0>();
        wgmma_hold(flat(ds));
#pragma unroll
        for (int n = 0; n < rows / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                ds[0][n][e] = p[0][n][e] * (ds[0][n][e] - mine[e / 2].delta);
            }
        }
        hopper_pack(packed, ds);
        wgmma_fence();
        hopper_product<D, rows>(d_query, packed, k_tile);
        wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_hold(flat(d_query));
}

template <int D>
__device__ __forceinline__ void attention_backward_query(const TensorMap& d_out, const TensorMap& qkv,
                                                         const Statistics* statistics, const uint32_t* segments,
                                                         bf16* d_qkv, uint32_t tokens, uint32_t query_heads,
                                                         uint32_t key_value_heads, uint32_t window, float score_scale) {
    using Work = Query<D>;
    Work work;
    work.segment = attention_segment(segments, blockIdx.x / query_heads);
    work.first = (gridDim.y - 1 - blockIdx.y) * fixed_rows;
    const uint32_t length = work.segment.length;
    if (work.first >= length) return;
    work.head = blockIdx.x % query_heads;
    work.group = work.head / (query_heads / key_value_heads);
    const uint32_t last = min(work.first + fixed_rows, length) - 1;
    work.range = attention_keys(work.first, last, work.segment.valid, window, Work::streamed_rows);
    work.tiles =
        work.range.begin < work.range.end ? ceil_divide(work.range.end - work.range.begin, Work::streamed_rows) : 0;
    work.q = shared_memory();
    work.d_out = work.q + Work::tile_bytes;
    work.stage_tiles = work.d_out + Work::tile_bytes;
    work.barriers = reinterpret_cast<Barriers<Work::stages>*>(work.k_tile(Work::stages));
    start(*work.barriers, 1);
    if (threadIdx.x < 128) {
        registers_decrease<24>();
        if (threadIdx.x == 0 && work.tiles > 0) fetch_tiles(d_out, qkv, work, query_heads, key_value_heads);
        return;
    }
    registers_increase<240>();
    const uint32_t row = hopper_warpgroup() * 64 - 64, warp_row = row + threadIdx.x % 128 / 32 * 16;
    Statistics mine[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const uint32_t query = work.first + warp_row + threadIdx.x % 32 / 4 + i * 8;
        mine[i] = {0.0f, 0.0f};
        if (query < length) mine[i] = statistics[uint64_t(work.head) * tokens + work.segment.start + query];
    }
    float d_query[1][D / 8][4];
    attention_clear(d_query);
    if (work.tiles > 0) sum_query(work, row, window, score_scale * log2_of_e, mine, d_query);

    const uint64_t stride = uint64_t(query_heads + 2 * key_value_heads) * D;
    hopper_meet();
    attention_store<D, fixed_rows>(d_query, score_scale, work.q, warp_row,
                                   d_qkv + work.segment.start * stride + uint64_t(work.head) * D, stride, work.first,
                                   length);
}

}  // namespace

#define BACKWARD_KERNELS(D)                                                                                           \
    TEMPER_KERNEL_ALONE(sm90_attention_backward_key_value_##D##_bf16, sm90_attention_threads,                         \
                  const __grid_constant__ TensorMap d_out,                                                            \
                  const __grid_constant__ TensorMap qkv, const Statistics* statistics, const uint32_t* segments,      \
                  bf16* d_qkv, uint32_t tokens, uint32_t query_heads, uint32_t key_value_heads, uint32_t window,      \
                  float score_scale) {                                                                                \
        attention_backward_key_value<D>(d_out, qkv, statistics, segments, d_qkv, tokens, query_heads,                 \
                                        key_value_heads, window, score_scale);                                        \
    }                                                                                                                 \
    TEMPER_KERNEL_ALONE(sm90_attention_backward_query_##D##_bf16, sm90_attention_threads,                             \
                  const __grid_constant__ TensorMap d_out,                                                            \
                  const __grid_constant__ TensorMap qkv, const Statistics* statistics, const uint32_t* segments,      \
                  bf16* d_qkv, uint32_t tokens, uint32_t query_heads, uint32_t key_value_heads, uint32_t window,      \
                  float score_scale) {                                                                                \
        attention_backward_query<D>(d_out, qkv, statistics, segments, d_qkv, tokens, query_heads, key_value_heads,    \
                                    window, score_scale);                                                             \
    }

BACKWARD_KERNELS(64)
BACKWARD_KERNELS(128)
