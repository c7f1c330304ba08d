// The loss at the language-model head, for a chunk of tokens whose logits were just computed. `preference` has a file
// of its own.
//
// With logits z [rows, V] f32 of one token, p = softmax(z), and its weight w:
//   cross_entropy      value = log sum exp z - z[target]     dz = w (p - onehot(target))
//   negative_entropy   value = sum p log p                   dz = w p (log p - value)
//   teacher_divergence value = sum q (log q - log p)         dz = w (p - q), q = softmax of the teacher's logits y
// A target outside the vocabulary: value and gradient 0. Logits that are not finite: both NaN. dz overwrites z: as f32,
// or as bf16 in the front half of the same row, so that the two products that follow read it as their operand.
// Around it, T the dtype of the hidden states: loss_head_compact lists the tokens whose weight is not 0, in order;
// loss_head_gather brings their hidden states together, loss_head_scatter sends their gradients back.
//
// Why f32 logits in bf16 mode: a bf16 logit near 20 is wrong by up to 0.06, one near 1e4 by 32, and the loss would
// inherit it. Price: 2 bytes a logit more for the product to write, and 4 for this kernel to read. Why two reads: a row
// of 128,256 logits fits neither registers nor shared memory, nor do the rows of all resident blocks fit L2.
//
// Launch: the losses, gather, scatter: a block a row, of 256 threads or as many as a short row feeds; compact: one block
//   of 256.
// Shared memory: the statistics of 8 warps, 96 bytes (teacher_divergence: 160; compact: 8 counts). Registers: 32, so that
//   8 blocks keep a multiprocessor's loads in flight; teacher_divergence: 40, 6 blocks, each with loads of two rows.
// Floor for a row: two reads of 4 V bytes and a write of 2 V or 4 V (one read without gradients); two exponentials a
//   logit, which take less time than the bytes. A teacher's logits are read as often, and take as many exponentials.
// Rejected: bf16 logits (above); a launch for each statistic (three reads); recomputing the logits in backward (a third
//   product, 2 V d FLOP a token, to save memory that a chunk does not need); an atomic counter for the compaction (its
//   order would differ from run to run). None was measured.

#include "common.cuh"

namespace {

constexpr float lowest = -3.402823466e38f;

enum class Loss { cross_entropy, negative_entropy, teacher_divergence };

// Of some logits: their maximum, sum of e^(z - maximum), and sum of e^(z - maximum) (z - maximum). The maximum starts
// at the lowest finite number rather than at minus infinity, so that a logit of minus infinity adds e^(-infinity) = 0.
struct Statistics {
    static constexpr int count = 3;
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

    __device__ __forceinline__ Statistics of_lane(int offset) const {
        Statistics other;
        other.maximum = __shfl_xor_sync(full_warp, maximum, offset);
        other.sum = __shfl_xor_sync(full_warp, sum, offset);
        other.product = __shfl_xor_sync(full_warp, product, offset);
        return other;
    }

    __device__ __forceinline__ void store(float* to) const {
        to[0] = maximum;
        to[1] = sum;
        to[2] = product;
    }

    __device__ __forceinline__ void load(const float* from) {
        maximum = from[0];
        sum = from[1];
        product = from[2];
    }
};

// Of the student's logits z and the teacher's y at the same places: maximum m and sum of e^(z - m), maximum n and sum of
// e^(y - n), and the sum of e^(y - n) ((y - n) - (z - m)). Maxima start as in Statistics.
struct Divergence {
    static constexpr int count = 5;
    float maximum = lowest;
    float sum = 0.0f;
    float teacher_maximum = lowest;
    float teacher_sum = 0.0f;
    float product = 0.0f;

    __device__ __forceinline__ void raise(float to) {
        const float distance = maximum - to;
        if (sum != 0.0f) sum *= expf(distance);
        if (teacher_sum != 0.0f && distance != 0.0f) product -= teacher_sum * distance;
        maximum = to;
    }

    __device__ __forceinline__ void raise_teacher(float to) {
        if (teacher_sum != 0.0f) {
            const float distance = teacher_maximum - to, factor = expf(distance);
            if (distance != 0.0f) product = factor * (product + teacher_sum * distance);
            teacher_sum *= factor;
        }
        teacher_maximum = to;
    }

