// mbarriers, cluster barriers and register reallocation.
#include <algorithm>

#include "hopper.h"

namespace simulator {

namespace {

constexpr uint64_t ticket_mark = 0x4d42ull << 48;

// The mbarrier at the address, or a failure that says why there is none.
Mbarrier& live_mbarrier(Thread& self, const uint64_t* address, const char* what, Site site) {
    Machine& machine = *self.block->machine;
    if (block_of_shared(machine, address, 8) == nullptr) {
        machine.fail(&self, site, "%s: %p is not in shared memory", what, static_cast<const void*>(address));
    }
    Mbarrier* barrier = find_mbarrier(machine, address);
    if (barrier == nullptr) {
        machine.fail(&self, site, "%s: there is no mbarrier at shared offset %td (never initialised, or overwritten)", what,
                     reinterpret_cast<const unsigned char*>(address) - self.shared);
    }
    return *barrier;
}

void complete_phase_if_due(Machine& machine, Mbarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.phase++;
    barrier.pending = barrier.arrivals;
    machine.engine->spins = 0;
    Thread* thread = barrier.waiting;
    barrier.waiting = nullptr;
    while (thread != nullptr) {
        Thread* next = thread->next_waiting;
        machine.wake(*thread);
        thread = next;
    }
}

void arrive(Thread& self, Mbarrier& barrier, Site site) {
    if (barrier.pending == 0) {
        self.block->machine->fail(&self, site,
                                  "mbarrier at shared offset %td: one arrival more than the %u of a phase (it still waits for "
                                  "%lld bytes)",
                                  reinterpret_cast<const unsigned char*>(barrier.address) - barrier.block->shared,
                                  barrier.arrivals, (long long)barrier.bytes);
    }
    watch_release(self, barrier.clock);
    barrier.pending--;
    complete_phase_if_due(*self.block->machine, barrier);
}

bool phase_complete(const Mbarrier& barrier, uint32_t parity) { return (barrier.phase & 1) != parity; }

// After a successful wait: the same line waiting twice for one phase has not flipped its parity.
void note_wait(Thread& self, Mbarrier& barrier, Site site) {
    watch_acquire(self, barrier.clock);
    for (WaitedPhase& waited : self.waited) {
        if (waited.barrier != &barrier || !(waited.site == site)) continue;
        if (waited.phase == barrier.phase) {
            self.block->machine->fail(&self, site,
                                      "mbarrier at shared offset %td: this line waited for phase %lld before and waits for it "
                                      "again (was the parity not flipped?)",
                                      reinterpret_cast<const unsigned char*>(barrier.address) - barrier.block->shared,
                                      (long long)barrier.phase - 1);
        }
        waited.phase = barrier.phase;
        return;
    }
    self.waited.push_back({&barrier, barrier.phase, site});
}

}  // namespace

Mbarrier* find_mbarrier(Machine& machine, const uint64_t* address) {
    uint64_t ticket;
    std::memcpy(&ticket, address, sizeof ticket);
    const uint64_t index = ticket ^ ticket_mark;
    Engine& engine = *machine.engine;
    if (index >= engine.mbarrier_count) return nullptr;
    Mbarrier& barrier = *engine.mbarriers[index];
    return barrier.address == address ? &barrier : nullptr;
}

void mbarrier_init(uint64_t* address, uint32_t arrivals, Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    Engine& engine = *machine.engine;
    if (block_of_shared(machine, address, 8) != self.block || reinterpret_cast<uintptr_t>(address) % 8 != 0) {
        machine.fail(&self, site, "mbarrier_init: %p is not an 8-byte aligned place in the block's shared memory",
                     static_cast<void*>(address));
    }
    if (arrivals == 0 || arrivals > 0xfffff) machine.fail(&self, site, "mbarrier_init: %u arrivals, 1 to 1048575 can be", arrivals);
    if (find_mbarrier(machine, address) != nullptr) {
        machine.fail(&self, site, "mbarrier_init: there is a live mbarrier at shared offset %td already",
                     reinterpret_cast<unsigned char*>(address) - self.shared);
    }
    if (engine.mbarriers.size() == engine.mbarrier_count) engine.mbarriers.push_back(std::make_unique<Mbarrier>());
    Mbarrier& barrier = *engine.mbarriers[engine.mbarrier_count];
    barrier = Mbarrier();
    barrier.block = self.block;
    barrier.address = address;
    barrier.arrivals = barrier.pending = arrivals;
    barrier.site = site;
    const uint64_t ticket = ticket_mark ^ engine.mbarrier_count++;
    std::memcpy(address, &ticket, sizeof ticket);
    watch_write(self, address, 8, site);
}

void mbarrier_arrive(uint64_t* address, Site site) {
    Thread& self = here();
    Mbarrier& barrier = live_mbarrier(self, address, "mbarrier_arrive", site);
    watch_read(self, address, 8, site);
    arrive(self, barrier, site);
}

void mbarrier_arrive_remote(uint64_t* address, uint32_t rank, Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    if (rank >= machine.blocks.size()) machine.fail(&self, site, "mbarrier_arrive_remote: the cluster has no block %u", rank);
    unsigned char* remote = machine.blocks[rank].shared + (reinterpret_cast<unsigned char*>(address) - self.shared);
    arrive(self, live_mbarrier(self, reinterpret_cast<uint64_t*>(remote), "mbarrier_arrive_remote", site), site);
}

void mbarrier_expect(uint64_t* address, uint32_t bytes, Site site) {
    Thread& self = here();
    Mbarrier& barrier = live_mbarrier(self, address, "mbarrier_expect", site);
    watch_read(self, address, 8, site);
    barrier.bytes += bytes;
    if (barrier.bytes > 0xfffff) {
        self.block->machine->fail(&self, site, "mbarrier_expect: %lld bytes in one phase, at most 1048575 can be",
                                  (long long)barrier.bytes);
    }
}

void complete_bytes(Machine& machine, Mbarrier& barrier, int64_t bytes) {
    barrier.bytes -= bytes;
    complete_phase_if_due(machine, barrier);
}

bool mbarrier_test(uint64_t* address, uint32_t parity, Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    Mbarrier& barrier = live_mbarrier(self, address, "mbarrier_try_wait", site);
    watch_read(self, address, 8, site);
    if (parity > 1) machine.fail(&self, site, "mbarrier_try_wait: parity %u, 0 or 1 can be", parity);
    if (phase_complete(barrier, parity)) {
        note_wait(self, barrier, site);
        return true;
    }
    // A loop around this call is a wait; when nobody else gets anywhere it is a deadlock.
    self.wait = {"mbarrier, spinning for the phase of parity", site, parity};
    if (++machine.engine->spins > 10000 + 100 * machine.thread_count) machine.report_deadlock();
    machine.yield_current(self);
    return false;
}

void mbarrier_wait(uint64_t* address, uint32_t parity, Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    Mbarrier& barrier = live_mbarrier(self, address, "mbarrier_wait", site);
    watch_read(self, address, 8, site);
    if (parity > 1) machine.fail(&self, site, "mbarrier_wait: parity %u, 0 or 1 can be", parity);
    while (!phase_complete(barrier, parity)) {
        self.next_waiting = barrier.waiting;
        barrier.waiting = &self;
        self.wait_mbarrier = &barrier;
        machine.block_current(self, "mbarrier, for the phase of parity", site, parity);
        self.wait_mbarrier = nullptr;
    }
    note_wait(self, barrier, site);
}

// ---- clusters ----

uint32_t cluster_rank() { return here().block->rank; }

void synchronize_cluster(Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    Barrier& barrier = machine.engine->cluster;
    if (machine.exited > 0) {
        machine.fail(&self, site, "cluster_sync can not complete: %u threads of the cluster have exited", machine.exited);
    }
    if (barrier.arrived == 0) barrier.site = site;
    watch_release(self, barrier.clock);
    if (++barrier.arrived < machine.thread_count) {
        self.next_waiting = barrier.waiting;
        barrier.waiting = &self;
        machine.block_current(self, "cluster_sync", site);
        watch_acquire(self, machine.engine->cluster_clock);
        return;
    }
    Thread* thread = barrier.waiting;
    machine.engine->cluster_clock = barrier.clock;
    barrier = Barrier();
    watch_acquire(self, machine.engine->cluster_clock);
    for (; thread != nullptr;) {
        Thread* next = thread->next_waiting;
        machine.wake(*thread);
        thread = next;
    }
}

// ---- registers ----

namespace {

void execute_nothing(void* const*, uint32_t, Machine&) {}

constexpr uint32_t register_file = 65536;

}  // namespace

// A warp at a time: lane 0 does it, the others meet it before and after.
void set_registers(uint32_t count, bool increase, Site site) {
    Thread& self = here();
    Block& block = *self.block;
    Machine& machine = *block.machine;
    const char* what = increase ? "registers_increase" : "registers_decrease";
    if (count < 24 || count > 256 || count % 8 != 0) {
        machine.fail(&self, site, "%s: %u is no multiple of 8 from 24 to 256", what, count);
    }
    rendezvous(execute_nothing, what, ~0u, &self, site);
    if (self.lane == 0) {
        Warp& warp = *self.warp;
        if (increase ? count < warp.registers : count > warp.registers) {
            machine.fail(&self, site, "%s to %u: the warp has %u registers a thread", what, count, warp.registers);
        }
        while (block.registers + 32 * count - 32 * warp.registers > register_file) {
            self.next_waiting = block.register_waiting;
            block.register_waiting = &self;
            machine.block_current(self, "registers_increase, for registers that others give back", site);
        }
        block.registers += 32 * count - 32 * warp.registers;
        warp.registers = count;
        for (Thread* thread = block.register_waiting; thread != nullptr;) {
            Thread* next = thread->next_waiting;
            machine.wake(*thread);
            thread = next;
        }
        block.register_waiting = nullptr;
    }
    rendezvous(execute_nothing, what, ~0u, &self, site);
}

void prepare_registers(Block& block) {
    const uint32_t each = std::min(256u, register_file / std::max(block.warp_count, 1u) / 32 / 8 * 8);
    block.registers = each * 32 * block.warp_count;
    block.register_waiting = nullptr;
    for (uint32_t i = 0; i < block.warp_count; i++) block.warps[i].registers = each;
}

void check_registers(Block& block) {
    for (uint32_t i = 0; i < block.warp_count; i++) {
        if (block.warps[i].registers == block.warps[i / 4 * 4].registers) continue;
        block.machine->fail_after(nullptr, {"", 0}, "warps %u and %u of one warpgroup ended with different register counts",
                                  i / 4 * 4, i);
        return;
    }
}

}  // namespace simulator
