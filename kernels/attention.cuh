// Shared by the attention kernels: which rows and keys a block works on, and tiles of bf16 in shared memory with the
// two matrix products that forward and backward are made of.
//
// A query q of a segment sees key k when k <= q, q - k < window and k < valid. With unsigned numbers the first two are
// one comparison: q - k < window, because a key after the query wraps to a number beyond any window. "No window" is
// 2^31, which no sequence reaches.
#pragma once

#include "common.cuh"

constexpr float log2_of_e = 1.4426950408889634f;
constexpr float natural_log_of_2 = 0.6931471805599453f;

// One sequence: its first row in the batch, its rows, and how many of them are tokens rather than padding.
struct AttentionSegment {
    uint32_t start, length, valid;
};

__device__ __forceinline__ AttentionSegment attention_segment(const uint32_t* segments, uint32_t index) {
    return {segments[3 * index], segments[3 * index + 1], segments[3 * index + 2]};
}

__device__ __forceinline__ bool attention_visible(uint32_t query, uint32_t key, uint32_t valid, uint32_t window) {
    return query - key < window && key < valid;
}

// Whether each of `queries` queries from first_query on sees each of `keys` keys from first_key on.
__device__ __forceinline__ bool attention_all_visible(uint32_t first_query, uint32_t queries, uint32_t first_key,
                                                      uint32_t keys, uint32_t valid, uint32_t window) {
    return first_key + keys <= min(first_query + 1, valid) && first_query + queries - 1 - first_key < window;
}

// What the backward pass keeps of one row and head: its log_sum_exp in the unit of the reader, and rowsum(d_out * out).
struct AttentionStatistics {
    float log_sum_exp, delta;
};

// A range of rows of a segment; empty when end <= begin.
struct AttentionRange {
    uint32_t begin, end;
};

// The keys that some query of first..last sees; `begin` is rounded down to a multiple of `tile`.
__device__ __forceinline__ AttentionRange attention_keys(uint32_t first, uint32_t last, uint32_t valid, uint32_t window,
                                                         uint32_t tile) {
    const uint32_t begin = first + 1 > window ? first + 1 - window : 0;
    return {begin / tile * tile, min(last + 1, valid)};
}

// The queries that see some key of first..last; `begin` is rounded down to a multiple of `tile`.
__device__ __forceinline__ AttentionRange attention_queries(uint32_t first, uint32_t last, AttentionSegment segment,
                                                            uint32_t window, uint32_t tile) {
    if (first >= segment.valid) return {0, 0};
    const uint32_t last_key = min(last, segment.valid - 1);
    return {first / tile * tile, min(last_key + window, segment.length)};
}

// A tile of `rows` x D bf16 in shared memory, 1024-byte aligned: panels of 64 columns, each with rows of 128 bytes, in
// which the 16-byte chunk c lies at c XOR (row mod 8). Eight rows of one column chunk then lie in eight different
// groups of banks, so ldmatrix has no conflicts. It is also what a tensor map with 128-byte swizzle writes.
template <int rows>
__device__ __forceinline__ uint32_t attention_offset(uint32_t row, uint32_t chunk) {
    return chunk / 8 * (rows * 128) + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

// Starts copying rows first.. of a matrix to a tile. Rows from `end` on become 0 and are not read.
template <int rows, int D, int threads>
__device__ __forceinline__ void attention_load(unsigned char* tile, const bf16* source, uint32_t stride, uint32_t first,
                                               uint32_t end) {
    constexpr int chunks = D / 8, step = threads / chunks;
    static_assert(step % 8 == 0 && rows % step == 0, "a thread's chunks lie at the same place of their rows");
    const uint32_t row = threadIdx.x / chunks, chunk = threadIdx.x % chunks;
    unsigned char* to = tile + attention_offset<rows>(row, chunk);
    const bf16* from = source + uint64_t(first + row) * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < rows / step; ++i) {
        copy_async_16(to + i * step * 128, from, first + row + i * step < end);
        from += step * stride;
    }
}

// The same address as attention_offset(row + lane's row, 2 * pair + low), but with what depends on the lane in
// `lane_part` = attention_offset(lane's row, low), low being 0 or 1: few registers hold the addresses of a whole tile.
template <int rows>
__device__ __forceinline__ uint32_t attention_step(uint32_t lane_part, uint32_t row, uint32_t pair) {
    return (lane_part ^ (pair % 4 * 32)) + pair / 4 * (rows * 128) + row * 128;
}

