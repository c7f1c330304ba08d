// ldmatrix and mma.sync: 32 lanes hold the pieces of small matrices.
#include "machine.h"

namespace simulator {

namespace {

struct LoadRecord {
    const unsigned char* row;
    uint32_t* registers;
};

template <int matrices, bool transposed>
void execute_load(void* const* records, uint32_t, Machine& machine) {
    const unsigned char* rows[matrices * 8];
    for (int row = 0; row < matrices * 8; row++) rows[row] = static_cast<LoadRecord*>(records[row])->row;
    count_ldmatrix(machine, rows, matrices);
    for (int matrix = 0; matrix < matrices; matrix++) {
        uint16_t elements[8][8];
        for (int row = 0; row < 8; row++) {
            std::memcpy(elements[row], rows[matrix * 8 + row], 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            const int major = lane / 4, minor = lane % 4 * 2;
            const uint32_t low = transposed ? elements[minor][major] : elements[major][minor];
            const uint32_t high = transposed ? elements[minor + 1][major] : elements[major][minor + 1];
            static_cast<LoadRecord*>(records[lane])->registers[matrix] = low | high << 16;
        }
    }
}

struct MatrixRecord {
    float* c;
    const uint32_t* a;
    const uint32_t* b;
};

typedef float Row __attribute__((vector_size(32)));

float low_of(uint32_t packed) { return std::bit_cast<float>(packed << 16); }
float high_of(uint32_t packed) { return std::bit_cast<float>(packed & 0xffff0000u); }

// Half of what the simulator does on a model is this loop. Its clones compute the same bits: AVX2 has no fused product and
// sum. Four rows at a time, since the sums of one row wait for one another.
#if defined(__x86_64__) && defined(__linux__)
#define TEMPER_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define TEMPER_CLONES
#endif
TEMPER_CLONES void accumulate(const float (&a)[16][16], const Row (&b)[16], Row (&c)[16]) {
    for (int row = 0; row < 16; row += 4) {
        Row sums[4] = {c[row], c[row + 1], c[row + 2], c[row + 3]};
        for (int k = 0; k < 16; k++) {
            for (int i = 0; i < 4; i++) sums[i] += a[row + i][k] * b[k];
        }
        for (int i = 0; i < 4; i++) c[row + i] = sums[i];
    }
}

// Products of bf16 are exact in f32, so only the order of the sum over k, which no device documents, is a choice.
void execute_mma(void* const* records, uint32_t, Machine& machine) {
    count_mma(machine);
    float a[16][16];
    Row b[16], c[16];
    for (int lane = 0; lane < 32; lane++) {
        const MatrixRecord& record = *static_cast<MatrixRecord*>(records[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) {
            float* to = &a[group + i % 2 * 8][pair + i / 2 * 8];
            to[0] = low_of(record.a[i]);
            to[1] = high_of(record.a[i]);
        }
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][group] = low_of(record.b[i]);
            b[pair + i * 8 + 1][group] = high_of(record.b[i]);
        }
        for (int i = 0; i < 4; i++) c[group + i / 2 * 8][pair + i % 2] = record.c[i];
    }
    accumulate(a, b, c);
    for (int lane = 0; lane < 32; lane++) {
        const MatrixRecord& record = *static_cast<MatrixRecord*>(records[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int i = 0; i < 4; i++) record.c[i] = c[group + i / 2 * 8][pair + i % 2];
    }
}

}  // namespace

void ldmatrix(uint32_t* registers, int matrices, bool transposed, const void* row, Site site) {
    Thread& self = here();
    if (self.lane < uint32_t(matrices) * 8) {
        Block* block = block_of_shared(*self.block->machine, row, 16);
        if (block != self.block) {
            self.block->machine->fail(&self, site, "ldmatrix: the row at %p is not in the shared memory of the block", row);
        }
        if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
            self.block->machine->fail(&self, site, "misaligned ldmatrix: shared offset %zu is no multiple of 16",
                                      size_t(static_cast<const unsigned char*>(row) - self.shared));
        }
    }
    if (self.lane < uint32_t(matrices) * 8) watch_read(self, row, 16, site);
    static constexpr Execute table[3][2] = {{execute_load<1, false>, execute_load<1, true>},
                                            {execute_load<2, false>, execute_load<2, true>},
                                            {execute_load<4, false>, execute_load<4, true>}};
    LoadRecord record = {static_cast<const unsigned char*>(row), registers};
    rendezvous(table[matrices / 2][transposed], "ldmatrix", ~0u, &record, site);
}

void mma_m16n8k16(float* c, const uint32_t* a, const uint32_t* b, Site site) {
    MatrixRecord record = {c, a, b};
    rendezvous(execute_mma, "mma", ~0u, &record, site);
}

}  // namespace simulator
