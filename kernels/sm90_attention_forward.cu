// Attention, forward, bf16, head sizes 64 and 128, on Hopper: the algorithm, the operands and the grid of
// attention_forward.cu, with tile copies, wgmma and warps of two kinds (FlashAttention-3, arXiv 2407.08608).
//
// Warpgroup 0 is the producer: one thread fetches q once and then k and v of one tile of 128 keys after the other, two
// stages of each, k and v with barriers of their own so that scores need not wait for v. Warpgroups 1 and 2 own 64 of
// the 128 queries each. The scores of a tile are issued before p v of the tile before, so that the softmax of one tile
// runs while the tensor cores multiply the other; p is packed to bf16 in registers and never goes through shared
// memory.
//
// Launch: 384 threads; grid as attention_forward.cu. `qkv` is a map of (64 columns, rows, panels) with boxes of 128
// rows: a box may bring rows of the next sequence, which scores hide. Rows of v that are not keys are cleared in shared
// memory, in the last tile only: their probabilities are 0, but 0 times what lies there has to be 0.
//
// Shared memory (bytes at D = 128 / 64): q 32,768 / 16,384; two stages of k and v, 4 x 32,768 / 16,384; barriers 72;
// together 163,912 / 81,992. The output leaves through q's place.
// Registers: producer 24, consumers 240 (24 * 128 + 240 * 256 = 64,512 of 65,536): scores 64, output D / 2, p 32.
//
// Floor: as attention_forward.cu. Speed: not measured.
//
// Rejected: three consumer warpgroups (192 queries; 160 registers do not hold scores, p and output at D = 128); storing
// the output with a tile copy (a box would overwrite rows of the next sequence); clusters that share k and v (the heads
// of a group already share them in L2).
#include "sm90_attention.cuh"

