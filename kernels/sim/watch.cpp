// The watch over shared memory; see watch.h. Ends with the functions that -fsanitize=thread makes kernels call.
#include "watch.h"

#include <sys/mman.h>

#include "hopper.h"

namespace simulator {

namespace {

// What is known of two neighbouring bytes.
struct Granule {
    // The block that the rest is about; another number means never written.
    uint32_t generation;
    uint32_t write_step;
    // The writer's proxy fences before the write.
    uint32_t write_fences;
    // Low half of the address of the instruction that wrote.
    uint32_t write_instruction;
    // The two latest readers, of different warps.
    uint32_t read_step[2];
    uint16_t reader[2];
    uint16_t writer;
    // Written by ordinary stores, not by the copy engine.
    bool generic;
    bool written;
};

constexpr size_t granule_bytes = 2;
constexpr size_t granule_count = 232448 / granule_bytes;
constexpr uint16_t nobody = 0xffff;

}  // namespace

struct Shadow {
    uint32_t generation = 0;
    // What any thread that executed a proxy fence had seen.
    Clock fenced;
    Granule granules[granule_count];
};

namespace {

uint32_t cluster_index(const Thread& thread) { return thread.block->rank * thread.block->thread_count + thread.index; }
uint32_t clock_index(const Warp& warp) { return (warp.block->rank * warp.block->warp_count + warp.index) % clock_warps; }

// Whether what `thread` did in its warp's step `step` is known to be done before what `observer` does now.
bool seen(const Thread& observer, const Thread& thread, uint32_t step) {
    if (&observer == &thread) return true;
    if (observer.warp == thread.warp) return step < thread.warp->met;
    const uint32_t index = clock_index(*thread.warp);
    return index == clock_index(*observer.warp) || observer.warp->clock.seen[index] > step;
}

Site site_of(const void* instruction, Site site) {
    return instruction == nullptr ? site : site_of_instruction(static_cast<const char*>(instruction) - 1);
}

Text describe_write(Machine& machine, const Granule& granule) {
    const Thread& writer = machine.threads[granule.writer];
    Text text;
    text.add("thread %u", writer.index);
    if (granule.write_instruction != 0) {
        // The upper half belongs to the kernel, which lies in the same object.
        const uintptr_t near = reinterpret_cast<uintptr_t>(machine.code.function);
        const uintptr_t address = (near & ~uintptr_t(0xffffffff)) | granule.write_instruction;
        text.add(" (%s)", describe_site(site_of_instruction(reinterpret_cast<const char*>(address) - 1)).c_str());
    }
    return text;
}

void check_in_flight(Thread& self, const unsigned char* address, size_t bytes, bool write, const void* instruction, Site site) {
    for (const auto& copy : self.block->machine->engine->queue) {
        if (copy->block != self.block || address + bytes <= copy->shared || copy->shared + copy->bytes <= address) continue;
        if (copy->kind == CopyKind::load) {
            self.block->machine->fail(&self, site_of(instruction, site),
                                      "%s shared offset %td, where a load is in flight that was started at %s",
                                      write ? "writes" : "reads", address - self.shared, describe_site(copy->site).c_str());
        }
        if (write && !copy->source_read) {
            self.block->machine->fail(&self, site_of(instruction, site),
                                      "writes shared offset %td, which the copy engine still reads for a store started at %s "
                                      "(bulk_wait_read is missing)",
                                      address - self.shared, describe_site(copy->site).c_str());
        }
    }
}

void check_copies(Thread& self, const unsigned char* address, size_t bytes, bool write, const void* instruction, Site site) {
    for (const PendingCopy& copy : self.copies) {
        if (address + bytes <= copy.shared || copy.shared + 16 <= address) continue;
        self.block->machine->fail(&self, site_of(instruction, site),
                                  "%s shared offset %td, where a copy_async of this thread is in flight (%s)",
                                  write ? "writes" : "reads", address - self.shared, describe_site(copy.site).c_str());
    }
}

void renew(Granule& granule, uint32_t generation) {
    granule = Granule();
    granule.generation = generation;
    granule.reader[0] = granule.reader[1] = granule.writer = nobody;
}

void add_reader(Thread& self, Granule& granule) {
    const Machine& machine = *self.block->machine;
    if (granule.reader[0] != nobody && machine.threads[granule.reader[0]].warp != self.warp) {
        granule.reader[1] = granule.reader[0];
        granule.read_step[1] = granule.read_step[0];
    }
    granule.reader[0] = uint16_t(cluster_index(self));
    granule.read_step[0] = self.warp->step;
}

void note_read(Thread& self, Granule& granule, size_t offset, bool ordered, const void* instruction, Site site) {
    Machine& machine = *self.block->machine;
    if (granule.generation != self.block->shadow->generation || !granule.written) {
        machine.fail(&self, site_of(instruction, site), "reads shared offset %zu, which was never written", offset);
    }
    const Thread& writer = machine.threads[granule.writer];
    if (ordered && !seen(self, writer, granule.write_step)) {
        machine.fail(&self, site_of(instruction, site), "race: reads shared offset %zu, which %s wrote without a barrier between",
                     offset, describe_write(machine, granule).c_str());
    }
    add_reader(self, granule);
}

void note_write(Thread& self, Granule& granule, size_t offset, bool ordered, bool generic, const void* instruction, Site site) {
    Machine& machine = *self.block->machine;
    if (granule.generation != self.block->shadow->generation) renew(granule, self.block->shadow->generation);
    if (ordered && granule.written && !seen(self, machine.threads[granule.writer], granule.write_step)) {
        machine.fail(&self, site_of(instruction, site), "race: writes shared offset %zu, which %s wrote without a barrier between",
                     offset, describe_write(machine, granule).c_str());
    }
    for (int i = 0; ordered && i < 2; i++) {
        if (granule.reader[i] == nobody) continue;
        const Thread& reader = machine.threads[granule.reader[i]];
        if (seen(self, reader, granule.read_step[i])) continue;
        machine.fail(&self, site_of(instruction, site),
                     "race: writes shared offset %zu, which thread %u read without a barrier between", offset, reader.index);
    }
    granule.written = true;
    granule.writer = uint16_t(cluster_index(self));
    granule.write_step = self.warp->step;
    granule.write_fences = self.fences;
    granule.write_instruction = uint32_t(reinterpret_cast<uintptr_t>(instruction));
    granule.generic = generic;
}

// Single bytes share a granule with a neighbour that may be another thread's, so their order is not judged.
void access(Thread& self, const void* address, size_t bytes, bool write, bool generic, const void* instruction, Site site) {
    Block& block = *self.block;
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - block.shared);
    const bool ordered = bytes > 1;
    if (offset + bytes > block.shared_bytes) {
        block.machine->fail(&self, site_of(instruction, site), "out of bounds: %s offset %zu of the %u bytes of shared memory",
                            write ? "writes" : "reads", offset, block.shared_bytes);
    }
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    if (generic && !block.machine->engine->queue.empty()) check_in_flight(self, byte, bytes, write, instruction, site);
    if (generic && !self.copies.empty()) check_copies(self, byte, bytes, write, instruction, site);
    for (size_t at = offset / granule_bytes; at <= (offset + bytes - 1) / granule_bytes; at++) {
        Granule& granule = block.shadow->granules[at];
        if (write) {
            note_write(self, granule, at * granule_bytes, ordered, generic, instruction, site);
        } else {
            note_read(self, granule, at * granule_bytes, ordered, instruction, site);
        }
    }
}

}  // namespace