    // A token that the teacher gives no probability adds nothing, even where the student gives it none either.
    __device__ __forceinline__ void add(float z, float y) {
        const float distance = z - maximum, teacher_distance = y - teacher_maximum, power = expf(teacher_distance);
        sum += expf(distance);
        teacher_sum += power;
        if (power != 0.0f) product += power * (teacher_distance - distance);
    }

    // The same bits whichever of the two is `this`.
    __device__ __forceinline__ void merge(Divergence other) {
        const float largest = fmaxf(maximum, other.maximum);
        raise(largest);
        other.raise(largest);
        const float teacher_largest = fmaxf(teacher_maximum, other.teacher_maximum);
        raise_teacher(teacher_largest);
        other.raise_teacher(teacher_largest);
        sum += other.sum;
        teacher_sum += other.teacher_sum;
        product += other.product;
    }

    __device__ __forceinline__ Divergence of_lane(int offset) const {
        Divergence other;
        other.maximum = __shfl_xor_sync(full_warp, maximum, offset);
        other.sum = __shfl_xor_sync(full_warp, sum, offset);
        other.teacher_maximum = __shfl_xor_sync(full_warp, teacher_maximum, offset);
        other.teacher_sum = __shfl_xor_sync(full_warp, teacher_sum, offset);
        other.product = __shfl_xor_sync(full_warp, product, offset);
        return other;
    }

    __device__ __forceinline__ void store(float* to) const {
        to[0] = maximum;
        to[1] = sum;
        to[2] = teacher_maximum;
        to[3] = teacher_sum;
        to[4] = product;
    }

    __device__ __forceinline__ void load(const float* from) {
        maximum = from[0];
        sum = from[1];
        teacher_maximum = from[2];
        teacher_sum = from[3];
        product = from[4];
    }
};

__device__ __forceinline__ Divergence row_divergence(const float* logits, const float* teacher, uint32_t vocabulary) {
    Divergence own;
    for (uint32_t at = threadIdx.x * 4; at < vocabulary; at += blockDim.x * 4) {
        const Vector<float, 4> four = load_vector<float, 4>(logits + at), taught = load_vector<float, 4>(teacher + at);
        float largest = own.maximum, teacher_largest = own.teacher_maximum;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i >= vocabulary) continue;
            largest = fmaxf(largest, four.value[i]);
            teacher_largest = fmaxf(teacher_largest, taught.value[i]);
        }
        if (largest > own.maximum) own.raise(largest);
        if (teacher_largest > own.teacher_maximum) own.raise_teacher(teacher_largest);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (at + i < vocabulary) own.add(four.value[i], taught.value[i]);
        }
    }
    return own;
}

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
template <typename S>
__device__ __forceinline__ S block_statistics(S own) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) own.merge(own.of_lane(offset));
    float* shared = reinterpret_cast<float*>(shared_memory());
    if (threadIdx.x % 32 == 0) own.store(shared + threadIdx.x / 32 * S::count);
    __syncthreads();
    S all;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) {
        S other;
        other.load(shared + warp * S::count);
        all.merge(other);
    }
    return all;
}

// Overwrites a row of logits with `gradient(index, four logits from there)`, as T from the row's start.
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
            const Vector<float, 4> four = gradient(at, load_vector<float, 4>(logits + at));
#pragma unroll
            for (int i = 0; i < 4; i++) result.value[i] = from_float<T>(four.value[i]);
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

// As `overwrite`, with `gradient(index, logit)`.
template <typename T, typename Gradient>
__device__ __forceinline__ void overwrite_each(float* logits, uint32_t vocabulary, Gradient gradient) {
    overwrite<T>(logits, vocabulary, [&](uint32_t at, Vector<float, 4> four) {
#pragma unroll
        for (int i = 0; i < 4; i++) four.value[i] = gradient(at + i, four.value[i]);
        return four;
    });
}

struct Row {
    float* logits;
    const float* teacher;
    uint32_t vocabulary;
    uint32_t target;
    float weight;
    bool gradient;
};

// Writes the gradient where it is wanted; the value is returned in all threads.
template <typename T>
__device__ __forceinline__ float constant_row(const Row& row, float value) {
    __syncthreads();
    if (row.gradient) overwrite_each<T>(row.logits, row.vocabulary, [&](uint32_t, float) { return value; });
    return value;
}

