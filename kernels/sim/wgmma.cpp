// Products of a warpgroup. A wgmma is only noted when it is issued, and its accumulators are poisoned; the wait that
// covers it brings the 128 threads together, compares what they noted, and multiplies.
#include "hopper.h"

namespace simulator {

namespace {

constexpr uint32_t group_threads = 128;
constexpr uint32_t image_columns = 256;

#if defined(__x86_64__) && !TEMPER_ADDRESS_SANITIZER && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define TEMPER_WIDE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define TEMPER_WIDE
#endif

WarpGroup& group_of(Thread& thread) { return thread.block->groups[thread.index / group_threads]; }

void check_group(Thread& self, const char* what, Site site) {
    if (self.block->thread_count >= (self.index / group_threads + 1) * group_threads) return;
    self.block->machine->fail(&self, site, "%s: the warpgroup of this thread has fewer than 128 threads", what);
}

float bf16_at(const unsigned char* address) {
    uint16_t bits;
    std::memcpy(&bits, address, 2);
    return std::bit_cast<float>(uint32_t(bits) << 16);
}

// An operand in shared memory, its descriptor taken apart.
struct Operand {
    uint32_t start, leading, stride, swizzle;
    bool transposed;
};

Operand decode(uint64_t descriptor, bool transposed) {
    return {uint32_t(descriptor & 0x3fff) << 4, uint32_t(descriptor >> 16 & 0x3fff) << 4, uint32_t(descriptor >> 32 & 0x3fff) << 4,
            uint32_t(descriptor >> 62), transposed};
}

// Offset in shared memory of element (line, k), where a line is a row of a or a column of b.
uint32_t element_offset(const Operand& operand, uint32_t line, uint32_t k) {
    static constexpr uint32_t spans[4] = {16, 128, 64, 32};
    const uint32_t span = spans[operand.swizzle];
    uint32_t offset = operand.start;
    if (!operand.transposed) {
        offset += line % 8 * span + line / 8 * operand.stride;
        offset += operand.swizzle == 0 ? k / 8 * operand.leading + k % 8 * 2 : k * 2;
    } else if (operand.swizzle == 0) {
        offset += line / 8 * operand.stride + line % 8 * 2 + k % 8 * 16 + k / 8 * operand.leading;
    } else {
        offset += line * 2 % span + line * 2 / span * operand.leading + k % 8 * span + k / 8 * operand.stride;
    }
    return operand.swizzle == 0 ? offset : offset ^ (offset >> 7 & (span / 16 - 1)) << 4;
}

void check_operand(Thread& self, const Operand& operand, uint64_t descriptor, const char* name, Site site) {
    Machine& machine = *self.block->machine;
    if (descriptor >> 49 & 7) machine.fail(&self, site, "wgmma: operand %s has a base offset, which is not supported", name);
    // The pattern of a swizzle repeats every 8 lines, and must begin with the first of them.
    static constexpr uint32_t repeats[4] = {16, 1024, 512, 256};
    static constexpr uint32_t spans[4] = {16, 128, 64, 32};
    const uint32_t within = operand.start % repeats[operand.swizzle];
    if (operand.swizzle != 0 && within >= spans[operand.swizzle]) {
        machine.fail(&self, site, "misaligned wgmma: operand %s begins at shared offset %u, not in the first line of a %u-byte pattern",
                     name, operand.start, repeats[operand.swizzle]);
    }
}

// Reads lines x 16 values, as to[k * image_columns + line] or to[line * 16 + k].
void read_operand(Thread& self, const Product& product, uint64_t descriptor, bool transposed, uint32_t lines, const char* name,
                  bool by_k, float* to) {
    const Operand operand = decode(descriptor, transposed);
    Block& block = *self.block;
    // 8 elements that are contiguous in the unswizzled layout stay together.
    for (uint32_t line = 0; line < lines; line += transposed ? 8 : 1) {
        for (uint32_t k = 0; k < 16; k += transposed ? 1 : 8) {
            const uint32_t offset = element_offset(operand, line, k);
            if (offset + 16 > block.shared_bytes) {
                block.machine->fail(&self, product.site,
                                    "out of bounds: wgmma operand %s (line %u, k %u) lies at offset %u of the %u bytes of shared memory",
                                    name, line, k, offset, block.shared_bytes);
            }
            const unsigned char* from = block.shared + offset;
            watch_async_read(self, block, from, 16, "wgmma", product.site);
            for (uint32_t i = 0; i < 8; i++) {
                const uint32_t l = line + (transposed ? i : 0), kk = k + (transposed ? 0 : i);
                to[by_k ? kk * image_columns + l : l * 16 + kk] = bf16_at(from + 2 * i);
            }
        }
    }
}

TEMPER_WIDE void multiply(float* image, const float* a, const float* b, uint32_t n) {
    for (uint32_t row = 0; row < 64; row++) {
        float* sums = image + row * image_columns;
        for (uint32_t k = 0; k < 16; k++) {
            const float factor = a[row * 16 + k];
            const float* line = b + k * image_columns;
            for (uint32_t column = 0; column < n; column++) sums[column] += factor * line[column];
        }
    }
}

uint32_t image_row(uint32_t thread, uint32_t i) { return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8; }
uint32_t image_column(uint32_t thread, uint32_t i) { return i / 4 * 8 + thread % 4 * 2 + i % 2; }

void execute(Thread* threads, WarpGroup& group, const Product& product) {
    static thread_local float a[64 * 16], b[16 * image_columns];
    Thread& first = threads[0];
    float* image = group.images[product.slot].get();
    if (!product.accumulate) {
        for (uint32_t row = 0; row < 64; row++) std::memset(image + row * image_columns, 0, product.n * 4);
    }
    if (product.in_registers) {
        for (uint32_t t = 0; t < group_threads; t++) {
            const uint32_t* registers = threads[t].products.queue[group.executing].a_registers;
            for (uint32_t i = 0; i < 4; i++) {
                const uint32_t row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
                a[row * 16 + k] = std::bit_cast<float>(registers[i] << 16);
                a[row * 16 + k + 1] = std::bit_cast<float>(registers[i] & 0xffff0000u);
            }
        }
    } else {
        read_operand(first, product, product.a, product.a_transposed, 64, "a", false, a);
    }
    read_operand(first, product, product.b, product.b_transposed, product.n, "b", true, b);
    multiply(image, a, b, product.n);
}

// Gives the accumulators back to the threads' registers once no product in flight uses them.
void release_slot(Thread* threads, WarpGroup& group, const Product& product) {
    for (uint32_t t = 0; t < group_threads; t++) {
        Accumulator& accumulator = threads[t].products.slots[product.slot];
        if (--accumulator.products != 0) continue;
        for (uint32_t i = 0; i < accumulator.n / 2; i++) {
            if (std::bit_cast<uint32_t>(accumulator.d[i]) != ~0u) {
                threads[t].block->machine->fail(&threads[t], product.site,
                                                "an accumulator of this wgmma was written before wgmma_wait");
            }
            accumulator.d[i] = group.images[product.slot][image_row(t, i) * image_columns + image_column(t, i)];
        }
        accumulator.d = nullptr;
    }
}

bool same(const Product& x, const Product& y) {
    return x.slot == y.slot && x.n == y.n && x.group == y.group && x.in_registers == y.in_registers &&
           x.a_transposed == y.a_transposed && x.b_transposed == y.b_transposed && x.accumulate == y.accumulate && x.a == y.a &&
           x.b == y.b && x.site == y.site;
}

// How many products at the head of the queue the wait covers; fails when threads noted different ones.
size_t covered_products(Thread* threads, int pending) {
    const ThreadProducts& reference = threads[0].products;
    for (uint32_t t = 1; t < group_threads; t++) {
        const ThreadProducts& other = threads[t].products;
        const size_t common = std::min(reference.queue.size(), other.queue.size());
        for (size_t i = 0; i < common; i++) {
            if (same(reference.queue[i], other.queue[i])) continue;
            threads[t].block->machine->fail(&threads[t], other.queue[i].site,
                                            "divergence: this thread and thread %u of its warpgroup issued different wgmmas (%s)",
                                            threads[0].index, describe_site(reference.queue[i].site).c_str());
        }
        if (reference.queue.size() != other.queue.size() || reference.group != other.group) {
            threads[t].block->machine->fail(&threads[t], {"", 0},
                                            "divergence: %zu wgmmas in flight in %u groups, thread %u of the warpgroup has %zu in %u",
                                            other.queue.size(), other.group, threads[0].index, reference.queue.size(),
                                            reference.group);
        }
    }
    size_t count = 0;
    while (count < reference.queue.size() && reference.queue[count].group + uint32_t(pending) < reference.group) count++;
    return count;
}

void finish(Thread* threads, WarpGroup& group) {
    const size_t count = covered_products(threads, group.pending);
    for (size_t i = 0; i < count; i++) {
        group.executing = i;
        const Product product = threads[0].products.queue[i];
        execute(threads, group, product);
        count_wgmma(*threads[0].block->machine, product.n, product.in_registers);
        release_slot(threads, group, product);
    }
    for (uint32_t t = 0; t < group_threads; t++) {
        auto& queue = threads[t].products.queue;
        queue.erase(queue.begin(), queue.begin() + std::ptrdiff_t(count));
    }
}

// The slot of the accumulators at d: the one in flight, or a free one, into which their values move.
uint32_t choose_slot(Thread& self, float* d, uint32_t n, bool& in_flight, Site site) {
    Machine& machine = *self.block->machine;
    uint32_t free = accumulator_slots;
    for (uint32_t i = accumulator_slots; i-- > 0;) {
        const Accumulator& slot = self.products.slots[i];
        if (slot.d == nullptr) {
            free = i;
        } else if (slot.d == d && slot.n == n) {
            in_flight = true;
            return i;
        } else if (d < slot.d + slot.n / 2 && slot.d < d + n / 2) {
            machine.fail(&self, site, "wgmma: these accumulators overlap those of a product in flight with another shape");
        }
    }
    if (free == accumulator_slots) machine.fail(&self, site, "wgmma: more than %u accumulator tiles in flight", accumulator_slots);
    in_flight = false;
    self.products.slots[free] = {d, n, 0};
    WarpGroup& group = group_of(self);
    if (!group.images[free]) group.images[free] = std::make_unique<float[]>(64 * image_columns);
    const uint32_t thread = self.index % group_threads;
    for (uint32_t i = 0; i < n / 2; i++) {
        group.images[free][image_row(thread, i) * image_columns + image_column(thread, i)] = d[i];
        d[i] = std::bit_cast<float>(~0u);
    }
    return free;
}

}  // namespace

void wgmma(float* d, uint32_t n, const uint32_t* a_registers, uint64_t a, uint64_t b, bool a_transposed, bool b_transposed,
           bool accumulate, Site site) {
    Thread& self = here();
    check_group(self, "wgmma", site);
    ThreadProducts& products = self.products;
    products.touched = true;
    if (a_registers == nullptr) check_operand(self, decode(a, a_transposed), a, "a", site);
    check_operand(self, decode(b, b_transposed), b, "b", site);
    bool in_flight;
    Product product = {choose_slot(self, d, n, in_flight, site), n, products.group, a_registers != nullptr, a_transposed,
                       b_transposed, accumulate, a, b, {}, site};
    // Registers that may have been written since the last wait: fresh accumulators, and a.
    if (!products.fenced && (!in_flight || a_registers != nullptr)) {
        self.block->machine->fail(&self, site, "wgmma: wgmma_fence is missing before this product");
    }
    if (a_registers != nullptr) std::memcpy(product.a_registers, a_registers, sizeof product.a_registers);
    products.slots[product.slot].products++;
    products.queue.push_back(product);
}

void wgmma_fence(Site site) {
    Thread& self = here();
    check_group(self, "wgmma_fence", site);
    synchronize_warp(~0u, site);
    self.products.touched = true;
    self.products.fenced = true;
}

void wgmma_commit(Site site) {
    Thread& self = here();
    check_group(self, "wgmma_commit", site);
    self.products.touched = true;
    self.products.group++;
}

void wgmma_wait(int pending, Site site) {
    Thread& self = here();
    check_group(self, "wgmma_wait", site);
    Machine& machine = *self.block->machine;
    WarpGroup& group = group_of(self);
    self.products.fenced = false;
    if (group.arrived == 0) {
        group.site = site;
        group.pending = pending;
    } else if (!(group.site == site)) {
        machine.fail(&self, site, "divergence: this thread waits here, %u of its warpgroup wait at wgmma_wait (%s)", group.arrived,
                     describe_site(group.site).c_str());
    }
    if (++group.arrived < group_threads) {
        self.next_waiting = group.waiting;
        group.waiting = &self;
        machine.block_current(self, "wgmma_wait", site);
        return;
    }
    finish(&self.block->threads[self.index / group_threads * group_threads], group);
    for (uint32_t warp = 0; warp < 4; warp++) count_warp(self.block->warps[self.index / group_threads * 4 + warp]);
    Thread* thread = group.waiting;
    group.waiting = nullptr;
    group.arrived = 0;
    while (thread != nullptr) {
        Thread* next = thread->next_waiting;
        machine.wake(*thread);
        thread = next;
    }
}

void check_product_exit(Thread& thread) {
    if (thread.products.queue.empty()) return;
    thread.block->machine->fail(&thread, thread.products.queue[0].site,
                                "the thread exited with %zu wgmmas in flight that it never waited for, the first from here",
                                thread.products.queue.size());
}

}  // namespace simulator
