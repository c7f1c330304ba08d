// The state of one running launch: threads, warps, blocks, and the scheduler that moves between threads.
//
// One OS thread runs one launch on its own Machine. A simulated thread runs until it has to wait; then the next ready
// thread continues. Threads that never wait follow one another on one stack without a switch.
#pragma once

#include <cstdarg>
#include <memory>
#include <string>
#include <vector>

#include "counters.h"
#include "device.h"
#include "fiber.h"
#include "instructions.h"
#include "interface.h"
#include "products.h"
#include "watch.h"

namespace simulator {

struct Machine;
struct Mbarrier;
struct Engine;

enum class State : uint8_t { unstarted, ready, running, blocked, exited };

// What a blocked thread waits for, for reports.
struct Wait {
    const char* what = "";
    Site site = {"", 0};
    int64_t detail = -1;
};

// A cp.async that was issued and not yet waited for.
struct PendingCopy {
    unsigned char* shared;
    const void* global;
    bool valid;
    uint32_t group;
    Site site;
};

// The latest phase of an mbarrier that a source line of one thread has waited for.
struct WaitedPhase {
    const Mbarrier* barrier;
    uint64_t phase;
    Site site;
};

struct Thread : ThreadView {
    Fiber* fiber = nullptr;
    Block* block = nullptr;
    Warp* warp = nullptr;
    uint32_t lane = 0;
    uint32_t index = 0;
    State state = State::unstarted;
    Wait wait;
    Thread* next_waiting = nullptr;
    std::vector<PendingCopy> copies;
    uint32_t copy_group = 0;
    // Hopper: phases seen, bulk groups committed, products in flight.
    std::vector<WaitedPhase> waited;
    const Mbarrier* wait_mbarrier = nullptr;
    uint32_t bulk_group = 0;
    bool waits_for_bulk = false;
    ThreadProducts products;
    // Proxy fences executed, for watch.cpp.
    uint32_t fences = 0;
    // The latest vector that counters.cpp has counted.
    const unsigned char* vector = nullptr;
    size_t vector_bytes = 0;
};

// Computes a warp collective: `records[lane]` is what each lane of the mask passed in; results go into the records.
using Execute = void (*)(void* const* records, uint32_t mask, Machine& machine);

// A collective that some lanes have reached and others have not.
struct Rendezvous {
    uint32_t mask = 0;
    uint32_t arrived = 0;
    Execute execute = nullptr;
    const char* what = "";
    Site site = {"", 0};
    void* records[32];
};

struct Warp {
    Block* block = nullptr;
    Thread* threads = nullptr;
    uint32_t index = 0;
    uint32_t alive = 0;
    uint32_t pending = 0;
    // Registers that a thread of the warp holds (setmaxnreg).
    uint32_t registers = 0;
    // For watch.cpp: the warp's current step, the step that began when its lanes last met, and what it has seen.
    uint32_t step = 1;
    uint32_t met = 1;
    Clock clock;
    Rendezvous rendezvous[32];
};

// One of the 16 barriers of a block.
struct Barrier {
    uint32_t expected = 0;
    uint32_t arrived = 0;
    uint32_t predicate_count = 0;
    Thread* waiting = nullptr;
    Thread* last = nullptr;
    const char* what = "";
    Site site = {"", 0};
    Clock clock;
};

struct Shadow;

struct Block {
    Machine* machine = nullptr;
    uint3 index = {0, 0, 0};
    uint32_t rank = 0;
    Thread* threads = nullptr;
    Warp* warps = nullptr;
    uint32_t thread_count = 0;
    uint32_t warp_count = 0;
    uint32_t exited = 0;
    Barrier barriers[16];
    uint32_t last_predicate_count = 0;
    unsigned char* shared = nullptr;
    uint32_t shared_bytes = 0;
    unsigned char* mapping = nullptr;
    WarpGroup groups[8];
    uint32_t registers = 0;
    Thread* register_waiting = nullptr;
    Shadow* shadow = nullptr;
};

// A kernel as it was compiled once, and what unpacks its arguments.
struct Compiled {
    void (*function)() = nullptr;
    Invoke invoke = nullptr;
};

struct Kernel {
    const char* name;
    uint32_t max_threads;
    uint32_t parameters;
    const uint32_t* parameter_bytes;
    Compiled plain;
    // With the calls that watch.cpp answers. Where one of the two is missing, the other runs every launch.
    Compiled watched;
    bool defined_twice = false;
};

// A small generator for schedules (xorshift).
struct Random {
    uint64_t state = 0;
    uint64_t next() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state * 0x2545f4914f6cdd1dull;
    }
    uint32_t below(uint32_t bound) { return uint32_t((next() >> 32) * bound >> 32); }
};

