// Rows of a table by index (the embedding), and the embedding's gradient.
//
//   gather_rows_*            out[i] = from[indices[i]]             from [V, d], indices [n] u32, out [n, d], one dtype
//   embedding_sort_tiles     keys of each tile of 512 tokens in order; a key is id << 32 | token
//   embedding_merge_tiles    all keys in order
//   embedding_sum_runs_*     d_table[id] += sum of d_out[t] over the tokens t of id, in token order
//                            d_out [T, d], d_table [V, d] f32
//
// The gradient is deterministic without atomics: keys are unique, so their order is the one sorted order whatever sorts
// them; the first key of a run of equal ids owns the row of the table, starts from what the row holds and adds the rows
// of d_out one after another, as the CPU does.
//
// Bytes: gather 2 stored elements; gradient T d (stored + 4 read) once, and 8 read-write per distinct id and column.
// Sorting touches 8 bytes a token a few times, all of it in L2: at T = 16,384, 512 x 512 comparisons a tile and
// 9 steps of binary search in each of 32 tiles for each token, spread over 8 lanes.
//
// Launch shapes. gather: a block of 32 to 256 threads a row. sort: 512 threads a tile. merge: 256 threads for 32 tokens.
// sum: 128 threads, a warp for each (key, 256 columns; 64 with width 1): most warps add one row, so a row of 4,096
// columns keeps 16 warps busy, and a warp whose key is not the first of its run leaves at once. A warp reads 32 keys
// with one access and has 8 rows (f32: 4) in flight before it adds them, because a frequent id (a beginning of sequence,
// "the") is one long chain of additions whose loads must not be a chain too.
// Shared memory: sort 2,048 bytes (the ids of the tile). Registers: at most 64.
//
// Rejected: atomicAdd (order shows); a linked list of equal ids (every hop waits for memory twice); counting per
// vocabulary entry (touches V entries for T tokens); comparing all pairs of tokens (T^2: 4e9 at T = 64k).

#include "vectors.cuh"

constexpr int gather_threads = 256;
constexpr int tile = embedding_tile;
constexpr int merge_threads = 256;
constexpr int merge_lanes = 8;
constexpr int sum_threads = 128;

template <typename T, int width>
__device__ __forceinline__ void gather(const T* __restrict__ from, const uint32_t* __restrict__ indices,
                                       T* __restrict__ out, uint32_t cols) {
    const T* source = from + uint64_t(indices[blockIdx.x]) * cols;
    T* target = out + uint64_t(blockIdx.x) * cols;
#pragma unroll 4
    for (uint32_t column = threadIdx.x * width; column < cols; column += blockDim.x * width) {
        store_vector(target + column, load_vector<T, width>(source + column));
    }
}

TEMPER_KERNEL(embedding_sort_tiles, tile, const uint32_t* __restrict__ ids, uint64_t* __restrict__ keys,
              uint32_t tokens) {
    uint32_t* shared = reinterpret_cast<uint32_t*>(shared_memory());
    const uint32_t first = blockIdx.x * tile, count = min(uint32_t(tile), tokens - first), i = threadIdx.x;
    const uint32_t id = i < count ? ids[first + i] : 0;
    shared[i] = id;
    __syncthreads();
    if (i >= count) return;
    uint32_t rank = 0;
#pragma unroll 8
    for (uint32_t j = 0; j < i; j++) rank += shared[j] <= id;
#pragma unroll 8
    for (uint32_t j = i + 1; j < count; j++) rank += shared[j] < id;
    keys[first + rank] = uint64_t(id) << 32 | (first + i);
}

// How many of the `count` ascending `keys` are below `key`.
__device__ __forceinline__ uint32_t count_below(const uint64_t* __restrict__ keys, uint32_t count, uint64_t key) {
    uint32_t low = 0;
    while (count > 0) {
        const uint32_t half = count / 2;
        const bool below = keys[low + half] < key;
        low = below ? low + half + 1 : low;
        count = below ? count - half - 1 : half;
    }
    return low;
}

