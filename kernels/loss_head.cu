// The loss at the language-model head, for a chunk of tokens whose logits were just computed. `preference` has a file
// of its own.
//
// With logits z [rows, V] f32 of one token, p = softmax(z), and its weight w:
//   cross_entropy      value = log sum exp z - z[target]     dz = w (p - onehot(target))
//   negative_entropy   value = sum p log p                   dz = w p (log p - value)
// A target outside the vocabulary: value and gradient 0. Logits that are not finite: both NaN. dz overwrites z: as f32,
// or as bf16 in the front half of the same row, so that the two products that follow read it as their operand.
// Around it, T the dtype of the hidden states: loss_head_compact lists the tokens whose weight is not 0, in order;
// loss_head_gather brings their hidden states together, loss_head_scatter sends their gradients back.
//
// Why f32 logits in bf16 mode: a bf16 logit near 20 is wrong by up to 0.06, one near 1e4 by 32, and the loss would
// inherit it. Price: 2 bytes a logit more for the product to write, and 4 for this kernel to read. Why two reads: a row
// of 128,256 logits fits neither registers nor shared memory, nor do the rows of all resident blocks fit L2.
//
// Launch: cross_entropy, negative_entropy, gather, scatter: a block a row, of 256 threads or as many as a short row
//   feeds; compact: one block of 256.
// Shared memory: the statistics of 8 warps, 96 bytes (compact: 8 counts). Registers: 32, so that 8 blocks keep a
//   multiprocessor's loads in flight.
// Floor for a row: two reads of 4 V bytes and a write of 2 V or 4 V (one read without gradients); two exponentials a
//   logit, which take less time than the bytes.
// Rejected: bf16 logits (above); a launch for each statistic (three reads); recomputing the logits in backward (a third
//   product, 2 V d FLOP a token, to save memory that a chunk does not need); an atomic counter for the compaction (its
//   order would differ from run to run). None was measured.

#include "common.cuh"

namespace {

constexpr float lowest = -3.402823466e38f;

enum class Loss { cross_entropy, negative_entropy };

// Of some logits: their maximum, sum of e^(z - maximum), and sum of e^(z - maximum) (z - maximum). The maximum starts
// at the lowest finite number rather than at minus infinity, so that a logit of minus infinity adds e^(-infinity) = 0.
struct Statistics {
    float maximum = lowest;
    float sum = 0.0f;
    float product = 0.0f;

    // Refers the sums to a larger maximum. Without a sum yet there is nothing to scale: 0 times infinity is not 0.
    __device__ __forceinline__ void raise(float to) {
        if (sum != 0.0f) {
            const float distance = maximum - to, factor = expf(distance);
            if (distance != 0.0f) product = factor * (product + sum * distance);
            sum *= factor;
        }
        maximum = to;
    }

    template <bool entropy>
    __device__ __forceinline__ void add(float logit) {
        const float distance = logit - maximum, power = expf(distance);
        sum += power;
        if (entropy) product += power * distance;
    }

    // The same bits whichever of the two is `this`.
    __device__ __forceinline__ void merge(Statistics other) {
        const float largest = fmaxf(maximum, other.maximum);
        raise(largest);
        other.raise(largest);
        sum += other.sum;
        product += other.product;
    }
};

template <bool entropy>
__device__ __forceinline__ Statistics row_statistics(const float* logits, uint32_t vocabulary) {
    Statistics own;
    for (uint32_t at = threadIdx.x * 4; at < vocabulary; at += blockDim.x * 4) {
        // Rows are padded to whole vectors, so the last one can be read whole and used in part.
        const Vector<float, 4> four = load_vector<float, 4>(logits + at);
        float largest = own.maximum;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < vocabulary) largest = fmaxf(largest, four.value[i]);
        }
        if (largest > own.maximum) own.raise(largest);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < vocabulary) own.template add<entropy>(four.value[i]);
        }
    }
    return own;
}

// The statistics of the whole block, in all threads, merged in a fixed order.
__device__ __forceinline__ Statistics block_statistics(Statistics own) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        Statistics other;
        other.maximum = __shfl_xor_sync(full_warp, own.maximum, offset);
        other.sum = __shfl_xor_sync(full_warp, own.sum, offset);
        other.product = __shfl_xor_sync(full_warp, own.product, offset);
        own.merge(other);
    }
    float* shared = reinterpret_cast<float*>(shared_memory());
    if (threadIdx.x % 32 == 0) {
        float* mine = shared + threadIdx.x / 32 * 3;
        mine[0] = own.maximum;
        mine[1] = own.sum;
        mine[2] = own.product;
    }
    __syncthreads();
    Statistics all;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) {
        Statistics other;
        other.maximum = shared[warp * 3];
        other.sum = shared[warp * 3 + 1];
        other.product = shared[warp * 3 + 2];
        all.merge(other);
    }
    return all;
}