// c[i][n] += a b^T: rows a_row + 16i.. of tile a (16 each) against rows 8n.. of tile b (8 each), over all D columns.
template <int D, int a_rows, int b_rows, int row_tiles, int column_tiles>
__device__ __forceinline__ void attention_product_transposed(float (&c)[row_tiles][column_tiles][4],
                                                             const unsigned char* a, uint32_t a_row,
                                                             const unsigned char* b) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t a_lane = attention_offset<a_rows>(a_row + lane % 16, lane / 16);
    const uint32_t b_lane = attention_offset<b_rows>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
        uint32_t left[row_tiles][4];
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
            ldmatrix_x4(left[i], a + attention_step<a_rows>(a_lane, 16 * i, k));
        }
#pragma unroll
        for (int n = 0; n < column_tiles; n += 2) {
            uint32_t both[4];
            ldmatrix_x4(both, b + attention_step<b_rows>(b_lane, 8 * n, k));
            const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
            for (int i = 0; i < row_tiles; ++i) {
                mma_m16n8k16(c[i][n], left[i], first);
                mma_m16n8k16(c[i][n + 1], left[i], second);
            }
        }
    }
}

// c[i][n] += a b: accumulators `a` of an earlier product, rounded to bf16, as the left operand (an accumulator holds
// its elements where the operand wants them), and the rows of tile b, as many as `a` has columns.
template <int D, int b_rows, int row_tiles, int k_tiles>
__device__ __forceinline__ void attention_product(float (&c)[row_tiles][D / 8][4],
                                                  const float (&a)[row_tiles][k_tiles][4], const unsigned char* b) {
    const uint32_t lane = threadIdx.x % 32, b_lane = attention_offset<b_rows>(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < k_tiles / 2; ++k) {
        uint32_t left[row_tiles][4];
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
            left[i][0] = pack_bf16(a[i][2 * k][0], a[i][2 * k][1]);
            left[i][1] = pack_bf16(a[i][2 * k][2], a[i][2 * k][3]);
            left[i][2] = pack_bf16(a[i][2 * k + 1][0], a[i][2 * k + 1][1]);
            left[i][3] = pack_bf16(a[i][2 * k + 1][2], a[i][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t both[4];
            ldmatrix_x4_transposed(both, b + attention_step<b_rows>(b_lane, 16 * k, n / 2));
            const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
            for (int i = 0; i < row_tiles; ++i) {
                mma_m16n8k16(c[i][n], left[i], first);
                mma_m16n8k16(c[i][n + 1], left[i], second);
            }
        }
    }
}

// Writes a warp's accumulators, times `factor`, as rows tile_row.. of a bf16 matrix, through the same rows of `tile`,
// which nobody else may be using: so that the matrix is written 16 bytes at a time. Rows from `end` on are not written.
template <int D, int rows, int row_tiles>
__device__ __forceinline__ void attention_store(const float (&c)[row_tiles][D / 8][4], float factor,
                                                unsigned char* tile, uint32_t tile_row, bf16* target, uint64_t stride,
                                                uint32_t first, uint32_t end) {
    const uint32_t lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 4;
    const uint32_t lane_part = attention_offset<rows>(tile_row + group, 0) + pair;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        unsigned char* to = tile + (lane_part ^ (n % 8 * 16)) + n / 8 * (rows * 128);
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
            *reinterpret_cast<uint32_t*>(to + 16 * i * 128) = pack_bf16(c[i][n][0] * factor, c[i][n][1] * factor);
            *reinterpret_cast<uint32_t*>(to + (16 * i + 8) * 128) = pack_bf16(c[i][n][2] * factor, c[i][n][3] * factor);
        }
    }
    __syncwarp();
    constexpr uint32_t chunks = D / 8;
#pragma unroll 4
    for (uint32_t index = lane; index < 16 * row_tiles * chunks; index += 32) {
        const uint32_t row = tile_row + index / chunks, chunk = index % chunks;
        if (first + row >= end) continue;
        const auto* from = reinterpret_cast<const bf16*>(tile + attention_offset<rows>(row, chunk));
        store_vector(target + (first + row) * stride + chunk * 8, load_vector<bf16, 8>(from));
    }
}