void watch_begin(Block& block) {
    if (!block.machine->watched) return;
    if (block.shadow == nullptr) {
        void* mapping = mmap(nullptr, sizeof(Shadow), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        block.shadow = new (mapping) Shadow;
    }
    block.shadow->generation++;
    block.shadow->fenced = Clock();
    for (uint32_t i = 0; i < block.warp_count; i++) {
        Warp& warp = block.warps[i];
        warp.step = warp.met = 1;
        warp.clock = Clock();
    }
}

void release_shadow(Block& block) {
    if (block.shadow != nullptr) munmap(static_cast<void*>(block.shadow), sizeof(Shadow));
    block.shadow = nullptr;
}

void watch_read(Thread& thread, const void* address, size_t bytes, Site site) {
    if (thread.block->machine->watched) access(thread, address, bytes, false, true, nullptr, site);
}

void watch_write(Thread& thread, const void* address, size_t bytes, Site site) {
    if (thread.block->machine->watched) access(thread, address, bytes, true, true, nullptr, site);
}

void watch_async_write(Thread& issuer, const void* address, size_t bytes, Site site) {
    if (!issuer.block->machine->watched) return;
    check_in_flight(issuer, static_cast<const unsigned char*>(address), bytes, true, nullptr, site);
    access(issuer, address, bytes, true, false, nullptr, site);
}

void watch_async_read(Thread& issuer, Block& block, const void* address, size_t bytes, const char* what, Site site) {
    Machine& machine = *block.machine;
    if (!machine.watched) return;
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - block.shared);
    for (size_t at = offset / granule_bytes; at <= (offset + bytes - 1) / granule_bytes; at++) {
        Granule& granule = block.shadow->granules[at];
        if (granule.generation != block.shadow->generation || !granule.written) {
            machine.fail(&issuer, site, "%s reads shared offset %zu, which was never written", what, at * granule_bytes);
        }
        const Thread& writer = machine.threads[granule.writer];
        add_reader(issuer, granule);
        if (!granule.generic) continue;
        const bool fenced = writer.fences != granule.write_fences ||
                            block.shadow->fenced.seen[clock_index(*writer.warp)] > granule.write_step;
        if (!fenced) {
            machine.fail(&issuer, site, "%s reads shared offset %zu, which %s wrote with no fence_proxy_async behind it", what,
                         at * granule_bytes, describe_write(machine, granule).c_str());
        }
        if (!seen(issuer, writer, granule.write_step)) {
            machine.fail(&issuer, site, "race: %s reads shared offset %zu, which %s wrote without a barrier between", what,
                         at * granule_bytes, describe_write(machine, granule).c_str());
        }
    }
}

