// Memory that kernels touch: allocations between guard pages, the shared memory of a block, and the handler that turns a
// fault into a message.
#include <csignal>
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "hopper.h"

namespace simulator {

namespace {

constexpr unsigned char canary = 0xc5;
constexpr size_t shared_alignment = 1024;

size_t page_bytes() {
    static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
    return bytes;
}

size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Pages between two guard pages.
unsigned char* map_guarded(size_t bytes) {
    const size_t page = page_bytes();
    void* mapping = mmap(nullptr, bytes + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    unsigned char* start = static_cast<unsigned char*>(mapping);
    mprotect(start, page, PROT_NONE);
    mprotect(start + page + bytes, page, PROT_NONE);
    return start + page;
}

void unmap_guarded(unsigned char* pages, size_t bytes) { munmap(pages - page_bytes(), bytes + 2 * page_bytes()); }

struct Allocation {
    unsigned char* start;
    size_t bytes;
    unsigned char* pages;
    size_t page_total;
};

std::mutex allocations_lock;
std::string pending_report;

std::map<const unsigned char*, Allocation>& allocations() {
    static std::map<const unsigned char*, Allocation>* map = new std::map<const unsigned char*, Allocation>;
    return *map;
}

bool intact(const unsigned char* from, const unsigned char* to) {
    for (; from < to; from++) {
        if (*from != canary) return false;
    }
    return true;
}

void fill_canaries(const Allocation& allocation) {
    unsigned char* end = allocation.start + allocation.bytes;
    std::memset(allocation.pages, canary, size_t(allocation.start - allocation.pages));
    std::memset(end, canary, size_t(allocation.pages + allocation.page_total - end));
}

// What is wrong, once: the canary is mended.
std::string canary_report(const Allocation& allocation) {
    char text[160] = "";
    if (!intact(allocation.pages, allocation.start)) {
        snprintf(text, sizeof text, "memory before the allocation of %zu bytes at %p was overwritten", allocation.bytes,
                 static_cast<void*>(allocation.start));
    } else if (!intact(allocation.start + allocation.bytes, allocation.pages + allocation.page_total)) {
        snprintf(text, sizeof text, "memory behind the allocation of %zu bytes at %p was overwritten", allocation.bytes,
                 static_cast<void*>(allocation.start));
    }
    if (text[0] != 0) fill_canaries(allocation);
    return text;
}

// The allocation that the address lies in or next to; call with the lock held.
const Allocation* nearest_allocation(const unsigned char* address) {
    auto after = allocations().upper_bound(address);
    if (after != allocations().begin()) {
        const Allocation& before = std::prev(after)->second;
        if (address < before.pages + before.page_total + page_bytes()) return &before;
    }
    if (after != allocations().end() && address >= after->second.pages - page_bytes()) return &after->second;
    return nullptr;
}

}  // namespace

// ---- shared memory ----

namespace {

// Bytes that are mapped for any block: what a device has, and room for the alignment.
constexpr size_t shared_mapping = 256 * 1024;

}  // namespace

void prepare_shared(Block& block, uint32_t bytes) {
    if (block.mapping == nullptr) block.mapping = map_guarded(shared_mapping);
    unsigned char* end = block.mapping + shared_mapping;
    block.shared = end - round_up(bytes, shared_alignment);
    block.shared_bytes = bytes;
    std::memset(block.shared - shared_alignment, canary, shared_alignment);
    std::memset(block.shared, 0xff, bytes);
    std::memset(block.shared + bytes, canary, size_t(end - block.shared) - bytes);
}

void check_shared(Block& block) {
    const unsigned char* end = block.mapping + shared_mapping;
    const bool before = intact(block.shared - shared_alignment, block.shared);
    if (before && intact(block.shared + block.shared_bytes, end)) return;
    block.machine->fail_after(&block.threads[0], {"", 0}, "memory %s the %u bytes of shared memory was overwritten by this block",
                              before ? "behind" : "before", block.shared_bytes);
}

void release_shared(Block& block) {
    if (block.mapping != nullptr) unmap_guarded(block.mapping, shared_mapping);
    block.mapping = nullptr;
}

Block* block_of_shared(Machine& machine, const void* address, size_t bytes) {
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    for (Block& block : machine.blocks) {
        if (byte >= block.shared && byte + bytes <= block.shared + block.shared_bytes) return &block;
    }
    return nullptr;
}

// ---- faults ----

namespace {

struct Fault {
    const void* address;
    const void* instruction;
};

__thread Fault fault;
__thread bool faults_prepared;
struct sigaction previous_segv, previous_bus;
constexpr size_t landing_bytes = 64 * 1024;
__thread unsigned char* landing_stack;

Text describe_address(Machine& machine, const void* address) {
    Text text;
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    for (const Block& block : machine.blocks) {
        if (byte >= block.mapping - page_bytes() && byte < block.mapping + shared_mapping + page_bytes()) {
            text.add("offset %td of the %u bytes of shared memory", byte - block.shared, block.shared_bytes);
            return text;
        }
    }
    std::lock_guard<std::mutex> guard(allocations_lock);
    if (const Allocation* allocation = nearest_allocation(byte)) {
        text.add("offset %td of the allocation of %zu bytes at %p", byte - allocation->start, allocation->bytes,
                 static_cast<void*>(allocation->start));
    } else {
        text.add("no memory of the simulator");
    }
    return text;
}

// Where the handler sends the faulting thread: an ordinary function on a stack of its own.
void land() {
    entered_landing(landing_stack, landing_bytes);
    Thread& self = here();
    Machine& machine = *self.block->machine;
    const Site site = site_of_instruction(fault.instruction);
    if (self.fiber != nullptr && in_stack_guard(self.fiber, fault.address)) {
        machine.fail(&self, site, "the thread's stack overflowed (local arrays are too large)");
    }
    if (const EngineCopy* copy = machine.engine->working) {
        machine.fail(copy->thread, copy->site, "out of bounds: the copy engine accessed address %p, %s", fault.address,
                     describe_address(machine, fault.address).c_str());
    }
    machine.fail(&self, site, "out of bounds: access to address %p, %s", fault.address,
                 describe_address(machine, fault.address).c_str());
}

void handle_fault(int signal, siginfo_t* information, void* opaque) {
    if (running_machine == nullptr || current == nullptr) {
        // Not ours: as it was before the simulator came.
        sigaction(signal, signal == SIGSEGV ? &previous_segv : &previous_bus, nullptr);
        return;
    }
    ucontext_t* context = static_cast<ucontext_t*>(opaque);
    fault.address = information->si_addr;
    const uintptr_t top = reinterpret_cast<uintptr_t>(landing_stack) + landing_bytes - 256;
#if defined(__linux__) && defined(__x86_64__)
    fault.instruction = reinterpret_cast<const void*>(context->uc_mcontext.gregs[REG_RIP]);
    context->uc_mcontext.gregs[REG_RSP] = greg_t(top - 8);
    context->uc_mcontext.gregs[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&land));
#elif defined(__linux__) && defined(__aarch64__)
    fault.instruction = reinterpret_cast<const void*>(context->uc_mcontext.pc);
    context->uc_mcontext.sp = top;
    context->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&land);
#elif defined(__APPLE__) && defined(__aarch64__)
    fault.instruction = reinterpret_cast<const void*>(context->uc_mcontext->__ss.__pc);
    context->uc_mcontext->__ss.__sp = top;
    context->uc_mcontext->__ss.__pc = reinterpret_cast<uintptr_t>(&land);
#elif defined(__APPLE__) && defined(__x86_64__)
    fault.instruction = reinterpret_cast<const void*>(context->uc_mcontext->__ss.__rip);
    context->uc_mcontext->__ss.__rsp = top - 8;
    context->uc_mcontext->__ss.__rip = reinterpret_cast<uintptr_t>(&land);
#else
#error "the fault handler does not know this system"
#endif
}

}  // namespace

