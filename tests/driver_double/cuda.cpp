// A stand-in for libcuda.so.1: one device whose memory is the simulator's and whose kernels the simulator executes.
//
// It is stricter than a driver. Work is queued and done only when somebody waits, so memory that is reused or freed too
// early shows; every call needs a current context; every address must be allocated; and what is still alive can be
// counted. Calls that break a rule return CUDA's error for it.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

enum { success = 0, invalid_value = 1, out_of_memory = 2, not_initialized = 3, no_context = 201, no_binary = 209,
       invalid_handle = 400, not_found = 500, illegal_address = 700, not_while_capturing = 900 };

using Work = std::function<void()>;
struct Event { bool timed; double time; void* stream; };
struct Stream { std::vector<Work> queue; std::vector<Work>* capture = nullptr; };
struct Kernel { std::string name; std::vector<size_t> parameters; };
struct Launch { uint32_t grid[3]; uint32_t cluster[3]; uint32_t block; uint32_t shared; uint64_t seed; };

struct Callbacks {
    const char* (*launch)(const char*, const Launch*, void* const*, uint32_t);
    void* (*allocate)(size_t);
    void (*release)(void*, size_t);
} callbacks;
std::map<std::string, std::vector<size_t>> declared;

bool started = false;
thread_local void* current = nullptr;
int context_object;  // its address is the primary context
long retained = 0, objects = 0;
std::map<uint64_t, size_t> memory;
std::map<uint8_t*, size_t> pinned;
std::vector<Kernel*> functions;
Stream default_stream;
std::string failure;
double clock_now = 0;

Stream& stream_of(void* handle) { return handle ? *static_cast<Stream*>(handle) : default_stream; }
bool inside(uint64_t pointer, size_t bytes) {
    auto after = memory.upper_bound(pointer);
    if (after == memory.begin()) return false;
    auto& [start, size] = *std::prev(after);
    return pointer + bytes <= start + size;
}
int ready() { return !started ? not_initialized : !current ? no_context : success; }
int enqueue(void* stream, Work work) {
    Stream& target = stream_of(stream);
    (target.capture ? *target.capture : target.queue).push_back(std::move(work));
    return success;
}
int drain(void* stream) {
    Stream& target = stream_of(stream);
    if (target.capture) return not_while_capturing;
    std::vector<Work> queue;
    queue.swap(target.queue);
    for (auto& work : queue) work();
    return failure.empty() ? success : 719;
}

}  // namespace

#define BEGIN if (int problem = ready()) return problem
extern "C" {

// For the test.
void double_install(Callbacks given) { callbacks = given; }
void double_declare(const char* kernel, const size_t* bytes, size_t count) { declared[kernel].assign(bytes, bytes + count); }
long double_alive() { return retained + objects + long(memory.size() + pinned.size()); }
const char* double_failure() { return failure.c_str(); }
void double_new_thread() { current = nullptr; }
void* double_context() { return &context_object; }

int cuInit(unsigned) { started = true; return success; }
int cuDriverGetVersion(int* version) { *version = 13000; return success; }
int cuGetErrorName(int error, const char** text) {
    *text = error == out_of_memory ? "CUDA_ERROR_OUT_OF_MEMORY" : error == illegal_address ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return success;
}
int cuGetErrorString(int, const char** text) { *text = failure.empty() ? "the double refuses" : failure.c_str(); return success; }

int cuDeviceGetCount(int* count) { *count = 1; return started ? success : not_initialized; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal == 0 ? success : 101; }
int cuDeviceGetName(char* name, int length, int) { strncpy(name, "double", size_t(length)); return success; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = size_t(1) << 30; return success; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 4 : attribute == 97 ? 232448 : attribute == 115 ? 1 : -1;
    return *value < 0 ? invalid_value : success;
}
int cuDevicePrimaryCtxRetain(void** context, int) { ++retained; *context = &context_object; return success; }
int cuDevicePrimaryCtxRelease_v2(int) { --retained; return success; }
int cuCtxGetCurrent(void** context) { *context = current; return success; }
int cuCtxSetCurrent(void* context) { current = context; return success; }
int cuCtxPushCurrent_v2(void* context) { current = context; return success; }
int cuCtxPopCurrent_v2(void** context) { *context = current; current = nullptr; return success; }
int cuCtxGetDevice(int* device) { BEGIN; *device = 0; return success; }

int cuStreamCreate(void** stream, unsigned) { BEGIN; ++objects; *stream = new Stream; return success; }
int cuStreamDestroy_v2(void* stream) { BEGIN; drain(stream); --objects; delete static_cast<Stream*>(stream); return success; }
int cuStreamSynchronize(void* stream) { BEGIN; return drain(stream); }
int cuStreamGetCtx(void*, void** context) { BEGIN; *context = &context_object; return success; }
int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    BEGIN;
    void* other = static_cast<Event*>(event)->stream;
    return enqueue(stream, [=] { drain(other); });
}

