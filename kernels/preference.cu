// The preference losses of pairs of sequences (DPO) and of single ones (NPO, SimNPO), and the token weights of their
// gradients.
//
//   preference_f32   m = sum of values over the rejected sequence - over the chosen one;
//                    delta = beta (m - reference_margin); losses[pair] = log(1 + e^-delta);
//                    weights *= +factor on the chosen sequence, -factor on the rejected one,
//                    factor = scale beta / (1 + e^delta) / pairs
//   negative_preference_f32   x = beta (-sum of values / length - reference); losses[sequence] = 2/beta log(1 + e^x);
//                    weights *= -2 scale / (1 + e^-x) / length / sequences
//
// values, weights [T], reference_margins, losses [pairs] f32; segments [2 pairs, 3] u32: start, length, valid; chosen,
// then rejected. negative_preference: lengths, references, losses [sequences] f32; segments [sequences, 3]. Sums and the logistic function in f64, as on the CPU: they are a few numbers per token, and a margin is
// a difference of long sums.
//
// Bytes: 12 per token. Launch: a block of 256 threads a pair, or a sequence; sums in a fixed order. Shared memory:
// sums_scratch<double, 1> = 256 bytes. Registers: at most 64 (f64 exponential and logarithm); latency is all that counts.

#include "sums.cuh"

constexpr int preference_threads = 256;

// This thread's part of a sum over rows.
__device__ __forceinline__ double part(const float* values, uint32_t start, uint32_t length) {
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < length; i += blockDim.x) sum += double(values[start + i]);
    return sum;
}

TEMPER_KERNEL(preference_f32, preference_threads, const float* __restrict__ values,
              const uint32_t* __restrict__ segments, const float* __restrict__ reference_margins, float beta, float scale,
              float* __restrict__ weights, float* __restrict__ losses) {
    const uint32_t* segment = segments + uint64_t(blockIdx.x) * 6;
    const uint32_t chosen = segment[0], chosen_length = segment[1];
    const uint32_t rejected = segment[3], rejected_length = segment[4];
    double margin[1] = {part(values, rejected, rejected_length) - part(values, chosen, chosen_length)};
    block_sums(margin, reinterpret_cast<double*>(shared_memory()));
    const double delta = double(beta) * (margin[0] - double(reference_margins[blockIdx.x]));
    if (threadIdx.x == 0) losses[blockIdx.x] = float(fmax(-delta, 0.0) + log1p(exp(-fabs(delta))));
    const double sigma = 1.0 / (1.0 + exp(delta));
    const float factor = float(double(scale) * double(beta) * sigma / double(gridDim.x));
    for (uint32_t i = threadIdx.x; i < chosen_length; i += blockDim.x) weights[chosen + i] *= factor;
    for (uint32_t i = threadIdx.x; i < rejected_length; i += blockDim.x) weights[rejected + i] *= -factor;
}

TEMPER_KERNEL(negative_preference_f32, preference_threads, const float* __restrict__ values,
              const uint32_t* __restrict__ segments, const float* __restrict__ lengths,
              const float* __restrict__ references, float beta, float scale, float* __restrict__ weights,
              float* __restrict__ losses) {
    const uint32_t* segment = segments + uint64_t(blockIdx.x) * 3;
    const uint32_t start = segment[0], rows = segment[1];
    double sum[1] = {part(values, start, rows)};
    block_sums(sum, reinterpret_cast<double*>(shared_memory()));
    const double length = double(lengths[blockIdx.x]);
    const double x = double(beta) * (-sum[0] / length - double(references[blockIdx.x]));
    if (threadIdx.x == 0) losses[blockIdx.x] = float(2.0 / double(beta) * (fmax(x, 0.0) + log1p(exp(-fabs(x)))));
    const double sigma = 1.0 / (1.0 + exp(-x));
    const float factor = float(-2.0 * double(scale) * sigma / length / double(gridDim.x));
    for (uint32_t i = threadIdx.x; i < rows; i += blockDim.x) weights[start + i] *= factor;
}