void prepare_faults() {
    static std::once_flag installed;
    std::call_once(installed, [] {
        struct sigaction action = {};
        action.sa_sigaction = handle_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    });
    if (faults_prepared) return;
    faults_prepared = true;
    landing_stack = static_cast<unsigned char*>(
        mmap(nullptr, landing_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    // The handler itself needs a stack as well, in case the fault is an overflow. Rust threads have one already.
    stack_t existing;
    if (sigaltstack(nullptr, &existing) == 0 && !(existing.ss_flags & SS_DISABLE)) return;
    stack_t stack = {};
    stack.ss_size = 64 * 1024;
    stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, nullptr);
}

std::string check_argument_allocation(const void* pointer) {
    std::lock_guard<std::mutex> guard(allocations_lock);
    const unsigned char* byte = static_cast<const unsigned char*>(pointer);
    auto after = allocations().upper_bound(byte);
    if (after == allocations().begin()) return "";
    const Allocation& allocation = std::prev(after)->second;
    if (byte >= allocation.start + allocation.bytes) return "";
    return canary_report(allocation);
}

std::vector<Touched> list_allocations() {
    std::lock_guard<std::mutex> guard(allocations_lock);
    std::vector<Touched> list;
    list.reserve(allocations().size());
    for (const auto& entry : allocations()) list.push_back({entry.second.start, entry.second.bytes, {}});
    return list;
}

std::string take_pending_report() {
    std::lock_guard<std::mutex> guard(allocations_lock);
    std::string report;
    report.swap(pending_report);
    return report;
}

}  // namespace simulator

using namespace simulator;

extern "C" void* temper_sim_allocate(size_t bytes) {
    const size_t pages = round_up(bytes == 0 ? 16 : bytes, page_bytes());
    unsigned char* start = map_guarded(pages);
    if (start == nullptr) return nullptr;
    Allocation allocation = {start + pages - round_up(bytes, 16), bytes, start, pages};
    fill_canaries(allocation);
    std::memset(allocation.start, 0xff, bytes);
    std::lock_guard<std::mutex> guard(allocations_lock);
    allocations()[allocation.start] = allocation;
    return allocation.start;
}

extern "C" void temper_sim_release(void* pointer, size_t bytes) {
    if (pointer == nullptr) return;
    Allocation allocation;
    {
        std::lock_guard<std::mutex> guard(allocations_lock);
        auto found = allocations().find(static_cast<unsigned char*>(pointer));
        if (found == allocations().end() || found->second.bytes != bytes) {
            pending_report = "release of memory that was not allocated, or with another size";
            return;
        }
        allocation = found->second;
        const std::string report = canary_report(allocation);
        if (!report.empty()) pending_report = "found on release: " + report;
        allocations().erase(found);
    }
    unmap_guarded(allocation.pages, allocation.page_total);
}