struct Machine {
    const Kernel* kernel = nullptr;
    // What runs: the kernel's plain or its watched code.
    Compiled code;
    void* const* arguments = nullptr;
    temper_launch launch = {};
    Random random;
    bool seeded = false;
    bool watched = false;
    bool counted = false;
    std::unique_ptr<Counting> counting;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<Block> blocks;
    uint32_t thread_count = 0;
    uint32_t next_unstarted = 0;
    uint32_t exited = 0;

    // Ready threads, a ring whose size is a power of two.
    std::vector<Thread*> ready;
    uint32_t ready_head = 0;
    uint32_t ready_count = 0;

    std::vector<Fiber*> free_fibers;
    Context main;
    bool failed = false;
    std::string message;

    std::unique_ptr<Engine> engine;

    Machine();
    ~Machine();
    const char* run(const Kernel& kernel, const temper_launch& launch, void* const* arguments, temper_counters* counters);

    // Whether this launch is to be watched, where the kernel was compiled for it.
    bool watch_is_due();

    // Blocks the running thread until somebody calls wake on it.
    void block_current(Thread& self, const char* what, Site site, int64_t detail = -1);
    // Lets others run, then continues.
    void yield_current(Thread& self);
    void wake(Thread& thread);

    // Ends the launch with a message. Never returns: the running stacks are abandoned.
    [[noreturn]] void fail(const Thread* thread, Site site, const char* format, ...)
        __attribute__((format(printf, 4, 5)));
    // Ends it from the scheduler's own stack, after the threads have run.
    void fail_after(const Thread* thread, Site site, const char* format, ...) __attribute__((format(printf, 4, 5)));
    void note_failure(const Thread* thread, Site site, const char* format, va_list values);
    [[noreturn]] void leave();

    void prepare_cluster(uint32_t cluster_index);
    void run_cluster();
    void thread_main(Thread& thread);
    void exit_thread(Thread& thread);
    Thread* pick();
    Thread* next_thread();
    void resume_next(Thread& self);
    [[noreturn]] void fiber_loop();
    [[noreturn]] void report_deadlock();
    void push_ready(Thread& thread);
};

// The machine of this OS thread while a launch runs, else NULL.
extern __thread Machine* running_machine __attribute__((tls_model("initial-exec")));

inline Thread& here() { return *static_cast<Thread*>(current); }

// A piece of a message, cut at its length. Owns no memory, because failing abandons the stack that it lies on.
struct Text {
    char characters[320] = "";
    void add(const char* format, ...) __attribute__((format(printf, 2, 3)));
    const char* c_str() const { return characters; }
};

Text describe_thread(const Thread& thread);
Text describe_lanes(uint32_t mask);
Text describe_site(Site site);

// Meets the other lanes of `mask`; the last to arrive executes.
void rendezvous(Execute execute, const char* what, uint32_t mask, void* record, Site site);

// Checks after a thread returned from the kernel that it leaves nobody waiting and nothing in flight.
void check_warp_exit(Thread& thread);
void check_barrier_exit(Thread& thread);
void check_copy_exit(Thread& thread);
void check_bulk_exit(Thread& thread);
void check_product_exit(Thread& thread);

// The register file of a block (setmaxnreg).
void prepare_registers(Block& block);
void check_registers(Block& block);

// Shared memory of a block: mapped once per cluster rank, filled with 0xFF and canaries before a block starts.
void prepare_shared(Block& block, uint32_t bytes);
void check_shared(Block& block);
void release_shared(Block& block);
// The block of the running cluster whose shared memory holds all of [address, address + bytes), or NULL.
Block* block_of_shared(Machine& machine, const void* address, size_t bytes);

// Faults of the running launch become messages; installed once per OS thread.
void prepare_faults();
// The source line of an instruction, line 0 when it can not be told.
Site site_of_instruction(const void* instruction);
// What is wrong with the canaries around the allocation that a kernel argument points into; empty when nothing is.
std::string check_argument_allocation(const void* pointer);
std::string take_pending_report();

}  // namespace simulator
