// The part of ptx.cuh for products of a warpgroup: m64nNk16, bf16 operands, f32 accumulators.
//
// All 128 threads of four consecutive warps (the first a multiple of four) call each function. Order of use:
//   wgmma_fence(); wgmma(...) for every slice of k; wgmma_commit(); wgmma_wait<0>();
// Between the product and the wait nobody touches the accumulators, the registers of a, or the operands in shared memory.
#pragma once

// How the 16-byte pieces of a row are permuted in shared memory: bits 4.. of the address are combined by exclusive or
// with bits 7.. (three of them for 128 bytes, two for 64, one for 32), as tile copies do.
enum class Swizzle : uint32_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// Which index is contiguous in shared memory: k, or the other one (m for a, n for b).
enum class Major : int { k = 0, mn = 1 };

#ifndef TEMPER_SIMULATOR
// The instruction for each n. Its text needs the numbers of its operands: TEMPER_WGMMA_LIST_n are those of the
// accumulators, TEMPER_WGMMA_BIND_n binds them; operands behind them are numbered from n/2 on.
#define TEMPER_WGMMA_LIST_8 "%0, %1, %2, %3"
#define TEMPER_WGMMA_BIND_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define TEMPER_WGMMA_LIST_16 TEMPER_WGMMA_LIST_8 ", %4, %5, %6, %7"
#define TEMPER_WGMMA_BIND_16 TEMPER_WGMMA_BIND_8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define TEMPER_WGMMA_LIST_24 TEMPER_WGMMA_LIST_16 ", %8, %9, %10, %11"
#define TEMPER_WGMMA_BIND_24 TEMPER_WGMMA_BIND_16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define TEMPER_WGMMA_LIST_32 TEMPER_WGMMA_LIST_24 ", %12, %13, %14, %15"
#define TEMPER_WGMMA_BIND_32 TEMPER_WGMMA_BIND_24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define TEMPER_WGMMA_LIST_40 TEMPER_WGMMA_LIST_32 ", %16, %17, %18, %19"
#define TEMPER_WGMMA_BIND_40 TEMPER_WGMMA_BIND_32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define TEMPER_WGMMA_LIST_48 TEMPER_WGMMA_LIST_40 ", %20, %21, %22, %23"
#define TEMPER_WGMMA_BIND_48 TEMPER_WGMMA_BIND_40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define TEMPER_WGMMA_LIST_56 TEMPER_WGMMA_LIST_48 ", %24, %25, %26, %27"
#define TEMPER_WGMMA_BIND_56 TEMPER_WGMMA_BIND_48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define TEMPER_WGMMA_LIST_64 TEMPER_WGMMA_LIST_56 ", %28, %29, %30, %31"
#define TEMPER_WGMMA_BIND_64 TEMPER_WGMMA_BIND_56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define TEMPER_WGMMA_LIST_72 TEMPER_WGMMA_LIST_64 ", %32, %33, %34, %35"
#define TEMPER_WGMMA_BIND_72 TEMPER_WGMMA_BIND_64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define TEMPER_WGMMA_LIST_80 TEMPER_WGMMA_LIST_72 ", %36, %37, %38, %39"
#define TEMPER_WGMMA_BIND_80 TEMPER_WGMMA_BIND_72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define TEMPER_WGMMA_LIST_88 TEMPER_WGMMA_LIST_80 ", %40, %41, %42, %43"
#define TEMPER_WGMMA_BIND_88 TEMPER_WGMMA_BIND_80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define TEMPER_WGMMA_LIST_96 TEMPER_WGMMA_LIST_88 ", %44, %45, %46, %47"
#define TEMPER_WGMMA_BIND_96 TEMPER_WGMMA_BIND_88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define TEMPER_WGMMA_LIST_104 TEMPER_WGMMA_LIST_96 ", %48, %49, %50, %51"
#define TEMPER_WGMMA_BIND_104 TEMPER_WGMMA_BIND_96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define TEMPER_WGMMA_LIST_112 TEMPER_WGMMA_LIST_104 ", %52, %53, %54, %55"
#define TEMPER_WGMMA_BIND_112 TEMPER_WGMMA_BIND_104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define TEMPER_WGMMA_LIST_120 TEMPER_WGMMA_LIST_112 ", %56, %57, %58, %59"
#define TEMPER_WGMMA_BIND_120 TEMPER_WGMMA_BIND_112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define TEMPER_WGMMA_LIST_128 TEMPER_WGMMA_LIST_120 ", %60, %61, %62, %63"
#define TEMPER_WGMMA_BIND_128 TEMPER_WGMMA_BIND_120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define TEMPER_WGMMA_LIST_136 TEMPER_WGMMA_LIST_128 ", %64, %65, %66, %67"
#define TEMPER_WGMMA_BIND_136 TEMPER_WGMMA_BIND_128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define TEMPER_WGMMA_LIST_144 TEMPER_WGMMA_LIST_136 ", %68, %69, %70, %71"
#define TEMPER_WGMMA_BIND_144 TEMPER_WGMMA_BIND_136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define TEMPER_WGMMA_LIST_152 TEMPER_WGMMA_LIST_144 ", %72, %73, %74, %75"
#define TEMPER_WGMMA_BIND_152 TEMPER_WGMMA_BIND_144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define TEMPER_WGMMA_LIST_160 TEMPER_WGMMA_LIST_152 ", %76, %77, %78, %79"
#define TEMPER_WGMMA_BIND_160 TEMPER_WGMMA_BIND_152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define TEMPER_WGMMA_LIST_168 TEMPER_WGMMA_LIST_160 ", %80, %81, %82, %83"
#define TEMPER_WGMMA_BIND_168 TEMPER_WGMMA_BIND_160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define TEMPER_WGMMA_LIST_176 TEMPER_WGMMA_LIST_168 ", %84, %85, %86, %87"
#define TEMPER_WGMMA_BIND_176 TEMPER_WGMMA_BIND_168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define TEMPER_WGMMA_LIST_184 TEMPER_WGMMA_LIST_176 ", %88, %89, %90, %91"
#define TEMPER_WGMMA_BIND_184 TEMPER_WGMMA_BIND_176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define TEMPER_WGMMA_LIST_192 TEMPER_WGMMA_LIST_184 ", %92, %93, %94, %95"
#define TEMPER_WGMMA_BIND_192 TEMPER_WGMMA_BIND_184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define TEMPER_WGMMA_LIST_200 TEMPER_WGMMA_LIST_192 ", %96, %97, %98, %99"
#define TEMPER_WGMMA_BIND_200 TEMPER_WGMMA_BIND_192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define TEMPER_WGMMA_LIST_208 TEMPER_WGMMA_LIST_200 ", %100, %101, %102, %103"
#define TEMPER_WGMMA_BIND_208 TEMPER_WGMMA_BIND_200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define TEMPER_WGMMA_LIST_216 TEMPER_WGMMA_LIST_208 ", %104, %105, %106, %107"
#define TEMPER_WGMMA_BIND_216 TEMPER_WGMMA_BIND_208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define TEMPER_WGMMA_LIST_224 TEMPER_WGMMA_LIST_216 ", %108, %109, %110, %111"
#define TEMPER_WGMMA_BIND_224 TEMPER_WGMMA_BIND_216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define TEMPER_WGMMA_LIST_232 TEMPER_WGMMA_LIST_224 ", %112, %113, %114, %115"
#define TEMPER_WGMMA_BIND_232 TEMPER_WGMMA_BIND_224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define TEMPER_WGMMA_LIST_240 TEMPER_WGMMA_LIST_232 ", %116, %117, %118, %119"
#define TEMPER_WGMMA_BIND_240 TEMPER_WGMMA_BIND_232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define TEMPER_WGMMA_LIST_248 TEMPER_WGMMA_LIST_240 ", %120, %121, %122, %123"
#define TEMPER_WGMMA_BIND_248 TEMPER_WGMMA_BIND_240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define TEMPER_WGMMA_LIST_256 TEMPER_WGMMA_LIST_248 ", %124, %125, %126, %127"
#define TEMPER_WGMMA_BIND_256 TEMPER_WGMMA_BIND_248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define TEMPER_WGMMA_SHARED(N, o0, o1, o2, o3, o4, o5, o6)                                                              \
    TEMPER_HOPPER_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2 ", 0;\n"                                                 \
                      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEMPER_WGMMA_LIST_##N "}, %" #o0     \
                      ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 ";\n}"                                                     \
                      : TEMPER_WGMMA_BIND_##N                                                                           \
                      : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(a_major)), "n"(int(b_major)))