namespace {

constexpr int tile_rows = sm90_attention_rows, stages = sm90_forward_stages;

struct Barriers {
    uint64_t query, key_full[stages], key_empty[stages], value_full[stages], value_empty[stages];
};

// What both kinds of warps need to know.
template <int D>
struct Work {
    static constexpr uint32_t tile_bytes = tile_rows * D * 2;
    static_assert((1 + 2 * stages) * tile_bytes + sizeof(Barriers) == sm90_forward_bytes(D),
                  "the launcher gives a block what its layout needs");
    AttentionSegment segment;
    AttentionRange range;
    uint32_t head, group, first, last, tiles;
    unsigned char *q, *k, *v;
    Barriers* barriers;
};

template <int D>
__device__ __forceinline__ void produce(const TensorMap& qkv, const Work<D>& work, uint32_t query_heads,
                                        uint32_t key_value_heads) {
    Barriers& barriers = *work.barriers;
    const int start = int(work.segment.start), panels = D / 64;
    const int key_panel = int(query_heads + work.group) * panels;
    const int value_panel = key_panel + int(key_value_heads) * panels;
    mbarrier_arrive_expect(&barriers.query, Work<D>::tile_bytes);
    tma_load(work.q, &qkv, &barriers.query, {0, start + int(work.first), int(work.head) * panels});
    HopperStage<stages> stage;
    for (uint32_t tile = 0; tile < work.tiles; ++tile, stage.next()) {
        const int row = start + int(work.range.begin + tile * tile_rows);
        const uint32_t place = stage.index * Work<D>::tile_bytes;
        mbarrier_wait(&barriers.key_empty[stage.index], stage.parity ^ 1);
        mbarrier_arrive_expect(&barriers.key_full[stage.index], Work<D>::tile_bytes);
        tma_load(work.k + place, &qkv, &barriers.key_full[stage.index], {0, row, key_panel});
        mbarrier_wait(&barriers.value_empty[stage.index], stage.parity ^ 1);
        mbarrier_arrive_expect(&barriers.value_full[stage.index], Work<D>::tile_bytes);
        tma_load(work.v + place, &qkv, &barriers.value_full[stage.index], {0, row, value_panel});
    }
}

// The output of a warpgroup's 64 queries, from row `row` of the q tile on, times the sums in `softmax`.
template <int D>
__device__ __forceinline__ void consume(const Work<D>& work, uint32_t row, uint32_t window, float scale,
                                        AttentionSoftmax<1>& softmax, float (&output)[1][D / 8][4]) {
    Barriers& barriers = *work.barriers;
    const uint32_t first = work.first + row, warp_first = first + threadIdx.x % 128 / 32 * 16;
    const AttentionSegment segment = work.segment;
    float scores[1][tile_rows / 8][4], shrink[1][2];
    uint32_t p[tile_rows / 16][4];
    const auto soften = [&](uint32_t key) {
        const bool all_visible = attention_all_visible(first, 64, key, tile_rows, segment.valid, window);
        if (!all_visible) attention_hide(scores, warp_first, key, segment.valid, window);
        softmax.add(scores, scale, shrink);
    };

    HopperStage<stages> stage, before;  // of the tile whose scores are next, and of the one whose values are
    mbarrier_wait(&barriers.query, 0);
    mbarrier_wait(&barriers.key_full[0], 0);
    wgmma_hold(flat(scores));
    wgmma_fence();
    hopper_product_transposed<D, tile_rows, tile_rows>(scores, work.q, row, work.k);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(flat(scores));
    hopper_release(&barriers.key_empty[0]);
    soften(work.range.begin);
    hopper_pack(p, scores);
    stage.next();
    if (work.tiles > 1) mbarrier_wait(&barriers.key_full[stage.index], stage.parity);
    for (uint32_t tile = 1; tile < work.tiles; ++tile, stage.next(), before.next()) {
        wgmma_hold(flat(scores));
        wgmma_hold(flat(output));
        wgmma_fence();
        const unsigned char* k = work.k + stage.index * Work<D>::tile_bytes;
        hopper_product_transposed<D, tile_rows, tile_rows>(scores, work.q, row, k);
        wgmma_commit();
        mbarrier_wait(&barriers.value_full[before.index], before.parity);
        wgmma_fence();
        hopper_product<D, tile_rows>(output, p, work.v + before.index * Work<D>::tile_bytes);
        wgmma_commit();
        wgmma_wait<1>();
        wgmma_hold(flat(scores));
        hopper_release(&barriers.key_empty[stage.index]);
        soften(work.range.begin + tile * tile_rows);
        // The next keys are awaited before p v is, though they are used later: ptxas moves a wait for products up to
        // the last branch before it, which would be in front of the exponentials.
        HopperStage<stages> following = stage;
        following.next();
        if (tile + 1 < work.tiles) mbarrier_wait(&barriers.key_full[following.index], following.parity);
        wgmma_wait<0>();
        wgmma_hold(flat(output));
        hopper_release(&barriers.value_empty[before.index]);
        attention_scale(output, shrink);
        hopper_pack(p, scores);
    }
    unsigned char* v = work.v + before.index * Work<D>::tile_bytes;
    mbarrier_wait(&barriers.value_full[before.index], before.parity);
    const uint32_t key = work.range.begin + (work.tiles - 1) * tile_rows;
    if (key + tile_rows > segment.valid) {
        hopper_clear_rows<D, tile_rows>(v, segment.valid - key);
        hopper_cleared();
    }
    wgmma_hold(flat(output));
    wgmma_fence();
    hopper_product<D, tile_rows>(output, p, v);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_hold(flat(output));
}

template <int D>
__device__ __forceinline__ void attention_forward(const TensorMap& qkv, const uint32_t* segments, bf16* out,
                                                  float* log_sum_exp, uint32_t query_heads, uint32_t key_value_heads,
                                                  uint32_t window, float score_scale) {
    Work<D> work;
    work.segment = attention_segment(segments, blockIdx.x / query_heads);
    work.first = (gridDim.y - 1 - blockIdx.y) * tile_rows;
    const uint32_t length = work.segment.length;
    if (work.first >= length) return;
    work.head = blockIdx.x % query_heads;
    work.group = work.head / (query_heads / key_value_heads);
    work.last = min(work.first + tile_rows, length) - 1;
    work.range = attention_keys(work.first, work.last, work.segment.valid, window, tile_rows);
    work.tiles = work.range.begin < work.range.end ? ceil_divide(work.range.end - work.range.begin, tile_rows) : 0;
    work.q = shared_memory();
    work.k = work.q + Work<D>::tile_bytes;
    work.v = work.k + stages * Work<D>::tile_bytes;
    work.barriers = reinterpret_cast<Barriers*>(work.v + stages * Work<D>::tile_bytes);

    if (threadIdx.x == 0) {
        mbarrier_init(&work.barriers->query, 1);
        for (int i = 0; i < stages; ++i) {
            mbarrier_init(&work.barriers->key_full[i], 1);
            mbarrier_init(&work.barriers->value_full[i], 1);
            mbarrier_init(&work.barriers->key_empty[i], hopper_releases);
            mbarrier_init(&work.barriers->value_empty[i], hopper_releases);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_decrease<24>();
        if (threadIdx.x == 0 && work.tiles > 0) produce(qkv, work, query_heads, key_value_heads);
        return;
    }
    registers_increase<240>();
    const uint32_t row = hopper_warpgroup() * 64 - 64, warp_row = row + threadIdx.x % 128 / 32 * 16;
    const float scale = score_scale * log2_of_e;
    AttentionSoftmax<1> softmax;
    float output[1][D / 8][4], inverse[1][2];
    softmax.start();
    attention_clear(output);
    if (work.tiles > 0) consume(work, row, window, scale, softmax, output);

    const uint64_t first_out = work.segment.start * uint64_t(query_heads);
    softmax.finish(scale, inverse, log_sum_exp + first_out + work.head, query_heads, work.first + warp_row, length);
    attention_scale(output, inverse);
    hopper_meet();
    attention_store<D, tile_rows>(output, 1.0f, work.q, warp_row, out + (first_out + work.head) * D,
                                  uint64_t(query_heads) * D, work.first, length);
}

}  // namespace

TEMPER_KERNEL_ALONE(sm90_attention_forward_64_bf16, sm90_attention_threads, const __grid_constant__ TensorMap qkv,
                    const uint32_t* segments, bf16* out, float* log_sum_exp, uint32_t query_heads,
                    uint32_t key_value_heads, uint32_t window, float score_scale) {
    attention_forward<64>(qkv, segments, out, log_sum_exp, query_heads, key_value_heads, window, score_scale);
}

TEMPER_KERNEL_ALONE(sm90_attention_forward_128_bf16, sm90_attention_threads, const __grid_constant__ TensorMap qkv,
                    const uint32_t* segments, bf16* out, float* log_sum_exp, uint32_t query_heads,
                    uint32_t key_value_heads, uint32_t window, float score_scale) {
    attention_forward<128>(qkv, segments, out, log_sum_exp, query_heads, key_value_heads, window, score_scale);
}