// Not a number where a logit of either model is, or is plus infinity, or where all of a model are minus infinity.
template <typename T>
__device__ __forceinline__ float row_divergence_loss(const Row& row) {
    const Divergence all = block_statistics(row_divergence(row.logits, row.teacher, row.vocabulary));
    if (!(all.sum > 0.0f && all.teacher_sum > 0.0f)) return constant_row<T>(row, __uint_as_float(0x7fc00000u));
    const float scale = row.weight / all.sum, teacher_scale = row.weight / all.teacher_sum;
    if (row.gradient) {
        overwrite<T>(row.logits, row.vocabulary, [&](uint32_t at, Vector<float, 4> four) {
            const Vector<float, 4> taught = load_vector<float, 4>(row.teacher + at);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                four.value[i] = scale * expf(four.value[i] - all.maximum) -
                                teacher_scale * expf(taught.value[i] - all.teacher_maximum);
            }
            return four;
        });
    }
    return all.product / all.teacher_sum + (logf(all.sum) - logf(all.teacher_sum));
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
        overwrite_each<T>(row.logits, row.vocabulary, [&](uint32_t at, float z) {
            const float distance = z - maximum, weighted = scale * expf(distance);
            if constexpr (entropy) return weighted * ((distance - log_sum) - value);
            return at == row.target ? weighted - row.weight : weighted;
        });
    }
    return value;
}

// `live_rows`: how many tokens are live, then which. Row i of the chunk is live token first_live + i; rows beyond the
// last become zero where `clear_dead`, and are left alone otherwise. `compared`: the targets of all tokens, or the
// teacher's logits of the chunk's, in rows as long as the student's.
template <Loss loss, typename T, typename Compared>
__device__ void chunk_loss(float* logits, uint64_t leading, uint32_t vocabulary, const uint32_t* live_rows,
                           uint32_t first_live, const Compared* compared, const float* weights, float* values,
                           uint32_t gradient, uint32_t clear_dead) {
    Row row{logits + blockIdx.x * leading, nullptr, vocabulary, 0, 0.0f, gradient != 0};
    const uint32_t index = first_live + blockIdx.x;
    if (index >= live_rows[0]) {
        if (gradient && clear_dead) constant_row<T>(row, 0.0f);
        return;
    }
    const uint32_t token = live_rows[1 + index];
    row.weight = weights[token];
    if constexpr (loss == Loss::cross_entropy) row.target = compared[token];
    if constexpr (loss == Loss::teacher_divergence) row.teacher = compared + blockIdx.x * leading;
    float value;
    if constexpr (loss == Loss::teacher_divergence) value = row_divergence_loss<T>(row);
    else value = row_loss<loss, T>(row);
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

#define TEMPER_HEAD_LOSS(loss, dtype, T, Compared)                                                                   \
    TEMPER_KERNEL(loss_head_##loss##_##dtype, loss_head_threads, float* logits, uint64_t leading,                    \
                  uint32_t vocabulary,                                                                               \
                  const uint32_t* live_rows, uint32_t first_live, const Compared* compared, const float* weights,    \
                  float* values, uint32_t gradient, uint32_t clear_dead) {                                           \
        chunk_loss<Loss::loss, T>(logits, leading, vocabulary, live_rows, first_live, compared, weights, values,     \
                                  gradient, clear_dead);                                                             \
    }

#define TEMPER_HEAD_ROWS(operation, dtype, T, gather)                                                                \
    TEMPER_KERNEL(loss_head_##operation##_##dtype, loss_head_threads, const T* from, T* to, uint32_t columns,        \
                  const uint32_t* live_rows, uint32_t first_live, uint32_t whole_vectors) {                          \
        move_rows<T, gather>(from, to, columns, live_rows, first_live, whole_vectors);                               \
    }

TEMPER_HEAD_LOSS(cross_entropy, bf16, bf16, uint32_t)
TEMPER_HEAD_LOSS(cross_entropy, f32, float, uint32_t)
TEMPER_HEAD_LOSS(negative_entropy, bf16, bf16, uint32_t)
TEMPER_HEAD_LOSS(negative_entropy, f32, float, uint32_t)
TEMPER_HEAD_LOSS(teacher_divergence, bf16, bf16, float)
TEMPER_HEAD_LOSS(teacher_divergence, f32, float, float)
TEMPER_HEAD_ROWS(gather, bf16, bf16, true)
TEMPER_HEAD_ROWS(gather, f32, float, true)
TEMPER_HEAD_ROWS(scatter, bf16, bf16, false)
TEMPER_HEAD_ROWS(scatter, f32, float, false)