// Overwrites a row of logits with `gradient(index, logit)`, as T from the row's start.
//
// A bf16 is half as long as the logit it replaces, so what iteration i writes was read in iterations up to i/2, and by
// other threads: a barrier behind the reads of iteration i allows the writes of iterations up to 2i + 1.
template <typename T, typename Gradient>
__device__ __forceinline__ void overwrite(float* logits, uint32_t vocabulary, Gradient gradient) {
    T* out = reinterpret_cast<T*>(logits);
    uint32_t allowed = 0;
    for (uint32_t iteration = 0; iteration * blockDim.x * 4 < vocabulary; iteration++) {
        const uint32_t at = (iteration * blockDim.x + threadIdx.x) * 4;
        Vector<T, 4> result = {};
        if (at < vocabulary) {
            const Vector<float, 4> four = load_vector<float, 4>(logits + at);
#pragma unroll
            for (int i = 0; i < 4; i++) result.value[i] = from_float<T>(gradient(at + i, four.value[i]));
        }
        if (sizeof(T) < sizeof(float) && iteration >= allowed) {
            __syncthreads();
            allowed = 2 * iteration + 2;
        }
        if (at >= vocabulary) continue;
        if (at + 4 <= vocabulary) {
            store_vector<T, 4>(out + at, result);
        } else {
#pragma unroll
            for (int i = 0; i < 3; i++) {
                if (at + i < vocabulary) out[at + i] = result.value[i];
            }
        }
    }
}

struct Row {
    float* logits;
    uint32_t vocabulary;
    uint32_t target;
    float weight;
    bool gradient;
};

// Writes the gradient where it is wanted; the value is returned in all threads.
template <typename T>
__device__ __forceinline__ float constant_row(const Row& row, float value) {
    __syncthreads();
    if (row.gradient) overwrite<T>(row.logits, row.vocabulary, [&](uint32_t, float) { return value; });
    return value;
}

template <Loss loss, typename T>
__device__ __forceinline__ float row_loss(const Row& row) {
    constexpr bool entropy = loss == Loss::negative_entropy;
    const bool has_target = row.target < row.vocabulary;
    // Read before any thread may overwrite it: block_statistics has a barrier.
    const float logit = !entropy && has_target ? row.logits[row.target] : 0.0f;
    const Statistics all = block_statistics(row_statistics<entropy>(row.logits, row.vocabulary));
    // Not a number where a logit is, or is plus infinity; 0 where all are minus infinity.
    if (!(all.sum > 0.0f)) return constant_row<T>(row, __uint_as_float(0x7fc00000u));
    if (!entropy && !has_target) return constant_row<T>(row, 0.0f);

    const float log_sum = logf(all.sum), scale = row.weight / all.sum, maximum = all.maximum;
    const float value = entropy ? all.product / all.sum - log_sum : (maximum - logit) + log_sum;
    if (row.gradient) {
        overwrite<T>(row.logits, row.vocabulary, [&](uint32_t at, float z) {
            const float distance = z - maximum, weighted = scale * expf(distance);
            if constexpr (entropy) return weighted * ((distance - log_sum) - value);
            return at == row.target ? weighted - row.weight : weighted;
        });
    }
    return value;
}

// `live_rows`: how many tokens are live, then which. Row i of the chunk is live token first_live + i; rows beyond the
// last become zero where `clear_dead`, and are left alone otherwise.
template <Loss loss, typename T>
__device__ void chunk_loss(float* logits, uint64_t leading, uint32_t vocabulary, const uint32_t* live_rows,
                           uint32_t first_live, const uint32_t* targets, const float* weights, float* values,
                           uint32_t gradient, uint32_t clear_dead) {
    Row row{logits + blockIdx.x * leading, vocabulary, 0, 0.0f, gradient != 0};
    const uint32_t index = first_live + blockIdx.x;
    if (index >= live_rows[0]) {
        if (gradient && clear_dead) constant_row<T>(row, 0.0f);
        return;
    }
    const uint32_t token = live_rows[1 + index];
    row.weight = weights[token];
    if (loss == Loss::cross_entropy) row.target = targets[token];
    const float value = row_loss<loss, T>(row);
    if (threadIdx.x == 0) values[token] = value;
}

