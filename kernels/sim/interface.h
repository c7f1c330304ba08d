/* The C interface of the simulator: how the runtime launches a kernel on the CPU, and the memory that kernels may touch.
 *
 * The simulator executes the kernels of this folder, compiled by the host compiler with -DTEMPER_SIMULATOR, with the
 * semantics of the CUDA execution model, and turns every misuse that it sees into a message. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Shape of one launch. `cluster` of zeros or ones: no clusters. `schedule_seed` 0 runs threads round robin, any other
 * value runs blocks, ready threads and asynchronous copies in an order drawn from it. */
typedef struct {
    uint32_t grid[3];
    uint32_t cluster[3];
    uint32_t block;
    uint32_t shared_bytes;
    uint64_t schedule_seed;
} temper_launch;

/* Runs a kernel to its end. `arguments[i]` points to the value of parameter i, as for cuLaunchKernel. NULL on success,
 * else one or several lines that say what went wrong, valid until the next call on this OS thread. Several OS threads
 * may launch at once. */
const char *temper_sim_launch(const char *kernel, const temper_launch *launch, void *const *arguments,
                              uint32_t argument_count);

/* What a launch did: src/backend/cuda/counters.rs says what each count means. */
typedef struct {
    uint64_t blocks;
    uint64_t load_requests, load_sectors, load_sectors_ideal;
    uint64_t store_requests, store_sectors, store_sectors_ideal;
    uint64_t bytes_read, bytes_written;
    uint64_t unique_bytes_read, unique_bytes_written;
    uint64_t shared_requests, shared_wavefronts, shared_wavefronts_ideal;
    uint64_t wgmma_instructions, wgmma_shared_bytes;
    uint64_t mma_instructions;
    uint64_t tensor_flop;
    uint64_t copy_engine_bytes;
    uint64_t exponentials;
} temper_counters;

/* The same launch, counted. Runs the code that was compiled with calls before every access, and gives the same bits. */
const char *temper_sim_launch_counted(const char *kernel, const temper_launch *launch, void *const *arguments,
                                      uint32_t argument_count, temper_counters *counters);

/* What the latest counted launch of this OS thread did with bytes of memory. */
enum { TEMPER_READ = 1, TEMPER_WRITTEN = 2, TEMPER_READ_FIRST = 4 };
void temper_sim_touches(const void *from, size_t bytes, unsigned char *touches);

/* Memory that kernels may touch, filled with 0xFF (NaN in every float type). The END of an allocation touches a guard
 * page (up to the rounding of `bytes` to a multiple of 16), so an access beyond it is caught at its instruction. The
 * start is therefore aligned to 256 bytes only when `bytes` is a multiple of 256, and always to 16. Before the start
 * lie at most 4095 bytes of canary, then a guard page. NULL when the host has no memory left. */
void *temper_sim_allocate(size_t bytes);
/* Gives memory back. A canary found overwritten is reported by the next launch on any thread. */
void temper_sim_release(void *pointer, size_t bytes);

/* Element types and swizzles of a tensor map. */
enum { TEMPER_TENSOR_BF16 = 0, TEMPER_TENSOR_F32 = 1 };

/* Fills a 128-byte tensor map for tile copies, the counterpart of cuTensorMapEncodeTiled. Dimension 0 is the innermost
 * and has stride 1; `strides_bytes[i]` is the stride of dimension i + 1; `box` is the tile in elements; `swizzle_bytes`
 * is 0, 32, 64 or 128. Elements out of bounds read as zero and are not written. NULL on success, else which rule is
 * broken (a static string). */
const char *temper_sim_encode_tensor_map(void *map, int element_type, uint32_t rank, void *base,
                                         const uint64_t *sizes, const uint64_t *strides_bytes, const uint32_t *box,
                                         uint32_t swizzle_bytes);

/* How many kernels are registered, and the name of each (NULL beyond the end): lets a test compare with a manifest. */
uint32_t temper_sim_kernel_count(void);
const char *temper_sim_kernel_name(uint32_t index);
/* Whether that kernel is there with and without the watch over shared memory (watch.h). */
bool temper_sim_kernel_is_watched(uint32_t index);

#ifdef __cplusplus
}
#endif