template <int row_tiles, int column_tiles>
__device__ __forceinline__ void attention_clear(float (&c)[row_tiles][column_tiles][4]) {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) c[i][n][0] = c[i][n][1] = c[i][n][2] = c[i][n][3] = 0.0f;
    }
}

// Multiplies the two rows that this lane holds of each fragment.
template <int row_tiles, int column_tiles>
__device__ __forceinline__ void attention_scale(float (&c)[row_tiles][column_tiles][4],
                                                const float (&factor)[row_tiles][2]) {
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) c[i][n][e] *= factor[i][e / 2];
        }
    }
}

// Hides the keys that a row does not see: scores become -infinity, probabilities 0.
template <int row_tiles, int column_tiles>
__device__ __forceinline__ void attention_hide(float (&scores)[row_tiles][column_tiles][4], uint32_t first_query,
                                               uint32_t first_key, uint32_t valid, uint32_t window,
                                               float hidden = negative_infinity) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
        for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const uint32_t query = first_query + 16 * i + lane / 4 + e / 2 * 8;
                const uint32_t key = first_key + 8 * n + lane % 4 * 2 + e % 2;
                if (!attention_visible(query, key, valid, window)) scores[i][n][e] = hidden;
            }
        }
    }
}

// The running softmax of the rows that this lane holds: lane / 4 and lane / 4 + 8 of each fragment.
template <int row_tiles>
struct AttentionSoftmax {
    // Maximum of the scores seen so far, and this lane's part of the sum of exp(score - maximum).
    float maximum[row_tiles][2], sum[row_tiles][2];

    __device__ __forceinline__ void start() {
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
            maximum[i][0] = maximum[i][1] = negative_infinity;
            sum[i][0] = sum[i][1] = 0.0f;
        }
    }

    // Scores become exp(score - maximum), and `shrink` what earlier results have to be multiplied with because the
    // maximum grew. `scale` includes log2(e).
    template <int column_tiles>
    __device__ __forceinline__ void add(float (&scores)[row_tiles][column_tiles][4], float scale,
                                        float (&shrink)[row_tiles][2]) {
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float largest = maximum[i][half];
#pragma unroll
                for (int n = 0; n < column_tiles; ++n) {
                    largest = fmaxf(largest, fmaxf(scores[i][n][2 * half], scores[i][n][2 * half + 1]));
                }
                largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 1));
                largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, 2));
                // A row without a visible key so far: any finite shift makes its terms 0 rather than NaN.
                const float shift = largest == negative_infinity ? 0.0f : largest * scale;
                shrink[i][half] = exp2_approximate(maximum[i][half] * scale - shift);
                maximum[i][half] = largest;
                float total = 0.0f;
#pragma unroll
                for (int n = 0; n < column_tiles; ++n) {
#pragma unroll
                    for (int e = 2 * half; e < 2 * half + 2; ++e) {
                        scores[i][n][e] = exp2_approximate(fmaf(scores[i][n][e], scale, -shift));
                        total += scores[i][n][e];
                    }
                }
                sum[i][half] = sum[i][half] * shrink[i][half] + total;
            }
        }
    }

    // Writes log_sum_exp, `first_row` being the row in the segment of the first fragment's first row; `inverse` becomes
    // what results have to be multiplied with.
    __device__ __forceinline__ void finish(float scale, float (&inverse)[row_tiles][2], float* log_sum_exp,
                                           uint32_t stride, uint32_t first_row, uint32_t length) {
#pragma unroll
        for (int i = 0; i < row_tiles; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float total = sum[i][half];
                total += __shfl_xor_sync(full_warp, total, 1);
                total += __shfl_xor_sync(full_warp, total, 2);
                inverse[i][half] = total > 0.0f ? 1.0f / total : 0.0f;
                const uint32_t row = first_row + 16 * i + 8 * half + threadIdx.x % 32 / 4;
                if (threadIdx.x % 4 == 0 && row < length) {
                    log_sum_exp[uint64_t(row) * stride] =
                        total > 0.0f ? maximum[i][half] * (scale * natural_log_of_2) + logf(total) : negative_infinity;
                }
            }
        }
    }
};
