// cp.async: copies of one thread that are there only after it has waited for them.
//
// The destination holds NaN from the start of a copy to the wait that covers it, and the source is read at the wait: a
// kernel that reads too early, or overwrites what others still read, computes nonsense every time.
#include "machine.h"

namespace simulator {

uint32_t shared_address(const void* pointer, Site site) {
    Thread& self = here();
    Block* block = block_of_shared(*self.block->machine, pointer, 0);
    if (block == nullptr) {
        self.block->machine->fail(&self, site, "address %p is not in shared memory", pointer);
    }
    return block->rank << 24 | uint32_t(static_cast<const unsigned char*>(pointer) - block->shared);
}

void copy_async_16(void* shared, const void* global, bool valid, Site site) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    if (block_of_shared(machine, shared, 16) != self.block) {
        machine.fail(&self, site, "copy_async: the destination %p is not in the shared memory of the block", shared);
    }
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) {
        machine.fail(&self, site, "misaligned copy_async: shared offset %zu is no multiple of 16",
                     size_t(static_cast<unsigned char*>(shared) - self.shared));
    }
    if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        machine.fail(&self, site, "misaligned copy_async: global address %p is no multiple of 16", global);
    }
    if (valid) {
        // Touched now, so that a fault names this line's thread and not the wait.
        (void)*static_cast<const volatile uint64_t*>(global);
        (void)*(static_cast<const volatile uint64_t*>(global) + 1);
    }
    watch_write(self, shared, 16, site);
    if (valid) count_vector(self, global, 16, false, site);
    count_vector(self, shared, 16, true, site);
    std::memset(shared, 0xff, 16);
    self.copies.push_back({static_cast<unsigned char*>(shared), global, valid, self.copy_group, site});
}

void copy_async_commit(Site) { here().copy_group++; }

void copy_async_wait(int pending, Site) {
    Thread& self = here();
    size_t done = 0;
    for (; done < self.copies.size(); done++) {
        const PendingCopy& copy = self.copies[done];
        if (copy.group + uint32_t(pending) >= self.copy_group) break;
        if (copy.valid) {
            std::memcpy(copy.shared, copy.global, 16);
        } else {
            std::memset(copy.shared, 0, 16);
        }
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + std::ptrdiff_t(done));
}

void check_copy_exit(Thread& thread) {
    if (thread.copies.empty()) return;
    thread.block->machine->fail(&thread, thread.copies[0].site,
                                "the thread exited with %zu copies in flight that it never waited for, the first from here",
                                thread.copies.size());
}

}  // namespace simulator