int cuEventCreate(void** event, unsigned flags) {
    BEGIN;
    ++objects;
    *event = new Event{flags != 2, 0, nullptr};
    return success;
}
// Its memory stays: queued work may still record it, which is allowed.
int cuEventDestroy_v2(void*) { BEGIN; --objects; return success; }
int cuEventRecord(void* event, void* stream) {
    BEGIN;
    static_cast<Event*>(event)->stream = stream;
    return enqueue(stream, [=] { static_cast<Event*>(event)->time = ++clock_now; });
}
int cuEventSynchronize(void* event) {
    BEGIN;
    void* stream = static_cast<Event*>(event)->stream;
    return stream ? drain(stream) : success;
}
int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    BEGIN;
    auto from = static_cast<Event*>(start), to = static_cast<Event*>(end);
    if (!from->timed || !to->timed || to->time < from->time) return invalid_handle;
    *milliseconds = float(to->time - from->time);
    return success;
}

int cuDeviceGetDefaultMemPool(void** pool, int) { BEGIN; *pool = &memory; return success; }
int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    BEGIN;
    return pool == &memory && attribute == 4 && *static_cast<uint64_t*>(value) == UINT64_MAX ? success : invalid_value;
}
int cuMemPoolTrimTo(void* pool, size_t) { BEGIN; return pool == &memory ? success : invalid_value; }
int cuMemGetInfo_v2(size_t* available, size_t* total) { BEGIN; *available = 12345; *total = size_t(1) << 30; return success; }
int cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    BEGIN;
    if (bytes > size_t(1) << 30) return out_of_memory;
    *pointer = reinterpret_cast<uint64_t>(callbacks.allocate(bytes));
    memory[*pointer] = bytes;
    return success;
}
int cuMemAllocAsync(uint64_t* pointer, size_t bytes, void* stream) {
    if (stream_of(stream).capture) return not_while_capturing;
    return cuMemAlloc_v2(pointer, bytes);
}
int cuMemFreeAsync(uint64_t pointer, void* stream) {
    BEGIN;
    if (!memory.count(pointer)) return illegal_address;
    return enqueue(stream, [=] {
        callbacks.release(reinterpret_cast<void*>(pointer), memory[pointer]);
        memory.erase(pointer);
    });
}
int cuMemFree_v2(uint64_t pointer) { int status = cuMemFreeAsync(pointer, nullptr); return status ? status : drain(nullptr); }
int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    BEGIN;
    *pointer = malloc(bytes);
    memset(*pointer, 0xff, bytes);
    pinned[static_cast<uint8_t*>(*pointer)] = bytes;
    return success;
}
int cuMemFreeHost(void* pointer) {
    BEGIN;
    if (!pinned.erase(static_cast<uint8_t*>(pointer))) return invalid_value;
    free(pointer);
    return success;
}

// The host's side is read when the copy is done, not when it is asked for.
int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    BEGIN;
    if (!inside(to, bytes)) return illegal_address;
    return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    BEGIN;
    if (!inside(from, bytes)) return illegal_address;
    return enqueue(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    BEGIN;
    if (!inside(from, bytes) || !inside(to, bytes)) return illegal_address;
    return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    BEGIN;
    if (!inside(to, bytes)) return illegal_address;
    return enqueue(stream, [=] { memset(reinterpret_cast<void*>(to), value, bytes); });
}

