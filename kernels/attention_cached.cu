// Attention of new rows to a cache of keys and values, for generation: bf16 or f32, any head size up to 256.
//
//   attention_cached_store_*    cache[slot of row t] = the key and value columns of qkv[t]
//   attention_cached_forward_*  out[t, h] = softmax(q k^T scale) v over the cache's rows slots[first .. first + count]
//   qkv [T, (H + 2 G) D], cache [slots, 2 G D] (a slot's keys before its values), out [T, H D] in bf16 or f32;
//   rows [T, 3] u32: first, count, slot of each new row; slots u32: cache rows in order of position
//
// What a row sees (its sequence up to itself, within the sliding window) was decided on the host: here it is a piece of a
// list of slots. A row sees at least itself.
//
// Launch. store: a block of 32 to 256 threads a row. forward: a block of 128 threads a row and query head. A warp takes
// every fourth tile of 32 keys. It passes over a tile's keys with the lanes on the columns lane, lane + 32 and so on, and
// keeps the score of key k in lane k; then over its values in the same way. The softmax is online, a step a tile. The
// warps' sums meet in shared memory and are added in order of the warps.
// Shared memory. forward: for each of 4 warps D sums, then maximum and total; at most 4,128 bytes. store: none.
// Registers: forward 55, of which query and sums have 16; store 16. Widths: store has vectors of 16 bytes and single elements; forward reads single
// elements, 32 neighbours a warp.
// Bytes: 2 D stored elements for each key that a row and head sees; the heads of a group and rows with common slots meet
// them in L2. FLOP: 4 D for each. Speed: not measured.
//
// Rejected for now: a block a group of query heads, and long lists split over blocks (both pay only where few sequences
// leave the device idle); tensor cores (a row has one query).
#include "vectors.cuh"

namespace {

constexpr int warps = attention_cached_warps, tile = 32, registers = 8;
constexpr int store_threads = 256, forward_threads = 32 * warps;

template <typename T, int width>
__device__ __forceinline__ void store(const T* qkv, const uint32_t* rows, T* cache, uint32_t query_cols, uint32_t cols) {
    const T* from = qkv + uint64_t(blockIdx.x) * (query_cols + cols) + query_cols;
    T* to = cache + uint64_t(rows[3 * uint64_t(blockIdx.x) + 2]) * cols;
    for (uint32_t column = threadIdx.x * width; column < cols; column += blockDim.x * width) {
        store_packed<T, width>(to + column, load_packed<T, width>(from + column));
    }
}

// One warp's part of a softmax: the sums are weighted by exp(score - maximum), `total` is the sum of these weights.
struct Part {
    float sums[registers], maximum, total;
};

// Takes in `count` (at most 32) keys and values; lane k holds the slot of the k-th.
template <typename T>
__device__ __forceinline__ void take_tile(Part& part, const float (&query)[registers], const T* keys, const T* values,
                                          uint64_t stride, uint32_t slot, uint32_t count, uint32_t D) {
    const uint32_t lane = threadIdx.x % 32;
    float score = negative_infinity;
#pragma unroll 1
    for (uint32_t k = 0; k < count; ++k) {
        const T* key = keys + __shfl_sync(full_warp, slot, k) * stride;
        float product = 0.0f;
#pragma unroll
        for (int j = 0; j < registers; ++j) {
            const uint32_t column = lane + 32 * j;
            if (column < D) product = fmaf(query[j], to_float(key[column]), product);
        }
        product = warp_sum(product);
        if (lane == k) score = product;
    }
    const float largest = fmaxf(part.maximum, warp_max(score));
    const float shift = largest == negative_infinity ? 0.0f : largest;
    const float weight = expf(score - shift), shrink = expf(part.maximum - shift);
    part.total = part.total * shrink + warp_sum(weight);
    part.maximum = largest;
#pragma unroll
    for (int j = 0; j < registers; ++j) part.sums[j] *= shrink;
#pragma unroll 1
    for (uint32_t k = 0; k < count; ++k) {
        const T* value = values + __shfl_sync(full_warp, slot, k) * stride;
        const float factor = __shfl_sync(full_warp, weight, k);
#pragma unroll
        for (int j = 0; j < registers; ++j) {
            const uint32_t column = lane + 32 * j;
            if (column < D) part.sums[j] = fmaf(factor, to_float(value[column]), part.sums[j]);
        }
    }
}

// Adds the warps' parts, each [D sums, maximum, total] in shared memory, and writes the head's columns of a row.
template <typename T>
__device__ __forceinline__ void write_sum(const float* parts, T* out, uint32_t D) {
    const uint32_t pitch = D + 2;
    float largest = negative_infinity, factors[warps], total = 0.0f;
#pragma unroll
    for (int w = 0; w < warps; ++w) largest = fmaxf(largest, parts[w * pitch + D]);
    const float shift = largest == negative_infinity ? 0.0f : largest;
#pragma unroll
    for (int w = 0; w < warps; ++w) {
        factors[w] = expf(parts[w * pitch + D] - shift);
        total += factors[w] * parts[w * pitch + D + 1];
    }
    for (uint32_t column = threadIdx.x; column < D; column += forward_threads) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum = fmaf(factors[w], parts[w * pitch + column], sum);
        out[column] = from_float<T>(sum / total);
    }
}