#define TEMPER_WGMMA_REGISTERS(N, o0, o1, o2, o3, o4, o5, o6)                                                           \
    TEMPER_HOPPER_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5 ", 0;\n"                                                 \
                      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TEMPER_WGMMA_LIST_##N "}, {%" #o0    \
                      ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 ", p, 1, 1, %" #o6 ";\n}"                                \
                      : TEMPER_WGMMA_BIND_##N                                                                           \
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(b_major)))

#define TEMPER_WGMMA_CHOOSE(emit)                                                                                       \
    if constexpr (n == 8) emit(8, 4, 5, 6, 7, 8, 9, 10); \
    else if constexpr (n == 16) emit(16, 8, 9, 10, 11, 12, 13, 14); \
    else if constexpr (n == 24) emit(24, 12, 13, 14, 15, 16, 17, 18); \
    else if constexpr (n == 32) emit(32, 16, 17, 18, 19, 20, 21, 22); \
    else if constexpr (n == 40) emit(40, 20, 21, 22, 23, 24, 25, 26); \
    else if constexpr (n == 48) emit(48, 24, 25, 26, 27, 28, 29, 30); \
    else if constexpr (n == 56) emit(56, 28, 29, 30, 31, 32, 33, 34); \
    else if constexpr (n == 64) emit(64, 32, 33, 34, 35, 36, 37, 38); \
    else if constexpr (n == 72) emit(72, 36, 37, 38, 39, 40, 41, 42); \
    else if constexpr (n == 80) emit(80, 40, 41, 42, 43, 44, 45, 46); \
    else if constexpr (n == 88) emit(88, 44, 45, 46, 47, 48, 49, 50); \
    else if constexpr (n == 96) emit(96, 48, 49, 50, 51, 52, 53, 54); \
    else if constexpr (n == 104) emit(104, 52, 53, 54, 55, 56, 57, 58); \
    else if constexpr (n == 112) emit(112, 56, 57, 58, 59, 60, 61, 62); \
    else if constexpr (n == 120) emit(120, 60, 61, 62, 63, 64, 65, 66); \
    else if constexpr (n == 128) emit(128, 64, 65, 66, 67, 68, 69, 70); \
    else if constexpr (n == 136) emit(136, 68, 69, 70, 71, 72, 73, 74); \
    else if constexpr (n == 144) emit(144, 72, 73, 74, 75, 76, 77, 78); \
    else if constexpr (n == 152) emit(152, 76, 77, 78, 79, 80, 81, 82); \
    else if constexpr (n == 160) emit(160, 80, 81, 82, 83, 84, 85, 86); \
    else if constexpr (n == 168) emit(168, 84, 85, 86, 87, 88, 89, 90); \
    else if constexpr (n == 176) emit(176, 88, 89, 90, 91, 92, 93, 94); \
    else if constexpr (n == 184) emit(184, 92, 93, 94, 95, 96, 97, 98); \
    else if constexpr (n == 192) emit(192, 96, 97, 98, 99, 100, 101, 102); \
    else if constexpr (n == 200) emit(200, 100, 101, 102, 103, 104, 105, 106); \
    else if constexpr (n == 208) emit(208, 104, 105, 106, 107, 108, 109, 110); \
    else if constexpr (n == 216) emit(216, 108, 109, 110, 111, 112, 113, 114); \
    else if constexpr (n == 224) emit(224, 112, 113, 114, 115, 116, 117, 118); \
    else if constexpr (n == 232) emit(232, 116, 117, 118, 119, 120, 121, 122); \
    else if constexpr (n == 240) emit(240, 120, 121, 122, 123, 124, 125, 126); \
    else if constexpr (n == 248) emit(248, 124, 125, 126, 127, 128, 129, 130); \
    else if constexpr (n == 256) emit(256, 128, 129, 130, 131, 132, 133, 134);