TEMPER_KERNEL(embedding_merge_tiles, merge_threads, const uint64_t* __restrict__ tiles, uint64_t* __restrict__ keys,
              uint32_t tokens) {
    const uint32_t position = (blockIdx.x * merge_threads + threadIdx.x) / merge_lanes;
    const uint32_t lane = threadIdx.x % merge_lanes, own = position / tile;
    const bool live = position < tokens;
    const uint64_t key = live ? tiles[position] : 0;
    uint32_t rank = 0;
    for (uint32_t other = lane; live && other * tile < tokens; other += merge_lanes) {
        const uint32_t first = other * tile;
        rank += other == own ? position - first : count_below(tiles + first, min(uint32_t(tile), tokens - first), key);
    }
#pragma unroll
    for (int offset = merge_lanes / 2; offset > 0; offset /= 2) rank += __shfl_xor_sync(full_warp, rank, offset);
    if (live && lane == 0) keys[rank] = key;
}

template <typename T, int width>
__device__ __forceinline__ void sum_runs(const uint64_t* __restrict__ keys, uint32_t tokens, const T* __restrict__ d_out,
                                         float* __restrict__ d_table, uint32_t cols, uint32_t chunks) {
    // Two groups of 32 * width columns, so that each access of the warp is one contiguous piece in both dtypes.
    constexpr int groups = 2, span = 32 * width, depth = sizeof(T) == 2 ? 8 : 4;
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t work = uint64_t(blockIdx.x) * (sum_threads / 32) + threadIdx.x / 32;
    const uint32_t slot = uint32_t(work / chunks), chunk = uint32_t(work % chunks);
    if (slot >= tokens) return;
    const uint32_t id = uint32_t(keys[slot] >> 32);
    if (slot > 0 && uint32_t(keys[slot - 1] >> 32) == id) return;

    const uint32_t column = chunk * groups * span + lane * width;
    float* row = d_table + uint64_t(id) * cols + column;
    float sum[groups][width] = {};
#pragma unroll
    for (int g = 0; g < groups; g++) {
        if (column + g * span < cols) load_floats<float, width>(row + g * span, sum[g]);
    }
    uint32_t run = 32;
    for (uint32_t first = slot; run == 32; first += 32) {
        const uint64_t key = first + lane < tokens ? keys[first + lane] : ~uint64_t(0);
        run = __popc(__ballot_sync(full_warp, uint32_t(key >> 32) == id));
        for (uint32_t begin = 0; begin < run; begin += depth) {
            Packed<T, width> loaded[depth][groups] = {};
#pragma unroll
            for (int r = 0; r < depth; r++) {
                const uint32_t token = __shfl_sync(full_warp, uint32_t(key), begin + r);
#pragma unroll
                for (int g = 0; g < groups; g++) {
                    if (begin + r < run && column + g * span < cols) {
                        loaded[r][g] = load_packed<T, width>(d_out + uint64_t(token) * cols + column + g * span);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < depth; r++) {
                if (begin + r >= run) break;
#pragma unroll
                for (int g = 0; g < groups; g++) {
                    float added[width];
                    unpack(loaded[r][g], added);
#pragma unroll
                    for (int k = 0; k < width; k++) sum[g][k] += added[k];
                }
            }
        }
    }
#pragma unroll
    for (int g = 0; g < groups; g++) {
        if (column + g * span < cols) store_floats<float, width>(row + g * span, sum[g]);
    }
}

#define EMBEDDING_KERNELS(name, T)                                                                                   \
    TEMPER_KERNEL(gather_rows_##name, gather_threads, const T* __restrict__ from,                                    \
                  const uint32_t* __restrict__ indices, T* __restrict__ out, uint32_t cols, uint32_t vectorised) {   \
        if (vectorised) {                                                                                            \
            gather<T, 16 / sizeof(T)>(from, indices, out, cols);                                                     \
        } else {                                                                                                     \
            gather<T, 1>(from, indices, out, cols);                                                                  \
        }                                                                                                            \
    }                                                                                                                \
    TEMPER_KERNEL(embedding_sum_runs_##name, sum_threads, const uint64_t* __restrict__ keys, uint32_t tokens,        \
                  const T* __restrict__ d_out, float* __restrict__ d_table, uint32_t cols, uint32_t chunks,          \
                  uint32_t vectorised) {                                                                             \
        if (vectorised) {                                                                                            \
            sum_runs<T, 4>(keys, tokens, d_out, d_table, cols, chunks);                                              \
        } else {                                                                                                     \
            sum_runs<T, 1>(keys, tokens, d_out, d_table, cols, chunks);                                              \
        }                                                                                                            \
    }

EMBEDDING_KERNELS(bf16, bf16)
EMBEDDING_KERNELS(f32, float)