__device__ void compact(const float* weights, uint32_t tokens, uint32_t* live_rows) {
    uint32_t* counts = reinterpret_cast<uint32_t*>(shared_memory());
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t found = 0;
    for (uint32_t first = 0; first < tokens; first += blockDim.x) {
        const uint32_t token = first + threadIdx.x;
        const bool live = token < tokens && weights[token] != 0.0f;
        const uint32_t votes = __ballot_sync(full_warp, live);
        if (lane == 0) counts[warp] = __popc(votes);
        __syncthreads();
        uint32_t before = found + __popc(votes & ((1u << lane) - 1));
        for (uint32_t other = 0; other < blockDim.x / 32; other++) {
            if (other < warp) before += counts[other];
            found += counts[other];
        }
        if (live) live_rows[1 + before] = token;
        __syncthreads();
    }
    if (threadIdx.x == 0) live_rows[0] = found;
}

template <typename T, int width>
__device__ __forceinline__ void copy_row(T* to, const T* from, uint32_t columns) {
    for (uint32_t at = threadIdx.x * width; at < columns; at += blockDim.x * width) {
        store_vector<T, width>(to + at, load_vector<T, width>(from + at));
    }
}

// Between the gap-free rows of a chunk and the rows of live tokens. `whole_vectors`: rows are aligned to 16 bytes.
template <typename T, bool gather>
__device__ void move_rows(const T* from, T* to, uint32_t columns, const uint32_t* live_rows, uint32_t first_live,
                          uint32_t whole_vectors) {
    const uint32_t index = first_live + blockIdx.x;
    T* target = to + uint64_t(blockIdx.x) * columns;
    if (index >= live_rows[0]) {
        // What a product reads of a row that is no token's must at least be finite.
        for (uint32_t at = threadIdx.x; gather && at < columns; at += blockDim.x) target[at] = T{};
        return;
    }
    const T* source = from + uint64_t(gather ? live_rows[1 + index] : blockIdx.x) * columns;
    if (!gather) target = to + uint64_t(live_rows[1 + index]) * columns;
    constexpr int width = 16 / sizeof(T);
    if (whole_vectors) copy_row<T, width>(target, source, columns);
    else copy_row<T, 1>(target, source, columns);
}

}  // namespace

TEMPER_KERNEL(loss_head_compact, loss_head_threads, const float* weights, uint32_t tokens, uint32_t* live_rows) {
    compact(weights, tokens, live_rows);
}

#define TEMPER_HEAD_LOSS(loss, dtype, T)                                                                             \
    TEMPER_KERNEL(loss_head_##loss##_##dtype, loss_head_threads, float* logits, uint64_t leading,                    \
                  uint32_t vocabulary,                                                                               \
                  const uint32_t* live_rows, uint32_t first_live, const uint32_t* targets, const float* weights,     \
                  float* values, uint32_t gradient, uint32_t clear_dead) {                                           \
        chunk_loss<Loss::loss, T>(logits, leading, vocabulary, live_rows, first_live, targets, weights, values,      \
                                  gradient, clear_dead);                                                             \
    }

#define TEMPER_HEAD_ROWS(operation, dtype, T, gather)                                                                \
    TEMPER_KERNEL(loss_head_##operation##_##dtype, loss_head_threads, const T* from, T* to, uint32_t columns,        \
                  const uint32_t* live_rows, uint32_t first_live, uint32_t whole_vectors) {                          \
        move_rows<T, gather>(from, to, columns, live_rows, first_live, whole_vectors);                               \
    }

TEMPER_HEAD_LOSS(cross_entropy, bf16, bf16)
TEMPER_HEAD_LOSS(cross_entropy, f32, float)
TEMPER_HEAD_LOSS(negative_entropy, bf16, bf16)
TEMPER_HEAD_LOSS(negative_entropy, f32, float)
TEMPER_HEAD_ROWS(gather, bf16, bf16, true)
TEMPER_HEAD_ROWS(gather, f32, float, true)
TEMPER_HEAD_ROWS(scatter, bf16, bf16, false)
TEMPER_HEAD_ROWS(scatter, f32, float, false)