int cuModuleLoadData(void** module, const void* image) {
    BEGIN;
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50 || reinterpret_cast<uintptr_t>(image) % 8) return no_binary;
    ++objects;
    *module = new char;
    return success;
}
int cuModuleUnload(void* module) { BEGIN; --objects; delete static_cast<char*>(module); return success; }
int cuModuleGetFunction(void** function, void*, const char* name) {
    BEGIN;
    auto known = declared.find(name);
    if (known == declared.end()) return not_found;
    *function = functions.emplace_back(new Kernel{known->first, known->second});
    return success;
}
int cuFuncSetAttribute(void*, int attribute, int value) { BEGIN; return attribute == 8 && value == 232448 ? success : invalid_value; }
int cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
    BEGIN;
    auto& parameters = static_cast<Kernel*>(function)->parameters;
    if (index >= parameters.size()) return invalid_value;
    *offset = 0;
    *bytes = parameters[index];
    return success;
}

struct Attribute { int id; char pad[4]; union { char bytes[64]; uint32_t cluster[3]; } value; };
struct Config { uint32_t grid[3], block[3], shared; void* stream; Attribute* attributes; uint32_t count; };
// Parameters are copied here and now, as a driver does.
int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void** extra) {
    BEGIN;
    if (extra || config->block[1] != 1 || config->block[2] != 1) return invalid_value;
    auto kernel = static_cast<Kernel*>(function);
    Launch launch{{config->grid[0], config->grid[1], config->grid[2]}, {1, 1, 1}, config->block[0], config->shared, 0};
    for (uint32_t i = 0; i < config->count; ++i) {
        if (config->attributes[i].id != 4) return invalid_value;
        memcpy(launch.cluster, config->attributes[i].value.cluster, sizeof launch.cluster);
    }
    std::vector<std::vector<char>> values;
    for (size_t i = 0; i < kernel->parameters.size(); ++i) {
        auto bytes = static_cast<char*>(parameters[i]);
        values.emplace_back(bytes, bytes + kernel->parameters[i]);
    }
    return enqueue(config->stream, [=]() {
        std::vector<void*> pointers;
        for (auto& value : values) pointers.push_back(const_cast<char*>(value.data()));
        const char* problem = callbacks.launch(kernel->name.c_str(), &launch, pointers.data(), uint32_t(pointers.size()));
        if (problem) failure = problem;
    });
}

int cuStreamBeginCapture_v2(void* stream, int) {
    BEGIN;
    if (!stream || stream_of(stream).capture) return not_while_capturing;
    stream_of(stream).capture = new std::vector<Work>;
    ++objects;
    return success;
}
int cuStreamEndCapture(void* stream, void** graph) {
    BEGIN;
    *graph = std::exchange(stream_of(stream).capture, nullptr);
    return *graph ? success : not_while_capturing;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    BEGIN;
    ++objects;
    *executable = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph));
    return success;
}
int cuGraphUpload(void*, void*) { BEGIN; return success; }
int cuGraphLaunch(void* executable, void* stream) {
    BEGIN;
    for (auto& work : *static_cast<std::vector<Work>*>(executable)) enqueue(stream, work);
    return success;
}
int cuGraphExecDestroy(void* executable) { BEGIN; --objects; delete static_cast<std::vector<Work>*>(executable); return success; }
int cuGraphDestroy(void* graph) { BEGIN; --objects; delete static_cast<std::vector<Work>*>(graph); return success; }

int cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* tile, const uint32_t* steps, int interleave, int swizzle, int, int fill) {
    if (reinterpret_cast<uintptr_t>(map) % 64 || type != 9 || rank != 2 || steps[0] != 1 || interleave || fill) return invalid_value;
    uint64_t seen[6] = {reinterpret_cast<uint64_t>(address), sizes[0], sizes[1], strides[0], tile[0] + (uint64_t(tile[1]) << 32),
                        uint64_t(swizzle)};
    memcpy(map, seen, sizeof seen);
    return success;
}

// For the double of cuBLASLt, which computes at once: everything before it is done first.
int double_drain(void* stream) { return drain(stream); }
void double_advance(double milliseconds) { clock_now += milliseconds; }
bool double_inside(uint64_t pointer, size_t bytes) { return inside(pointer, bytes); }
}
