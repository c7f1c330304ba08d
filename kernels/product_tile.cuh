// Tiles of bf16 matrices in shared memory, as the matrix-product kernels (gemm.cu, lora.cu) use them: copied in without
// bank conflicts, guarded at the matrix's edges, and read as fragments of mma.m16n8k16.
#pragma once

#include "common.cuh"

// rows x columns of bf16 (columns 16, 32, 64 or 128), cut into chunks of 8 elements (16 bytes). Chunk c of a row lies
// at c xor a function of the row, so that the 8 rows which one ldmatrix reads fall into the 8 different 16-byte columns
// of the 32 banks.
template <int row_count, int column_count>
struct Tile {
    static constexpr int rows = row_count;
    static constexpr int columns = column_count;
    static constexpr int chunks = column_count / 8;
    static constexpr int bytes = row_count * column_count * 2;
    static_assert(chunks == 2 || chunks == 4 || chunks == 8 || chunks == 16, "the swizzle knows these widths");

    __device__ __forceinline__ static int offset(int row, int chunk) {
        const int turn = chunks >= 8 ? row & 7 : chunks == 4 ? (row >> 1) & 3 : (row >> 2) & 1;
        return (row * chunks + (chunk ^ turn)) * 16;
    }
};

// Where the rows of a row-major matrix start.
struct PlainRows {
    const bf16* first;
    uint64_t leading;
    __device__ __forceinline__ const bf16* operator()(uint32_t row) const { return first + row * leading; }
};

// Eight elements of which only the first `count` exist; the others are zero. For what copy_async_16 cannot take: the
// ragged end of a row, and matrices whose rows are not aligned to 16 bytes.
__device__ __forceinline__ void copy_elements(unsigned char* shared, const bf16* source, int count) {
    uint32_t packed[4];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        const uint32_t low = 2 * pair < count ? source[2 * pair].bits : 0;
        const uint32_t high = 2 * pair + 1 < count ? source[2 * pair + 1].bits : 0;
        packed[pair] = low | high << 16;
    }
    *reinterpret_cast<uint4*>(shared) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
}

// Starts the copy of the tile whose corner is (row, column) of a row_count x column_count matrix; outside it are zeros.
// `aligned`: every row starts at a multiple of 16 bytes. The caller commits, waits and synchronises.
template <typename Shape, int threads, bool aligned, typename Rows>
__device__ __forceinline__ void copy_tile(unsigned char* shared, const Rows& rows, uint32_t row, uint32_t column,
                                          uint32_t row_count, uint32_t column_count) {
    constexpr int total = Shape::rows * Shape::chunks;
#pragma unroll
    for (int first = 0; first < total; first += threads) {
        const int index = first + int(threadIdx.x);
        if (total % threads != 0 && index >= total) break;
        const int tile_row = index / Shape::chunks, chunk = index % Shape::chunks;
        unsigned char* target = shared + Shape::offset(tile_row, chunk);
        const uint32_t source_row = row + tile_row, source_column = column + chunk * 8;
        const bool inside = source_row < row_count && source_column < column_count;
        const bool whole = inside && column_count - source_column >= 8;
        // An address that is valid, whatever the chunk: it is formed, though not read, where nothing is inside.
        const bf16* source = inside ? rows(source_row) + source_column : rows(0);
        if (aligned && (whole || !inside)) {
            copy_async_16(target, source, inside);
        } else {
            copy_elements(target, source, inside ? int(min(column_count - source_column, 8u)) : 0);
        }
    }
}

// Four 8x8 matrices of a tile as the registers of a fragment. `outer` is the row of A or the column of B, `k` the
// summed index, both of the tile and multiples of 8. `strided`: the tile holds k along its rows, else along its
// columns. Matrix i lies at (outer + 8 (i%2), k + 8 (i/2)) for A: exactly the registers a[0..3]. For B it lies at
// (outer + 8 (i/2), k + 8 (i%2)): b[0..1] of columns outer.. in r[0..1] and of columns outer + 8.. in r[2..3].
template <typename Shape, bool strided, bool is_a>
__device__ __forceinline__ void load_fragment(uint32_t (&r)[4], const unsigned char* tile, int outer, int k, int lane) {
    const int matrix = lane >> 3, within = lane & 7;
    const int at_outer = outer + ((is_a ? matrix & 1 : matrix >> 1) << 3);
    const int at_k = k + ((is_a ? matrix >> 1 : matrix & 1) << 3);
    if constexpr (strided) {
        ldmatrix_x4_transposed(r, tile + Shape::offset(at_k + within, at_outer >> 3));
    } else {
        ldmatrix_x4(r, tile + Shape::offset(at_outer + within, at_k >> 3));
    }
}

// c[..][0..1] += a b for the two 8-column halves that load_fragment read for B.
__device__ __forceinline__ void multiply_pair(float (&left)[4], float (&right)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma_m16n8k16(left, a, first);
    mma_m16n8k16(right, a, second);
}

// Writes or adds two neighbours of a row. `pairs`: their address is a multiple of their size.
template <typename T>
__device__ __forceinline__ void put_pair(T* target, float first, float second, bool accumulate, bool pairs, bool both) {
    if (pairs && both) {
        if (accumulate) {
            const Vector<T, 2> old = load_vector<T, 2>(target);
            first += to_float(old.value[0]);
            second += to_float(old.value[1]);
        }
        store_vector<T, 2>(target, Vector<T, 2>{{from_float<T>(first), from_float<T>(second)}});
    } else {
        target[0] = from_float<T>(accumulate ? first + to_float(target[0]) : first);
        if (both) target[1] = from_float<T>(accumulate ? second + to_float(target[1]) : second);
    }
}

// Whether rows of T that are `leading` apart allow accesses of two elements at even columns.
template <typename T>
__device__ __forceinline__ bool allows_pairs(const T* first, uint64_t leading) {
    return reinterpret_cast<uintptr_t>(first) % (2 * sizeof(T)) == 0 && leading % 2 == 0;
}
