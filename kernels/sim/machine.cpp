// The scheduler, and the entry points that launch a kernel; see machine.h.
#include "hopper.h"

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <unordered_map>

namespace simulator {

__thread ThreadView* current;
__thread Machine* running_machine;

namespace {

std::vector<Kernel>& kernels() {
    static std::vector<Kernel> list;
    return list;
}

uint32_t power_of_two_from(uint32_t value) {
    uint32_t power = 1;
    while (power < value) power *= 2;
    return power;
}

Kernel* find_kernel(const char* name) {
    const auto same = [name](const Kernel& kernel) { return std::strcmp(kernel.name, name) == 0; };
    const auto found = std::find_if(kernels().begin(), kernels().end(), same);
    return found == kernels().end() ? nullptr : &*found;
}

void enter_fiber() {
    entered_fiber();
    running_machine->fiber_loop();
}

uint32_t cluster_size(const temper_launch& launch) {
    uint32_t size = 1;
    for (uint32_t side : launch.cluster) size *= std::max(side, 1u);
    return size;
}

}  // namespace

void register_kernel(const char* name, uint32_t max_threads, uint32_t parameters, const uint32_t* parameter_bytes,
                     void (*function)(), Invoke invoke, bool watched) {
    Kernel* found = find_kernel(name);
    if (found == nullptr) found = &kernels().emplace_back(Kernel{name, max_threads, parameters, parameter_bytes, {}, {}});
    Compiled& compiled = watched ? found->watched : found->plain;
    found->defined_twice |= compiled.function != nullptr;
    compiled = {function, invoke};
}

Machine::Machine() : engine(std::make_unique<Engine>()) {}

Machine::~Machine() {
    for (Block& block : blocks) {
        release_shared(block);
        release_shadow(block);
    }
    for (Fiber* fiber : free_fibers) destroy_fiber(fiber);
}

// ---- scheduling ----

void Machine::push_ready(Thread& thread) {
    thread.state = State::ready;
    ready[(ready_head + ready_count) & (uint32_t(ready.size()) - 1)] = &thread;
    ready_count++;
}

void Machine::wake(Thread& thread) { push_ready(thread); }

// The next thread to run: a ready one before one that was not started, so that few stacks are alive; NULL when there is
// none. With a seed, any of them.
Thread* Machine::pick() {
    const uint32_t mask = uint32_t(ready.size()) - 1;
    const bool startable = next_unstarted < thread_count;
    if (seeded) {
        const uint32_t choices = ready_count + (startable ? 1 : 0);
        if (choices == 0) return nullptr;
        const uint32_t choice = random.below(choices);
        if (choice == ready_count) return &threads[next_unstarted++];
        std::swap(ready[ready_head & mask], ready[(ready_head + choice) & mask]);
    } else if (ready_count == 0) {
        return startable ? &threads[next_unstarted++] : nullptr;
    }
    Thread* thread = ready[ready_head & mask];
    ready_head++;
    ready_count--;
    return thread;
}

// The copy engine works now and then, and whenever nobody else can.
Thread* Machine::next_thread() {
    if (!engine->queue.empty() && random.below(8) == 0) advance_engine(*this);
    Thread* next = pick();
    while (next == nullptr && advance_engine(*this)) next = pick();
    return next;
}

void Machine::resume_next(Thread& self) {
    Thread* next = next_thread();
    if (next == nullptr) report_deadlock();
    if (next == &self) {
        self.state = State::running;
        return;
    }
    if (next->state == State::unstarted) {
        if (free_fibers.empty()) {
            Fiber* fiber = create_fiber();
            if (fiber == nullptr) fail(&self, {"", 0}, "the host has no memory for another thread's stack");
            free_fibers.push_back(fiber);
        }
        next->fiber = free_fibers.back();
        free_fibers.pop_back();
        prepare_fiber(next->fiber, enter_fiber);
    }
    next->state = State::running;
    current = next;
    switch_context(self.fiber->context, next->fiber->context);
}

void Machine::block_current(Thread& self, const char* what, Site site, int64_t detail) {
    self.wait = {what, site, detail};
    self.state = State::blocked;
    resume_next(self);
}

void Machine::yield_current(Thread& self) {
    push_ready(self);
    resume_next(self);
}

// Runs threads on one stack until the next one to run has a stack of its own.
void Machine::fiber_loop() {
    Thread* self = &here();
    while (true) {
        thread_main(*self);
        Thread* next = exited < thread_count ? next_thread() : nullptr;
        Fiber* fiber = self->fiber;
        self->fiber = nullptr;
        if (next != nullptr && next->state == State::unstarted) {
            next->fiber = fiber;
            current = next;
            self = next;
            continue;
        }
        if (next == nullptr && exited < thread_count) {
            self->fiber = fiber;
            report_deadlock();
        }
        free_fibers.push_back(fiber);
        if (next == nullptr) {
            switch_context(fiber->context, main, true);
        } else {
            next->state = State::running;
            current = next;
            switch_context(fiber->context, next->fiber->context, true);
        }
        __builtin_unreachable();
    }
}

void Machine::thread_main(Thread& thread) {
    thread.state = State::running;
    code.invoke(code.function, arguments);
    exit_thread(thread);
}

void Machine::exit_thread(Thread& thread) {
    check_copy_exit(thread);
    check_bulk_exit(thread);
    check_product_exit(thread);
    thread.state = State::exited;
    thread.warp->alive &= ~(1u << thread.lane);
    thread.block->exited++;
    exited++;
    check_warp_exit(thread);
    check_barrier_exit(thread);
}

// ---- launch ----

// Watching takes two to five times as long, and training launches the same thing thousands of times. What a kernel does
// with shared memory depends on its shape and on the counts and flags that it is given, and hardly ever on data. So of the
// process's launches that agree in these, the first, second, fourth, eighth and so on are watched. Counts and flags have
// four bytes; so have some numbers, whose every value is then watched.
bool Machine::watch_is_due() {
    uint64_t key = 0xcbf29ce484222325ull;
    const auto add = [&key](const void* bytes, size_t count) {
        for (size_t i = 0; i < count; i++) key = (key ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3ull;
    };
    add(&kernel, sizeof kernel);
    add(&launch, sizeof launch);
    for (uint32_t i = 0; i < kernel->parameters; i++) {
        if (kernel->parameter_bytes[i] == 4) add(arguments[i], 4);
    }
    static std::mutex lock;
    static std::unordered_map<uint64_t, uint32_t> launches;
    const std::lock_guard guard(lock);
    const uint32_t count = ++launches[key];
    return (count & (count - 1)) == 0;
}

// Sets up the threads of one cluster (of one block where there are no clusters).
void Machine::prepare_cluster(uint32_t cluster_index) {
    const uint32_t per_block = launch.block, warps_per_block = (per_block + 31) / 32;
    uint32_t sides[3], counts[3];
    for (int i = 0; i < 3; i++) {
        sides[i] = std::max(launch.cluster[i], 1u);
        counts[i] = launch.grid[i] / sides[i];
    }
    const uint32_t x = cluster_index % counts[0], y = cluster_index / counts[0] % counts[1],
                   z = cluster_index / counts[0] / counts[1];
    for (uint32_t rank = 0; rank < blocks.size(); rank++) {
        Block& block = blocks[rank];
        block.machine = this;
        block.rank = rank;
        block.index = {x * sides[0] + rank % sides[0], y * sides[1] + rank / sides[0] % sides[1],
                       z * sides[2] + rank / sides[0] / sides[1]};
        block.threads = &threads[rank * per_block];
        block.warps = &warps[rank * warps_per_block];
        block.thread_count = per_block;
        block.warp_count = warps_per_block;
        block.exited = 0;
        for (Barrier& barrier : block.barriers) barrier = Barrier();
        prepare_shared(block, launch.shared_bytes);
        for (uint32_t w = 0; w < warps_per_block; w++) {
            Warp& warp = block.warps[w];
            const uint32_t lanes = std::min(32u, per_block - w * 32);
            warp.block = &block;
            warp.threads = &block.threads[w * 32];
            warp.index = w;
            warp.alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
            warp.pending = 0;
        }
        prepare_registers(block);
        watch_begin(block);
        for (WarpGroup& group : block.groups) {
            group.arrived = 0;
            group.waiting = nullptr;
        }
        for (uint32_t t = 0; t < per_block; t++) {
            Thread& thread = block.threads[t];
            thread.thread_index = {t, 0, 0};
            thread.block_index = block.index;
            thread.block_size = {per_block, 1, 1};
            thread.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
            thread.shared = block.shared;
            thread.shared_span = (launch.shared_bytes + 1023) / 1024 * 1024;
            thread.fiber = nullptr;
            thread.block = &block;
            thread.warp = &block.warps[t / 32];
            thread.lane = t % 32;
            thread.index = t;
            thread.state = State::unstarted;
            thread.copies.clear();
            thread.copy_group = 0;
            thread.waited.clear();
            thread.wait_mbarrier = nullptr;
            thread.bulk_group = 0;
            thread.waits_for_bulk = false;
            thread.products.queue.clear();
            if (thread.products.touched) {
                thread.products.touched = false;
                for (Accumulator& slot : thread.products.slots) slot = Accumulator();
                thread.products.group = 0;
                thread.products.fenced = false;
            }
            thread.fences = 0;
            thread.vector_bytes = 0;
        }
    }
    engine->queue.clear();
    engine->mbarrier_count = 0;
    engine->spins = 0;
    engine->cluster = Barrier();
    engine->working = nullptr;
    next_unstarted = 0;
    exited = 0;
    ready_head = ready_count = 0;
}

void Machine::run_cluster() {
    Thread* first = pick();
    if (free_fibers.empty()) free_fibers.push_back(create_fiber());
    first->fiber = free_fibers.back();
    free_fibers.pop_back();
    prepare_fiber(first->fiber, enter_fiber);
    current = first;
    switch_context(main, first->fiber->context);
    if (!failed && engine->mbarrier_count + engine->queue.size() != 0) drain_engine(*this);
    current = nullptr;
    if (failed) {
        for (uint32_t i = 0; i < thread_count; i++) {
            if (threads[i].fiber != nullptr) free_fibers.push_back(threads[i].fiber);
            threads[i].fiber = nullptr;
        }
    }
}

const char* Machine::run(const Kernel& chosen, const temper_launch& shape, void* const* values, temper_counters* counters) {
    kernel = &chosen;
    launch = shape;
    arguments = values;
    failed = false;
    message.clear();
    watched = chosen.watched.function != nullptr && watch_is_due();
    const bool instrumented = watched || counters != nullptr;
    code = instrumented || chosen.plain.function == nullptr ? chosen.watched : chosen.plain;
    seeded = shape.schedule_seed != 0;
    random.state = shape.schedule_seed * 0x9e3779b97f4a7c15ull + 0x1234567;
    const uint32_t ranks = cluster_size(shape), per_block = shape.block;
    thread_count = ranks * per_block;
    if (threads.size() < thread_count) threads.resize(thread_count);
    if (warps.size() < ranks * ((per_block + 31) / 32)) warps.resize(ranks * ((per_block + 31) / 32));
    while (blocks.size() > ranks) {
        release_shared(blocks.back());
        release_shadow(blocks.back());
        blocks.pop_back();
    }
    blocks.resize(ranks);
    if (ready.size() < thread_count) ready.resize(power_of_two_from(thread_count));

    const uint64_t clusters = uint64_t(shape.grid[0]) * shape.grid[1] * shape.grid[2] / ranks;
    std::vector<uint32_t> order;
    if (seeded) {
        order.resize(clusters);
        for (uint32_t i = 0; i < clusters; i++) order[i] = i;
        for (uint32_t i = uint32_t(clusters); i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
    }
    count_begin(*this, counters);
    running_machine = this;
    for (uint64_t i = 0; i < clusters && !failed; i++) {
        prepare_cluster(seeded ? order[i] : uint32_t(i));
        run_cluster();
        current = nullptr;
        for (Block& block : blocks) {
            if (!failed) check_shared(block);
            if (!failed) check_registers(block);
            if (!failed) count_block(block);
        }
    }
    running_machine = nullptr;
    count_end(*this);
    if (failed) return message.c_str();
    for (uint32_t i = 0; i < chosen.parameters; i++) {
        if (chosen.parameter_bytes[i] != sizeof(void*)) continue;
        const void* pointer;
        std::memcpy(&pointer, values[i], sizeof pointer);
        const std::string report = check_argument_allocation(pointer);
        if (report.empty()) continue;
        message = std::string("kernel ") + chosen.name + ": " + report + " (argument " + std::to_string(i) + ")";
        return message.c_str();
    }
    return nullptr;
}

namespace {

// Which rule of a launch is broken; empty when none is.
std::string check_launch(const char* name, const Kernel* kernel, const temper_launch& launch, uint32_t arguments) {
    const std::string prefix = std::string("kernel ") + name + ": ";
    if (kernel == nullptr) return prefix + "no kernel of this name is registered";
    if (kernel->defined_twice) return prefix + "defined twice";
    if (arguments != kernel->parameters) {
        return prefix + "takes " + std::to_string(kernel->parameters) + " arguments, " + std::to_string(arguments) + " given";
    }
    if (launch.block == 0 || launch.block > kernel->max_threads || launch.block > 1024) {
        return prefix + "launched with " + std::to_string(launch.block) + " threads a block, made for " +
               std::to_string(kernel->max_threads);
    }
    if (launch.shared_bytes > 232448) {
        return prefix + std::to_string(launch.shared_bytes) + " bytes of shared memory, a block has at most 232448";
    }
    if (launch.grid[0] == 0 || launch.grid[1] == 0 || launch.grid[2] == 0) return prefix + "the grid has no blocks";
    if (launch.grid[0] > 2147483647u || launch.grid[1] > 65535 || launch.grid[2] > 65535) {
        return prefix + "the grid is larger than a device allows";
    }
    if (cluster_size(launch) > 8) return prefix + "a cluster has at most 8 blocks";
    for (int i = 0; i < 3; i++) {
        if (launch.grid[i] % std::max(launch.cluster[i], 1u) != 0) return prefix + "the grid is no multiple of the cluster";
    }
    return "";
}

}  // namespace

}  // namespace simulator

using namespace simulator;

namespace {

thread_local Machine machine;
thread_local std::string message;

const char* launch_on_this_thread(const char* name, const temper_launch& launch, void* const* arguments,
                                  uint32_t argument_count, temper_counters* counters) {
    const Kernel* kernel = find_kernel(name);
    message = check_launch(name, kernel, launch, argument_count);
    if (message.empty() && counters != nullptr && kernel->watched.function == nullptr) {
        message = std::string("kernel ") + name + ": was compiled without what counts its accesses";
    }
    if (!message.empty()) return message.c_str();
    prepare_faults();
    const char* error = machine.run(*kernel, launch, arguments, counters);
    if (error != nullptr) return error;
    message = take_pending_report();
    return message.empty() ? nullptr : message.c_str();
}

}  // namespace

extern "C" const char* temper_sim_launch(const char* name, const temper_launch* launch, void* const* arguments,
                                         uint32_t argument_count) {
    return launch_on_this_thread(name, *launch, arguments, argument_count, nullptr);
}

extern "C" const char* temper_sim_launch_counted(const char* name, const temper_launch* launch, void* const* arguments,
                                                 uint32_t argument_count, temper_counters* counters) {
    return launch_on_this_thread(name, *launch, arguments, argument_count, counters);
}

extern "C" void temper_sim_touches(const void* from, size_t bytes, unsigned char* touches) {
    copy_touches(machine, from, bytes, touches);
}

extern "C" uint32_t temper_sim_kernel_count(void) { return uint32_t(kernels().size()); }

extern "C" const char* temper_sim_kernel_name(uint32_t index) {
    return index < kernels().size() ? kernels()[index].name : nullptr;
}

extern "C" bool temper_sim_kernel_is_watched(uint32_t index) {
    if (index >= kernels().size()) return false;
    const Kernel& kernel = kernels()[index];
    return kernel.watched.function != nullptr && kernel.plain.function != nullptr;
}