void watch_proxy_fence(Thread& thread) {
    if (!thread.block->machine->watched) return;
    thread.fences++;
    watch_join(thread.block->shadow->fenced, thread.warp->clock);
}

void watch_join(Clock& clock, const Clock& other) {
    for (uint32_t i = 0; i < clock_warps; i++) clock.seen[i] = clock.seen[i] > other.seen[i] ? clock.seen[i] : other.seen[i];
}

void watch_release(Thread& thread, Clock& clock) {
    if (!thread.block->machine->watched) return;
    Warp& warp = *thread.warp;
    watch_join(clock, warp.clock);
    uint32_t& own = clock.seen[clock_index(warp)];
    own = std::max(own, warp.step + 1);
    warp.step++;
}

void watch_acquire(Thread& thread, const Clock& clock) {
    if (!thread.block->machine->watched) return;
    Warp& warp = *thread.warp;
    watch_join(warp.clock, clock);
    warp.met = std::max(warp.met, std::min(clock.seen[clock_index(warp)], warp.step));
}

void watch_warp(Warp& warp) { warp.met = ++warp.step; }

void watch_block(Block& block) {
    if (!block.machine->watched) return;
    Clock all;
    for (uint32_t i = 0; i < block.warp_count; i++) {
        Warp& warp = block.warps[i];
        watch_join(all, warp.clock);
        uint32_t& own = all.seen[clock_index(warp)];
        own = std::max(own, warp.step + 1);
        warp.met = ++warp.step;
    }
    for (uint32_t i = 0; i < block.warp_count; i++) block.warps[i].clock = all;
}

void note_atomic(const void* address, size_t bytes) {
    if (running_machine == nullptr || current == nullptr) return;
    Thread& self = here();
    if (running_machine->counted) {
        const uintptr_t place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
        count_copied(*running_machine, address, bytes, false);
        count_access(self, address, bytes, true, place);
    }
    if (!running_machine->watched) return;
    Block* block = block_of_shared(*running_machine, address, bytes);
    if (block == nullptr) return;
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - block->shared);
    for (size_t at = offset / granule_bytes; at <= (offset + bytes - 1) / granule_bytes; at++) {
        note_write(self, block->shadow->granules[at], at * granule_bytes, false, true, nullptr, {"", 0});
    }
}

namespace {

inline void watched_access(const void* address, size_t bytes, bool write, const void* instruction) {
    if (current == nullptr) return;
    const size_t offset = size_t(static_cast<const unsigned char*>(address) - current->shared);
    const Machine& machine = *running_machine;
    if (machine.counted) count_access(here(), address, bytes, write, reinterpret_cast<uintptr_t>(instruction));
    // Also what lies in the canaries behind the block's memory; everything else is not shared memory.
    if (offset >= current->shared_span) return;
    if (machine.watched) access(here(), address, bytes, write, true, instruction, {"", 0});
}

}  // namespace

}  // namespace simulator

#define TEMPER_HOOK(bytes)                                                                                        \
    extern "C" void __tsan_read##bytes(void* address) {                                                           \
        simulator::watched_access(address, bytes, false, __builtin_return_address(0));                            \
    }                                                                                                             \
    extern "C" void __tsan_write##bytes(void* address) {                                                          \
        simulator::watched_access(address, bytes, true, __builtin_return_address(0));                             \
    }                                                                                                             \
    extern "C" void __tsan_unaligned_read##bytes(void* address) {                                                 \
        simulator::watched_access(address, bytes, false, __builtin_return_address(0));                            \
    }                                                                                                             \
    extern "C" void __tsan_unaligned_write##bytes(void* address) {                                                \
        simulator::watched_access(address, bytes, true, __builtin_return_address(0));                             \
    }

TEMPER_HOOK(1)
TEMPER_HOOK(2)
TEMPER_HOOK(4)
TEMPER_HOOK(8)
TEMPER_HOOK(16)

// Declared as the compiler itself declares them.
extern "C" void __tsan_init(void) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}
extern "C" void __tsan_read_range(void* address, long bytes) {
    if (bytes > 0) simulator::watched_access(address, size_t(bytes), false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* address, long bytes) {
    if (bytes > 0) simulator::watched_access(address, size_t(bytes), true, __builtin_return_address(0));
}

// What clang calls in place of the library's functions.
extern "C" void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    __tsan_read_range(const_cast<void*>(from), long(bytes));
    __tsan_write_range(to, long(bytes));
    return memcpy(to, from, bytes);
}
extern "C" void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    __tsan_read_range(const_cast<void*>(from), long(bytes));
    __tsan_write_range(to, long(bytes));
    return memmove(to, from, bytes);
}
extern "C" void* __tsan_memset(void* to, int value, size_t bytes) {
    __tsan_write_range(to, long(bytes));
    return memset(to, value, bytes);
}