#endif

// Describes an operand in shared memory. `start` is 16-byte aligned (8 times the swizzle's bytes for the first slice).
//
// Swizzle of S bytes, rows (k-major) or k-lines (mn-major) S bytes apart in groups of 8:
//   k-major:  stride_bytes from one group of 8 rows to the next (8 S when dense); leading_bytes is not used. The next
//             slice of k begins 32 bytes further, up to S bytes; then at the next tile.
//   mn-major: S/2 elements of m or n lie in a line; leading_bytes to the next S/2 of them, stride_bytes from 8 lines
//             (8 values of k) to the next 8. The next slice of k begins 2 stride_bytes further.
// No swizzle, pieces of 8 rows x 16 bytes that are 128 contiguous bytes:
//   k-major:  leading_bytes to the piece of the next 8 values of k, stride_bytes to the piece of the next 8 rows.
//   mn-major: stride_bytes to the next 8 values of m or n, leading_bytes to the next 8 values of k.
__device__ __forceinline__ uint64_t wgmma_descriptor(const void* start, Swizzle swizzle, uint32_t leading_bytes,
                                                     uint32_t stride_bytes TEMPER_SITE) {
    return uint64_t((shared_address(start TEMPER_PASS_SITE) & 0x3ffffu) >> 4) | uint64_t(leading_bytes >> 4 & 0x3fffu) << 16 |
           uint64_t(stride_bytes >> 4 & 0x3fffu) << 32 | uint64_t(swizzle) << 62;
}

