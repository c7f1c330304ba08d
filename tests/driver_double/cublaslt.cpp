// A stand-in for libcublasLt.so.13: a naive column-major product, as the manual defines it, on the other double's memory.
//
// Its heuristic proposes an algorithm that splits the sum over k first, and one that needs too much memory second: a
// caller that takes what comes first is caught, because these two compute nothing. Behind them come the usable ones, each
// with a time of its own on the other double's clock; the one called unstable adds a bit of noise, and the one called wrong
// leaves a term out. It also counts how often it is asked, and refuses the product that it is told to refuse.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

extern "C" int double_drain(void* stream);
extern "C" bool double_inside(uint64_t pointer, size_t bytes);
extern "C" void double_advance(double milliseconds);

namespace {
enum { success = 0, invalid = 7, unsupported = 15, bf16 = 14, f32 = 0 };
struct Matrix { int type; uint64_t rows, columns; int64_t leading; };
struct Operation { int compute; int transposed[2]; };
struct Preference { uint64_t workspace; uint32_t reductions, alignment[4]; };
struct Algorithm { uint64_t split, rest[7]; };
struct Proposal { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };
static_assert(sizeof(Proposal) == 96, "cublasLtMatmulHeuristicResult_t");
int asked = 0, alive = 0;
uint64_t refused_rows = 0, refused_columns = 0;
// The usable algorithms: a mark, milliseconds, and what is wrong with the result.
enum { right, unstable, wrong };
const Algorithm usable[] = {{1, {42, 8, right}}, {1, {42, 6, right}}, {1, {42, 1, unstable}}, {1, {42, 2, wrong}}, {1, {42, 7, right}}};
int calls = 0;
uint64_t last_milliseconds = 0;

float read(const Matrix& matrix, const void* data, uint64_t place) {
    if (matrix.type == f32) return static_cast<const float*>(data)[place];
    uint32_t bits = uint32_t(static_cast<const uint16_t*>(data)[place]) << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
void write(const Matrix& matrix, void* data, uint64_t place, float value) {
    if (matrix.type == f32) {
        static_cast<float*>(data)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    static_cast<uint16_t*>(data)[place] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
size_t bytes_of(const Matrix& matrix) { return (matrix.leading * (matrix.columns - 1) + matrix.rows) * (matrix.type == f32 ? 4 : 2); }
}  // namespace

extern "C" {
int double_asked() { return asked; }
int double_descriptors_alive() { return alive; }
// The mark of the algorithm of the last product: its milliseconds.
int double_last_algorithm() { return int(last_milliseconds); }
// In the library's terms: rows and columns of the result.
void double_refuse(uint64_t rows, uint64_t columns) { refused_rows = rows, refused_columns = columns; }

size_t cublasLtGetVersion() { return 130002; }
int cublasLtCreate(void** handle) { ++alive; *handle = &alive; return success; }
int cublasLtDestroy(void*) { --alive; return success; }
int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (leading < int64_t(rows)) return invalid;
    ++alive;
    *out = new Matrix{type, rows, columns, leading};
    return success;
}
int cublasLtMatrixLayoutDestroy(void* matrix) { --alive; delete static_cast<Matrix*>(matrix); return success; }
int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    if (scale != f32) return invalid;
    ++alive;
    *out = new Operation{compute, {0, 0}};
    return success;
}
int cublasLtMatmulDescDestroy(void* operation) { --alive; delete static_cast<Operation*>(operation); return success; }
int cublasLtMatmulDescSetAttribute(void* operation, int attribute, const void* value, size_t bytes) {
    if (bytes != 4 || attribute < 3 || attribute > 4) return invalid;
    memcpy(&static_cast<Operation*>(operation)->transposed[attribute - 3], value, 4);
    return success;
}
int cublasLtMatmulPreferenceCreate(void** out) { ++alive; *out = new Preference{0, 7, {256, 256, 256, 256}}; return success; }
int cublasLtMatmulPreferenceDestroy(void* preference) { --alive; delete static_cast<Preference*>(preference); return success; }
int cublasLtMatmulPreferenceSetAttribute(void* out, int attribute, const void* value, size_t bytes) {
    auto preference = static_cast<Preference*>(out);
    if (attribute == 1 && bytes == 8) memcpy(&preference->workspace, value, 8);
    else if (attribute == 3 && bytes == 4) memcpy(&preference->reductions, value, 4);
    else if (attribute >= 5 && attribute <= 8 && bytes == 4) memcpy(&preference->alignment[attribute - 5], value, 4);
    else return invalid;
    return success;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void* operation, void* a, void*, void*, void* d, void* given, int room, Proposal* out, int* count) {
    ++asked;
    auto result = static_cast<Matrix*>(d);
    if (result->rows == refused_rows && result->columns == refused_columns) return unsupported;
    auto preference = static_cast<Preference*>(given);
    auto type = static_cast<Matrix*>(a)->type;
    // f32 operands: pedantic arithmetic, no tf32.
    if (static_cast<Operation*>(operation)->compute != (type == f32 ? 69 : 68)) return invalid;
    if (preference->reductions != 0 || preference->workspace != 32u << 20 || room < 7) return invalid;
    out[0] = Proposal{{4, {}}, 0, success, 1, {}};
    out[1] = Proposal{{1, {}}, 64u << 20, success, 1, {}};
    *count = 2;
    for (auto& algorithm : usable) out[(*count)++] = Proposal{algorithm, 1u << 20, success, 1, {}};
    return success;
}
int cublasLtMatmulAlgoCheck(void*, void*, void*, void*, void*, void*, const Algorithm* algorithm, Proposal* out) {
    if (algorithm->rest[0] != 42) return unsupported;
    *out = Proposal{{}, 1u << 20, success, 1, {}};
    return success;
}
int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value, size_t bytes, size_t* written) {
    if (attribute != 2 || bytes != 4) return invalid;
    int split = int(algorithm->split);
    memcpy(value, &split, 4);
    *written = 4;
    return success;
}
int cublasLtMatmul(void*, void* description, const float* alpha, const void* a, Matrix* a_matrix, const void* b, Matrix* b_matrix,
                   const float* beta, const void* c, Matrix*, void* d, Matrix* d_matrix, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
    auto operation = static_cast<Operation*>(description);
    auto allocated = [](const void* data, size_t bytes) { return double_inside(reinterpret_cast<uint64_t>(data), bytes); };
    if (c != d || algorithm->rest[0] != 42 || !allocated(workspace, workspace_bytes)) return invalid;
    if (!allocated(a, bytes_of(*a_matrix)) || !allocated(b, bytes_of(*b_matrix)) || !allocated(d, bytes_of(*d_matrix))) return invalid;
    if (int status = double_drain(stream)) return status;
    ++calls;
    last_milliseconds = algorithm->rest[1];
    double_advance(double(last_milliseconds));
    uint64_t depth = operation->transposed[0] ? a_matrix->rows : a_matrix->columns;
    uint64_t terms = algorithm->rest[2] == wrong && depth > 1 ? depth - 1 : depth;
    for (uint64_t column = 0; column < d_matrix->columns; ++column) {
        for (uint64_t row = 0; row < d_matrix->rows; ++row) {
            float sum = 0;
            for (uint64_t i = 0; i < terms; ++i) {
                uint64_t in_a = operation->transposed[0] ? i + row * a_matrix->leading : row + i * a_matrix->leading;
                uint64_t in_b = operation->transposed[1] ? column + i * b_matrix->leading : i + column * b_matrix->leading;
                sum += read(*a_matrix, a, in_a) * read(*b_matrix, b, in_b);
            }
            if (algorithm->rest[2] == unstable) sum *= 1 + 0.01f * float(calls % 2);
            uint64_t place = row + column * d_matrix->leading;
            write(*d_matrix, d, place, *alpha * sum + (*beta == 0 ? 0 : *beta * read(*d_matrix, d, place)));
        }
    }
    return success;
}
}
