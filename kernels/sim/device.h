// What kernel code sees of the simulator: CUDA's qualifiers, built-in variables and intrinsics, as plain C++.
//
// Included by ptx.cuh when TEMPER_SIMULATOR is defined. Everything that blocks or crosses threads calls the machine and
// carries its call site, so that reports name source lines.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

// In a namespace of its own, so that passing a site on does not make the compiler look for functions in `simulator`.
namespace simulator_source {

// A place in the source of a kernel. `here()` as a default argument names the caller.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
    bool operator==(const Site& other) const {
        return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
    }
};

}  // namespace simulator_source

namespace simulator {

using simulator_source::Site;

struct Block;
struct Warp;

// The part of a simulated thread that kernel code reads; machine.h has the rest.
struct ThreadView {
    uint3 thread_index;
    uint3 block_index;
    dim3 block_size;
    dim3 grid_size;
    unsigned char* shared;
    // Bytes from `shared` that belong to the block or to the canary behind it.
    uint32_t shared_span;
};

// The simulated thread that this OS thread executes now.
extern __thread ThreadView* current __attribute__((tls_model("initial-exec")));

enum class ShuffleMode { index, up, down, exclusive_or };

uint64_t shuffle(ShuffleMode mode, uint32_t mask, uint64_t value, uint32_t argument, int width, Site site);
uint32_t ballot(uint32_t mask, bool predicate, Site site);
uint64_t reduce(uint32_t mask, uint64_t value, uint64_t (*combine)(uint64_t, uint64_t), Site site);
uint32_t match_any(uint32_t mask, uint64_t value, Site site);
bool elect(uint32_t mask, Site site);
void synchronize_warp(uint32_t mask, Site site);
void synchronize_block(Site site);
int synchronize_block_count(int predicate, Site site);
void synchronize_named(uint32_t barrier, uint32_t threads, Site site);
void arrive_named(uint32_t barrier, uint32_t threads, Site site);
// A vector is about to be loaded or stored: checks its alignment, and counts it.
void note_vector(const void* address, size_t bytes, bool write, Site site);
void note_atomic(const void* address, size_t bytes);
void count_exponential();
[[noreturn]] void trap(const char* message, Site site);

template <typename T>
inline T shuffle_value(ShuffleMode mode, uint32_t mask, T value, uint32_t argument, int width, Site site) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shuffle(mode, mask, bits, argument, width, site);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

// Registers a kernel under its name. `invoke` unpacks the argument pointers; one instance per parameter list.
using Invoke = void (*)(void (*function)(), void* const* arguments);
void register_kernel(const char* name, uint32_t max_threads, uint32_t parameters, const uint32_t* parameter_bytes,
                     void (*function)(), Invoke invoke, bool watched);

template <typename T>
inline T load_argument(void* const* arguments, size_t index) {
    T value;
    std::memcpy(static_cast<void*>(&value), arguments[index], sizeof(T));
    return value;
}

template <typename... Parameters, size_t... indices>
inline void invoke_with(void (*function)(), void* const* arguments, std::index_sequence<indices...>) {
    reinterpret_cast<void (*)(Parameters...)>(function)(load_argument<Parameters>(arguments, indices)...);
}

#if defined(__SANITIZE_THREAD__)
constexpr bool compiled_with_watch = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool compiled_with_watch = true;
#else
constexpr bool compiled_with_watch = false;
#endif
#else
constexpr bool compiled_with_watch = false;
#endif

namespace {

struct Registration {
    template <typename... Parameters>
    Registration(const char* name, uint32_t max_threads, void (*function)(Parameters...)) {
        static constexpr uint32_t bytes[] = {sizeof(Parameters)..., 0};
        register_kernel(name, max_threads, sizeof...(Parameters), bytes, reinterpret_cast<void (*)()>(function),
                        [](void (*erased)(), void* const* arguments) {
                            invoke_with<Parameters...>(erased, arguments, std::index_sequence_for<Parameters...>());
                        },
                        compiled_with_watch);
    }
};

}  // namespace

}  // namespace simulator

#define TEMPER_KERNEL(name, max_threads, ...)                                                   \
    static void name(__VA_ARGS__);                                                              \
    static const ::simulator::Registration register_##name(#name, max_threads, &name);          \
    static void name(__VA_ARGS__)

#define threadIdx (::simulator::current->thread_index)
#define blockIdx (::simulator::current->block_index)
#define blockDim (::simulator::current->block_size)
#define gridDim (::simulator::current->grid_size)
constexpr int warpSize = 32;

// A trailing parameter that carries the call site, and how a wrapper passes it on.
#define TEMPER_SITE , ::simulator::Site site = ::simulator::Site::here()
#define TEMPER_SITE_ONLY ::simulator::Site site = ::simulator::Site::here()
#define TEMPER_PASS_SITE , site
#define TEMPER_PASS_SITE_ONLY site

