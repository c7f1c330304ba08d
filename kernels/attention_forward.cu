// Attention, forward, bf16, head sizes 64 and 128: out = softmax(q k^T scale) v, one pass over the keys with a running
// maximum and sum (FlashAttention-2, arXiv 2307.08691).
//
// qkv [T, (H + 2G) D] bf16, out [T, H D] bf16, log_sum_exp [T, H] f32 (natural logarithm). A row that sees no key gives
// out = 0 and log_sum_exp = -infinity. Keys at or beyond `valid` are never read.
//
// Launch: 128 threads; grid.x = segments * H, segment by segment, so that the query heads that share a key/value head
// run side by side and share it in L2; grid.y = blocks of 128 queries of the longest segment. Block y works on query
// block grid.y - 1 - y, and the work of a query block is its index + 1: the longest blocks start first whatever the
// lengths of the segments, without a schedule to build or copy. A block beyond its segment's end leaves at once.
//
// A warp owns 32 queries (two fragments of 16 rows, so that each fragment of K and V that ldmatrix loads is used twice;
// with one, ldmatrix needs all of the bandwidth of shared memory). Scores, probabilities and output stay in registers.
// Tiles of 32 keys at D = 128, 64 at D = 64; the next tile of k and v arrives while this one is used; one
// barrier for each tile.
//
// Shared memory (bytes at D = 128 / 64): q 32,768 / 16,384; two stages of k and v, 4 x 8,192; together 65,536 / 49,152,
// so that two blocks fit a multiprocessor of 163 KiB. The output leaves through q's place.
// Registers: output 16 D / 16 = 128 / 64, scores 32 / 64, fragments, addresses and sums about 50; at most 255, since
// two blocks of 128 threads share the file. No spills.
//
// Floor: 4 D FLOP for each visible pair of query and key and head; reads q, k, v and writes out once, 4 D bytes for
// each query row and head, plus k and v again from L2 for each query block. Speed: not measured.
//
// Rejected: tiles of 64 keys at D = 128 (scores need 64 registers; ptxas spills); 8 warps of 16 rows (ldmatrix, above);
// a schedule from the host's segment table (a copy each call; the grid above has the same order).
#include "attention.cuh"

namespace {

template <int D>
struct Forward {
    static constexpr int queries = attention_rows, keys = attention_forward_keys(D);
    static constexpr int threads = attention_forward_threads;
    static constexpr int row_tiles = 2, column_tiles = keys / 8;
    static constexpr int query_bytes = queries * D * 2, tile_bytes = keys * D * 2;
    static_assert(query_bytes + 4 * tile_bytes == attention_forward_bytes(D),
                  "the launcher gives a block what its layout needs");
    using Scores = float[row_tiles][column_tiles][4];
    using Output = float[row_tiles][D / 8][4];
};

template <int D>
__device__ __forceinline__ void attention_forward(const bf16* qkv, const uint32_t* segments, bf16* out,
                                                  float* log_sum_exp, uint32_t query_heads, uint32_t key_value_heads,
                                                  uint32_t window, float score_scale) {
    using Tile = Forward<D>;
    const AttentionSegment segment = attention_segment(segments, blockIdx.x / query_heads);
    const uint32_t first = (gridDim.y - 1 - blockIdx.y) * Tile::queries;
    if (first >= segment.length) return;

    const uint32_t head = blockIdx.x % query_heads, group = head / (query_heads / key_value_heads);
    const uint32_t stride = (query_heads + 2 * key_value_heads) * D;
    const bf16* rows = qkv + uint64_t(segment.start) * stride;
    const bf16* q = rows + uint64_t(head) * D;
    const bf16* k = rows + uint64_t(query_heads + group) * D;
    const bf16* v = k + uint64_t(key_value_heads) * D;
    unsigned char *q_tile = shared_memory(), *stages = q_tile + Tile::query_bytes;

    const uint32_t last = min(first + Tile::queries, segment.length) - 1;
    const AttentionRange range = attention_keys(first, last, segment.valid, window, Tile::keys);
    const uint32_t warp_row = threadIdx.x / 32 * 32;
    const float scale = score_scale * log2_of_e;
    AttentionSoftmax<Tile::row_tiles> softmax;
    float factor[Tile::row_tiles][2];
    softmax.start();
    typename Tile::Output output;
    attention_clear(output);

    const auto load = [&](uint32_t key, uint32_t stage) {
        unsigned char* tile = stages + stage * 2 * Tile::tile_bytes;
        attention_load<Tile::keys, D, Tile::threads>(tile, k, stride, key, segment.valid);
        attention_load<Tile::keys, D, Tile::threads>(tile + Tile::tile_bytes, v, stride, key, segment.valid);
        copy_async_commit();
    };
    if (range.begin < range.end) {
        attention_load<Tile::queries, D, Tile::threads>(q_tile, q, stride, first, segment.length);
        load(range.begin, 0);
    }
    uint32_t stage = 0;
    for (uint32_t key = range.begin; key < range.end; key += Tile::keys, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();  // this stage is there; nobody still reads the other one
        if (key + Tile::keys < range.end) load(key + Tile::keys, stage ^ 1);
        const unsigned char *k_tile = stages + stage * 2 * Tile::tile_bytes, *v_tile = k_tile + Tile::tile_bytes;
        typename Tile::Scores scores;
        attention_clear(scores);
        attention_product_transposed<D, Tile::queries, Tile::keys>(scores, q_tile, warp_row, k_tile);
        const bool all_visible = key + Tile::keys <= min(first + 1, segment.valid) && last - key < window;
        if (!all_visible) attention_hide(scores, first + warp_row, key, segment.valid, window);
        softmax.add(scores, scale, factor);
        attention_scale(output, factor);
        attention_product<D, Tile::keys>(output, scores, v_tile);
    }

    const uint64_t first_out = segment.start * uint64_t(query_heads);
    softmax.finish(scale, factor, log_sum_exp + first_out + head, query_heads, first + warp_row, segment.length);
    attention_scale(output, factor);
    attention_store<D, Tile::queries>(output, 1.0f, q_tile, warp_row, out + (first_out + head) * D,
                                      uint64_t(query_heads) * D, first, segment.length);
}

}  // namespace

TEMPER_KERNEL(attention_forward_64_bf16, 128, const bf16* qkv, const uint32_t* segments, bf16* out, float* log_sum_exp,
              uint32_t query_heads, uint32_t key_value_heads, uint32_t window, float score_scale) {
    attention_forward<64>(qkv, segments, out, log_sum_exp, query_heads, key_value_heads, window, score_scale);
}

TEMPER_KERNEL(attention_forward_128_bf16, 128, const bf16* qkv, const uint32_t* segments, bf16* out, float* log_sum_exp,
              uint32_t query_heads, uint32_t key_value_heads, uint32_t window, float score_scale) {
    attention_forward<128>(qkv, segments, out, log_sum_exp, query_heads, key_value_heads, window, score_scale);
}