template <typename T>
__device__ __forceinline__ void forward(const T* qkv, const T* cache, T* out, const uint32_t* rows, const uint32_t* slots,
                                        uint32_t query_heads, uint32_t key_value_heads, uint32_t D, float scale) {
    const uint64_t row = blockIdx.x / query_heads, stride = uint64_t(2 * key_value_heads) * D;
    const uint32_t head = blockIdx.x % query_heads, group = head / (query_heads / key_value_heads);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t count = rows[3 * row + 1];
    const uint32_t* seen = slots + rows[3 * row];
    const T* source = qkv + row * (uint64_t(query_heads) * D + stride) + uint64_t(head) * D;
    float query[registers];
    Part part;
    part.maximum = negative_infinity;
    part.total = 0.0f;
#pragma unroll
    for (int j = 0; j < registers; ++j) {
        query[j] = lane + 32 * j < D ? to_float(source[lane + 32 * j]) * scale : 0.0f;
        part.sums[j] = 0.0f;
    }
    const T* keys = cache + uint64_t(group) * D;
    const T* values = keys + uint64_t(key_value_heads) * D;
    for (uint32_t first = warp * tile; first < count; first += warps * tile) {
        const uint32_t left = min(count - first, uint32_t(tile));
        const uint32_t slot = lane < left ? seen[first + lane] : 0;
        take_tile(part, query, keys, values, stride, slot, left, D);
    }
    float* parts = reinterpret_cast<float*>(shared_memory());
    float* mine = parts + warp * (D + 2);
#pragma unroll
    for (int j = 0; j < registers; ++j) {
        if (lane + 32 * j < D) mine[lane + 32 * j] = part.sums[j];
    }
    if (lane == 0) {
        mine[D] = part.maximum;
        mine[D + 1] = part.total;
    }
    __syncthreads();
    write_sum(parts, out + row * query_heads * D + uint64_t(head) * D, D);
}

}  // namespace

#define CACHED_KERNELS(type, suffix)                                                                                   \
    TEMPER_KERNEL(attention_cached_store_##suffix, store_threads, const type* qkv, const uint32_t* rows, type* cache,  \
                  uint32_t query_cols, uint32_t cols, uint32_t vectorised) {                                           \
        if (vectorised) {                                                                                              \
            store<type, 16 / sizeof(type)>(qkv, rows, cache, query_cols, cols);                                        \
        } else {                                                                                                       \
            store<type, 1>(qkv, rows, cache, query_cols, cols);                                                        \
        }                                                                                                              \
    }                                                                                                                  \
    TEMPER_KERNEL(attention_cached_forward_##suffix, forward_threads, const type* qkv, const type* cache, type* out,   \
                  const uint32_t* rows, const uint32_t* slots, uint32_t query_heads, uint32_t key_value_heads,         \
                  uint32_t head_dim, float scale) {                                                                    \
        forward(qkv, cache, out, rows, slots, query_heads, key_value_heads, head_dim, scale);                          \
    }

CACHED_KERNELS(bf16, bf16)
CACHED_KERNELS(float, f32)