// Orders the registers that the thread wrote before the products that follow.
__device__ __forceinline__ void wgmma_fence(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::wgmma_fence(site);)
    TEMPER_HOPPER_ASM("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes the group of the products since the last commit.
__device__ __forceinline__ void wgmma_commit(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::wgmma_commit(site);)
    TEMPER_HOPPER_ASM("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most n of the latest groups are unfinished.
template <int n>
__device__ __forceinline__ void wgmma_wait(TEMPER_SITE_ONLY) {
    TEMPER_SIMULATED(simulator::wgmma_wait(n, site);)
    TEMPER_HOPPER_ASM("wgmma.wait_group.sync.aligned %0;" ::"n"(n) : "memory");
}

// Keeps the compiler from moving reads or writes of accumulators across this point: right before the fence and right
// after the wait.
template <int count>
__device__ __forceinline__ void wgmma_hold(float (&d)[count]) {
#ifdef TEMPER_SIMULATOR
    static_cast<void>(d);
#else
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

// d = a b, or d += a b when `accumulate`. Thread t of the warpgroup, with w = t/32, g = t%32/4 and p = t%4, holds in
// d[4j + i] row 16w + g + 8(i/2), column 8j + 2p + i%2. a is 64 x 16 in shared memory, b is n x 16.
template <int n, Major a_major = Major::k, Major b_major = Major::k>
__device__ __forceinline__ void wgmma(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate TEMPER_SITE) {
    static_assert(n % 8 == 0 && n >= 8 && n <= 256, "n is a multiple of 8 up to 256");
#ifdef TEMPER_SIMULATOR
    simulator::wgmma(d, n, nullptr, a, b, a_major == Major::mn, b_major == Major::mn, accumulate, site);
#else
    TEMPER_WGMMA_CHOOSE(TEMPER_WGMMA_SHARED)
#endif
}

// The same with a in registers: a[i] as in mma_m16n8k16, for rows 16w to 16w + 15.
template <int n, Major b_major = Major::k>
__device__ __forceinline__ void wgmma_registers(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate TEMPER_SITE) {
    static_assert(n % 8 == 0 && n >= 8 && n <= 256, "n is a multiple of 8 up to 256");
#ifdef TEMPER_SIMULATOR
    simulator::wgmma(d, n, a, 0, b, false, b_major == Major::mn, accumulate, site);
#else
    TEMPER_WGMMA_CHOOSE(TEMPER_WGMMA_REGISTERS)
#endif
}