inline void __syncthreads(TEMPER_SITE_ONLY) { simulator::synchronize_block(site); }
inline int __syncthreads_count(int predicate TEMPER_SITE) { return simulator::synchronize_block_count(predicate, site); }
inline int __syncthreads_or(int predicate TEMPER_SITE) { return simulator::synchronize_block_count(predicate, site) != 0; }
inline int __syncthreads_and(int predicate TEMPER_SITE) { return simulator::synchronize_block_count(!predicate, site) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu TEMPER_SITE) { simulator::synchronize_warp(mask, site); }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32 TEMPER_SITE) {
    return simulator::shuffle_value(simulator::ShuffleMode::index, mask, value, lane, width, site);
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32 TEMPER_SITE) {
    return simulator::shuffle_value(simulator::ShuffleMode::up, mask, value, delta, width, site);
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32 TEMPER_SITE) {
    return simulator::shuffle_value(simulator::ShuffleMode::down, mask, value, delta, width, site);
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32 TEMPER_SITE) {
    return simulator::shuffle_value(simulator::ShuffleMode::exclusive_or, mask, value, lane_mask, width, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate TEMPER_SITE) { return simulator::ballot(mask, predicate != 0, site); }
inline int __any_sync(unsigned mask, int predicate TEMPER_SITE) { return simulator::ballot(mask, predicate != 0, site) != 0; }
inline int __all_sync(unsigned mask, int predicate TEMPER_SITE) { return simulator::ballot(mask, predicate == 0, site) == 0; }
template <typename T>
inline unsigned __match_any_sync(unsigned mask, T value TEMPER_SITE) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return simulator::match_any(mask, bits, site);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value TEMPER_SITE) {
    return uint32_t(simulator::reduce(mask, value, [](uint64_t a, uint64_t b) { return uint64_t(uint32_t(a + b)); }, site));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value TEMPER_SITE) {
    return uint32_t(simulator::reduce(mask, value, [](uint64_t a, uint64_t b) { return a > b ? a : b; }, site));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value TEMPER_SITE) {
    return uint32_t(simulator::reduce(mask, value, [](uint64_t a, uint64_t b) { return a < b ? a : b; }, site));
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __trap(TEMPER_SITE_ONLY) { simulator::trap("the kernel called __trap", site); }

// One launch is one OS thread, and a thread is only left at collectives: plain updates are atomic. The watch is told that
// they happened, not how they are ordered.
#define TEMPER_ATOMIC template <typename T, typename V> __attribute__((no_sanitize("thread"))) inline T
TEMPER_ATOMIC atomicAdd(T* address, V value) { simulator::note_atomic(address, sizeof(T)); T old = *address; *address = T(old + T(value)); return old; }
TEMPER_ATOMIC atomicMax(T* address, V value) { simulator::note_atomic(address, sizeof(T)); T old = *address; if (T(value) > old) *address = T(value); return old; }
TEMPER_ATOMIC atomicMin(T* address, V value) { simulator::note_atomic(address, sizeof(T)); T old = *address; if (T(value) < old) *address = T(value); return old; }
TEMPER_ATOMIC atomicOr(T* address, V value) { simulator::note_atomic(address, sizeof(T)); T old = *address; *address = T(old | T(value)); return old; }
TEMPER_ATOMIC atomicExch(T* address, V value) { simulator::note_atomic(address, sizeof(T)); T old = *address; *address = T(value); return old; }
template <typename T, typename V, typename W>
__attribute__((no_sanitize("thread"))) inline T atomicCAS(T* address, V expected, W value) {
    simulator::note_atomic(address, sizeof(T));
    T old = *address;
    if (old == T(expected)) *address = T(value);
    return old;
}

template <typename T> inline T __ldg(const T* address) { return *address; }
template <typename T> inline T __ldcs(const T* address) { return *address; }
template <typename T> inline T __ldcg(const T* address) { return *address; }
template <typename T> inline void __stcs(T* address, T value) { *address = value; }
template <typename T> inline void __stcg(T* address, T value) { *address = value; }

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(unsigned(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// Approximate intrinsics are as exact as the host's: only tolerances may depend on them.
inline float __expf(float value) { return expf(value); }
inline float __logf(float value) { return logf(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float value) { return 1.0f / value; }
inline float __fsqrt_rn(float value) { return sqrtf(value); }
inline float __frsqrt_rn(float value) { return float(1.0 / std::sqrt(double(value))); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float rsqrtf(float value) { return float(1.0 / std::sqrt(double(value))); }
inline double rsqrt(double value) { return 1.0 / std::sqrt(value); }
inline void sincospif(float value, float* sine, float* cosine) {
    *sine = float(std::sin(3.14159265358979323846 * double(value)));
    *cosine = float(std::cos(3.14159265358979323846 * double(value)));
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
