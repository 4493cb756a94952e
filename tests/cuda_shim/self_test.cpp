// Tests of the host shim: kernels with a planted fault, each of which must be caught, beside a correct twin that must
// pass under every schedule; and correct kernels against plain references.
//
//     self_test                 the correct kernels; prints what passed and how fast threads switch
//     self_test list            the names of the planted faults that this build must catch
//     self_test planted NAME    aborts, by the shim or by a sanitizer
//     self_test correct NAME    the twin

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern __shared__ __align__(16) unsigned char fastcodec_shared[];

// The driver API of cuda_shim.cpp, as far as it is used here.
extern "C" {
int cuInit(unsigned);
int cuDriverGetVersion(int*);
int cuDeviceGetCount(int*);
int cuDeviceGet(int*, int);
int cuDeviceGetName(char*, int, int);
int cuDeviceGetAttribute(int*, int, int);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxGetCurrent(void**);
int cuCtxSetCurrent(void*);
int cuCtxGetDevice(int*);
int cuCtxSynchronize();
int cuStreamSynchronize(void*);
int cuLibraryLoadData(void**, const void*, int*, void**, unsigned, int*, void**, unsigned);
int cuLibraryUnload(void*);
int cuLibraryGetKernel(void**, void*, const char*);
int cuKernelSetAttribute(int, int, void*, int);
int cuKernelGetAttribute(int*, int, void*, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuMemAlloc_v2(unsigned long long*, size_t);
int cuMemFree_v2(unsigned long long);
int cuMemcpyHtoDAsync_v2(unsigned long long, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, unsigned long long, size_t, void*);
int cuGetErrorName(int, const char**);
int cuGetErrorString(int, const char**);
}

namespace {

constexpr int kInvalidValue = 1;
constexpr int kInvalidContext = 201;
constexpr int kNotFound = 500;
constexpr int kLaunchFailed = 719;
constexpr int kMaxDynamicShared = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr uint32_t kFullWarp = 0xffffffff;

// A well mixed word, on both sides.
__device__ __host__ __forceinline__ uint32_t hash(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Kernels with a fault, unless `correct`

struct Case {
    uint32_t* data;
    uint32_t size;
    bool correct;
};

extern "C" __global__ void shared_out_of_bounds(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = threadIdx.x;
    __syncthreads();
    a.data[threadIdx.x] = words[threadIdx.x + !a.correct];
}

extern "C" __global__ void global_out_of_bounds(const __grid_constant__ Case a) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.size + !a.correct) {
        a.data[i] = i;
    }
}

extern "C" __global__ void misaligned_load(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = threadIdx.x;
    __syncthreads();
    a.data[threadIdx.x] = reinterpret_cast<const uint2*>(words + (threadIdx.x & ~1u) + !a.correct)->x;
}

extern "C" __global__ void uninitialised_shared(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    if (a.correct || blockIdx.x == 0) {  // the next block finds what the first one left, if nobody intervenes
        words[threadIdx.x] = threadIdx.x;
    }
    __syncthreads();
    a.data[blockIdx.x * blockDim.x + threadIdx.x] = words[threadIdx.x];
}

// Read after write: what another warp writes.
extern "C" __global__ void missing_syncthreads(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = hash(threadIdx.x);
    if (a.correct) {
        __syncthreads();
    }
    a.data[threadIdx.x] = words[blockDim.x - 1 - threadIdx.x];
}

// Write after read: forward order hides it.
extern "C" __global__ void missing_second_syncthreads(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = hash(threadIdx.x);
    for (uint32_t round = 0; round < 4; ++round) {
        __syncthreads();
        const uint32_t next = words[(threadIdx.x + 1) % blockDim.x];
        if (a.correct) {
            __syncthreads();
        }
        words[threadIdx.x] = next;
    }
    a.data[threadIdx.x] = words[threadIdx.x];
}

extern "C" __global__ void missing_syncwarp(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = hash(threadIdx.x);
    if (a.correct) {
        __syncwarp();
    }
    a.data[threadIdx.x] = words[threadIdx.x ^ 1];
}

// Groups of 8 lanes that wait for themselves but read from the next group.
extern "C" __global__ void syncwarp_of_too_few(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = hash(threadIdx.x);
    __syncwarp(a.correct ? kFullWarp : 0xffu << (threadIdx.x & ~7u));
    a.data[threadIdx.x] = words[(threadIdx.x + 8) % 32];
}

// A vote brings lanes together in time, here and on a GPU, but orders no memory.
extern "C" __global__ void ballot_for_syncwarp(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = hash(threadIdx.x);
    const uint32_t votes = __ballot_sync(kFullWarp, threadIdx.x & 1);
    if (a.correct) {
        __syncwarp();
    }
    a.data[threadIdx.x] = words[threadIdx.x ^ 1] + votes;
}

// All threads write the same value: no schedule changes the result.
extern "C" __global__ void same_value_twice(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    if (!a.correct || threadIdx.x == 0) {
        words[0] = a.size;
    }
    __syncthreads();
    a.data[threadIdx.x] = words[0];
}

extern "C" __global__ void read_beside_atomics(const __grid_constant__ Case a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    words[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&words[threadIdx.x % 2], 1u);
    if (a.correct) {
        __syncthreads();
    }
    a.data[threadIdx.x] = words[0];
}

extern "C" __global__ void divergent_ballot(const __grid_constant__ Case a) {
    if (!a.correct && threadIdx.x >= 40 && threadIdx.x < 48) {
        return;
    }
    a.data[threadIdx.x] = __ballot_sync(kFullWarp, threadIdx.x & 1);
}

extern "C" __global__ void ballot_in_one_branch(const __grid_constant__ Case a) {
    uint32_t votes = 0;
    if (a.correct || threadIdx.x % 32 < 16) {
        votes = __ballot_sync(kFullWarp, threadIdx.x & 1);
    }
    a.data[threadIdx.x] = votes + __shfl_sync(kFullWarp, threadIdx.x, 5);
}

// Groups of 8 lanes; the planted one names the next group.
extern "C" __global__ void ballot_without_self(const __grid_constant__ Case a) {
    const uint32_t first = threadIdx.x % 32 & ~7u;
    const uint32_t mask = 0xffu << (a.correct ? first : (first + 8) % 32);
    a.data[threadIdx.x] = __ballot_sync(mask, threadIdx.x & 1);
}

extern "C" __global__ void ballot_masks_differ(const __grid_constant__ Case a) {
    const uint32_t mask = a.correct || threadIdx.x % 32 < 8 ? kFullWarp : kFullWarp << 8;
    a.data[threadIdx.x] = __ballot_sync(mask, threadIdx.x & 1);
}

extern "C" __global__ void syncthreads_against_syncwarp(const __grid_constant__ Case a) {
    if (a.correct || threadIdx.x < 80) {
        __syncthreads();
    }
    if (a.correct || threadIdx.x >= 80) {
        __syncwarp();
    }
    a.data[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void barriers_of_two_kinds(const __grid_constant__ Case a) {
    if (a.correct || threadIdx.x < 64) {
        __syncthreads();
    } else {
        __syncthreads_count(1);
    }
    a.data[threadIdx.x] = threadIdx.x;
}

extern "C" __global__ void shuffle_width(const __grid_constant__ Case a) {
    a.data[threadIdx.x] = __shfl_down_sync(kFullWarp, threadIdx.x, 1, a.correct ? 8 : 12);
}

extern "C" __global__ void trapped(const __grid_constant__ Case a) {
    if (!a.correct && threadIdx.x == 70) {
        __trap();
    }
    a.data[threadIdx.x] = threadIdx.x;
}

CUDA_SHIM_KERNEL(shared_out_of_bounds)
CUDA_SHIM_KERNEL(global_out_of_bounds)
CUDA_SHIM_KERNEL(misaligned_load)
CUDA_SHIM_KERNEL(uninitialised_shared)
CUDA_SHIM_KERNEL(missing_syncthreads)
CUDA_SHIM_KERNEL(missing_second_syncthreads)
CUDA_SHIM_KERNEL(missing_syncwarp)
CUDA_SHIM_KERNEL(syncwarp_of_too_few)
CUDA_SHIM_KERNEL(ballot_for_syncwarp)
CUDA_SHIM_KERNEL(same_value_twice)
CUDA_SHIM_KERNEL(read_beside_atomics)
CUDA_SHIM_KERNEL(divergent_ballot)
CUDA_SHIM_KERNEL(ballot_in_one_branch)
CUDA_SHIM_KERNEL(ballot_without_self)
CUDA_SHIM_KERNEL(ballot_masks_differ)
CUDA_SHIM_KERNEL(syncthreads_against_syncwarp)
CUDA_SHIM_KERNEL(barriers_of_two_kinds)
CUDA_SHIM_KERNEL(shuffle_width)
CUDA_SHIM_KERNEL(trapped)

// ---------------------------------------------------------------------------------------------------------------------
// Correct kernels

struct Output {
    uint32_t* out;
    uint32_t rounds;
};

constexpr uint32_t kWarpOperations = 20;

// Every warp collective, by groups of 1, 2, ..., 32 lanes in turn: out [rounds, lanes, operations].
extern "C" __global__ void every_warp_collective(const Output a) {
    const uint32_t lane = threadIdx.x;
    for (uint32_t round = 0; round < a.rounds; ++round) {
        const uint32_t size = 1u << (round % 6);
        const uint32_t mask = (kFullWarp >> (32 - size)) << (lane & ~(size - 1));
        const int width = 1 << (round / 6 % 6);
        const uint32_t mine = hash(round * 32 + lane);
        const int offset = static_cast<int>(hash(round) & 31);
        const uint64_t wide = static_cast<uint64_t>(mine) << 32 | lane;
        uint32_t* out = a.out + (round * 32 + lane) * kWarpOperations;
        *out++ = __ballot_sync(mask, mine & 2);
        *out++ = static_cast<uint32_t>(__all_sync(mask, mine & 7));
        *out++ = static_cast<uint32_t>(__any_sync(mask, !(mine & 7)));
        *out++ = __shfl_sync(mask, mine, static_cast<int>(mine >> 8) & 31);
        *out++ = __shfl_sync(mask, mine, offset + 32, width);
        *out++ = __shfl_up_sync(mask, mine, static_cast<unsigned>(offset), width);
        *out++ = __shfl_down_sync(mask, mine, static_cast<unsigned>(offset), width);
        *out++ = __shfl_xor_sync(mask, mine, offset, width);
        *out++ = static_cast<uint32_t>(__shfl_sync(mask, wide, offset) >> 32);
        *out++ = __float_as_uint(__shfl_sync(mask, static_cast<float>(lane), offset));
        *out++ = __reduce_add_sync(mask, mine);
        *out++ = __reduce_min_sync(mask, mine);
        *out++ = __reduce_max_sync(mask, mine);
        *out++ = static_cast<uint32_t>(__reduce_min_sync(mask, static_cast<int>(mine)));
        *out++ = static_cast<uint32_t>(__reduce_max_sync(mask, static_cast<int>(mine)));
        *out++ = __reduce_and_sync(mask, mine | 0x10);
        *out++ = __reduce_or_sync(mask, mine & 0x77);
        *out++ = __reduce_xor_sync(mask, mine);
        *out++ = __match_any_sync(mask, mine & 3);
        *out++ = __match_any_sync(mask, wide & 0x100000001u);
    }
}

// Groups of 8 lanes go through different numbers of votes, shuffles and exchanges: out [threads].
extern "C" __global__ void groups_apart(const Output a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    const uint32_t group = threadIdx.x / 8;
    const uint32_t mask = 0xffu << (threadIdx.x % 32 & ~7u);
    uint32_t sum = 0;
    for (uint32_t round = 0; round < 1 + group * 7 % 5 * a.rounds; ++round) {
        sum = sum * 31 + (__ballot_sync(mask, hash(round ^ threadIdx.x) & 1) & mask);
        if (group & 1) {
            sum += __shfl_xor_sync(mask, sum, 3, 8);
        }
        words[threadIdx.x] = sum;
        __syncwarp(mask);
        sum += words[threadIdx.x ^ 5];
        __syncwarp(mask);
    }
    __syncwarp();
    a.out[blockIdx.x * blockDim.x + threadIdx.x] = __reduce_add_sync(kFullWarp, sum) + sum;
}

struct Scan {
    const uint32_t* in;
    uint32_t* out;
    uint32_t* totals;  // [blocks]
    uint32_t size;
};

// Each block's inclusive prefix sums and its total.
extern "C" __global__ void __launch_bounds__(256)
block_scan(const __grid_constant__ Scan a) {
    uint32_t* const sums = reinterpret_cast<uint32_t*>(fastcodec_shared);  // of the warps
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t warp = threadIdx.x / 32;
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = i < a.size ? __ldg(a.in + i) : 0;
#pragma unroll
    for (unsigned by = 1; by < 32; by *= 2) {
        const uint32_t below = __shfl_up_sync(kFullWarp, sum, by);
        sum += lane >= by ? below : 0;
    }
    if (lane == 31) {
        sums[warp] = sum;
    }
    __syncthreads();
    for (uint32_t w = 0; w < warp; ++w) {
        sum += sums[w];
    }
    if (i < a.size) {
        __stcs(a.out + i, sum);
    }
    if (threadIdx.x == blockDim.x - 1) {
        a.totals[blockIdx.x] = sum;
    }
}

// A histogram by way of shared memory, and what the other atomics come to: out [16 counts, max, min, or, and, sum].
extern "C" __global__ void atomics(const Output a, unsigned long long* total) {
    uint32_t* const counts = reinterpret_cast<uint32_t*>(fastcodec_shared);
    if (threadIdx.x < 16) {
        counts[threadIdx.x] = 0;
    }
    __syncthreads();
    const uint32_t value = hash(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&counts[value & 15], 1u);
    __syncthreads();
    if (threadIdx.x < 16) {
        atomicAdd(&a.out[threadIdx.x], counts[threadIdx.x]);
    }
    atomicMax(&a.out[16], value);
    atomicMin(&a.out[17], value);
    atomicOr(&a.out[18], value & value << 1 & value << 2);
    atomicAnd(&a.out[19], value | value << 1 | value << 2);
    atomicAdd(reinterpret_cast<int*>(&a.out[20]), static_cast<int>(value));
    atomicAdd(total, static_cast<unsigned long long>(value));
    __threadfence();
    uint32_t old = a.out[21];
    for (uint32_t seen = old + 1; seen != old;) {
        seen = old;
        old = atomicCAS(&a.out[21], seen, seen + value % 3);
    }
}

// Threads leave before the first barrier, between two, and after: out [threads].
extern "C" __global__ void early_exits(const Output a) {
    uint32_t* const out = a.out + blockIdx.x * blockDim.x + threadIdx.x;
    *out = 1;
    if (threadIdx.x % 3 == 0) {
        return;
    }
    const int left = __syncthreads_count(1);
    *out = static_cast<uint32_t>(left);
    if (threadIdx.x >= 32) {
        return;
    }
    const int any = __syncthreads_or(threadIdx.x == 7);
    const int none = __syncthreads_or(threadIdx.x == 33);
    const int all = __syncthreads_and(threadIdx.x < 32);
    const int some = __syncthreads_and(threadIdx.x < 31);
    *out = static_cast<uint32_t>(left) << 8 | static_cast<uint32_t>(any << 3 | none << 2 | all << 1 | some);
}

// Reverses as many words as its dynamic shared memory holds.
extern "C" __global__ void reverse_words(const Output a) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(fastcodec_shared);
    for (uint32_t i = threadIdx.x; i < a.rounds; i += blockDim.x) {
        words[i] = hash(i);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.rounds; i += blockDim.x) {
        a.out[i] = words[a.rounds - 1 - i];
    }
}

// out [blocks, threads]: a number made of all indices.
extern "C" __global__ void indices(const Output a) {
    const uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    __syncthreads();
    a.out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        ((blockIdx.z * 10 + blockIdx.y) * 10 + blockIdx.x) * 1000 + (threadIdx.z * 10 + threadIdx.y) * 10 + threadIdx.x;
}

// What a shuffle costs, and nothing else.
extern "C" __global__ void __launch_bounds__(256)
switching(const Output a) {
    uint32_t x = threadIdx.x;
    for (uint32_t round = 0; round < a.rounds; ++round) {
        x += __shfl_xor_sync(kFullWarp, x, 1);
    }
    a.out[threadIdx.x] = x;
}

CUDA_SHIM_KERNEL(every_warp_collective)
CUDA_SHIM_KERNEL(groups_apart)
CUDA_SHIM_KERNEL(block_scan)
CUDA_SHIM_KERNEL(atomics)
CUDA_SHIM_KERNEL(early_exits)
CUDA_SHIM_KERNEL(reverse_words)
CUDA_SHIM_KERNEL(indices)
CUDA_SHIM_KERNEL(switching)

// ---------------------------------------------------------------------------------------------------------------------
// Host side

namespace {

// `assert` with a message that names the line, and in every build.
void check(bool good, std::source_location where = std::source_location::current()) {
    if (!good) {
        std::printf("%s:%u: check failed\n", where.file_name(), static_cast<unsigned>(where.line()));
        std::_Exit(1);
    }
}

void* library;

void* kernel(const char* name) {
    void* found = nullptr;
    check(cuLibraryGetKernel(&found, library, name) == 0);
    return found;
}

template <class... Arguments>
int try_launch(const char* name, dim3 grid, dim3 block, unsigned shared, Arguments... arguments) {
    void* pointers[] = {&arguments...};
    return cuLaunchKernel(kernel(name), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, nullptr, pointers,
                          nullptr);
}

template <class... Arguments>
void launch(const char* name, dim3 grid, dim3 block, unsigned shared, Arguments... arguments) {
    check(try_launch(name, grid, block, shared, arguments...) == 0);
}

// Words in device memory, of exactly that size.
class Words {
   public:
    explicit Words(std::vector<uint32_t> values) : size_(values.size()) {
        check(cuMemAlloc_v2(&address_, size_ * sizeof(uint32_t)) == 0);
        check(cuMemcpyHtoDAsync_v2(address_, values.data(), size_ * sizeof(uint32_t), nullptr) == 0);
    }
    explicit Words(size_t size) : Words(std::vector<uint32_t>(size, 0xdeadbeef)) {}
    Words(const Words&) = delete;
    Words& operator=(const Words&) = delete;
    ~Words() { cuMemFree_v2(address_); }
    uint32_t* data() const { return reinterpret_cast<uint32_t*>(address_); }
    std::vector<uint32_t> read() const {
        std::vector<uint32_t> values(size_);
        check(cuMemcpyDtoHAsync_v2(values.data(), address_, size_ * sizeof(uint32_t), nullptr) == 0);
        return values;
    }

   private:
    unsigned long long address_ = 0;
    size_t size_;
};

// ---------------------------------------------------------------------------------------------------------------------
// Planted faults

// What catches a fault, beside the shim itself: AddressSanitizer and UBSan, or the watch over shared memory that a
// build with -fsanitize=thread has.
enum Catcher { kShim, kSanitizers, kWatch };

struct Fault {
    const char* kernel;
    unsigned blocks;
    unsigned threads;
    Catcher catcher;
};
constexpr Fault kFaults[] = {
    {"shared_out_of_bounds", 1, 96, kSanitizers},
    {"global_out_of_bounds", 2, 64, kSanitizers},
    {"misaligned_load", 1, 64, kSanitizers},
    {"shared_out_of_bounds", 1, 96, kWatch},
    {"uninitialised_shared", 3, 64, kShim},
    {"missing_syncthreads", 1, 128, kShim},
    {"missing_second_syncthreads", 1, 128, kShim},
    {"missing_syncwarp", 1, 32, kShim},
    {"syncwarp_of_too_few", 1, 32, kShim},
    {"ballot_for_syncwarp", 1, 32, kWatch},
    {"same_value_twice", 1, 64, kWatch},
    {"read_beside_atomics", 1, 64, kShim},
    {"divergent_ballot", 1, 96, kShim},
    {"ballot_in_one_branch", 1, 32, kShim},
    {"ballot_without_self", 1, 64, kShim},
    {"ballot_masks_differ", 1, 64, kShim},
    {"syncthreads_against_syncwarp", 1, 96, kShim},
    {"barriers_of_two_kinds", 1, 96, kShim},
    {"shuffle_width", 1, 32, kShim},
    {"trapped", 1, 96, kShim},
};

bool caught_by_this_build(const Fault& fault) {
#if defined(__SANITIZE_ADDRESS__)
    return fault.catcher != kWatch;
#else
    return fault.catcher == kShim || (fault.catcher == kWatch && cuda_shim::watches_shared_memory());
#endif
}

int run_fault(const Fault& fault, bool correct) {
    const uint32_t threads = fault.blocks * fault.threads;
    // The kernel that checks its index against the size gets a memory that ends within the last block.
    const uint32_t size = std::strcmp(fault.kernel, "global_out_of_bounds") == 0 ? threads - 10 : threads;
    const bool same = cuda_shim::same_under_every_schedule([&] {
        const Words words(size);
        launch(fault.kernel, {fault.blocks}, {fault.threads}, fault.threads * 4, Case{words.data(), size, correct});
        return words.read();
    });
    check(same);
    std::printf("%s: no fault\n", fault.kernel);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------------
// References, in the words of the CUDA C++ Programming Guide and of PTX

uint32_t reference_shuffle(const std::vector<uint32_t>& values, uint32_t lane, uint32_t mask, char how, int by,
                           int width) {
    const int segment = static_cast<int>(lane) / width;
    const int id = static_cast<int>(lane) % width;
    int source = static_cast<int>(lane);
    if (how == 'i') {
        source = segment * width + by % width;
    } else if (how == 'u' && id - by >= 0) {
        source -= by;
    } else if (how == 'd' && id + by < width) {
        source += by;
    } else if (how == 'x' && (source ^ by) / width <= segment) {
        source ^= by;
    }
    // What lanes outside the mask have is undefined: marked, and then not compared.
    return mask >> source & 1 ? values[static_cast<size_t>(source)] : 0xbadbad00;
}

void test_warp_collectives() {
    constexpr uint32_t kRounds = 72;
    std::vector<uint32_t> expected(kRounds * 32 * kWarpOperations);
    for (uint32_t round = 0; round < kRounds; ++round) {
        std::vector<uint32_t> values(32);
        std::vector<uint32_t> floats(32);
        for (uint32_t lane = 0; lane < 32; ++lane) {
            values[lane] = hash(round * 32 + lane);
            floats[lane] = std::bit_cast<uint32_t>(static_cast<float>(lane));
        }
        const int width = 1 << (round / 6 % 6);
        const int by = static_cast<int>(hash(round) % 32);
        for (uint32_t lane = 0; lane < 32; ++lane) {
            const uint32_t size = 1u << (round % 6);
            const uint32_t begin = lane / size * size;
            uint32_t mask = 0, votes = 0, sum = 0, all_and = kFullWarp, all_or = 0, all_xor = 0, equal = 0,
                     same_wide = 0;
            bool all = true, any = false;
            std::vector<uint32_t> group(values.begin() + begin, values.begin() + begin + size);
            for (uint32_t other = begin; other < begin + size; ++other) {
                const uint32_t value = values[other];
                mask |= 1u << other;
                votes |= (value / 2 % 2) << other;
                all = all && value % 8 != 0;
                any = any || value % 8 == 0;
                sum += value;
                all_and &= value | 0x10;
                all_or |= value & 0x77;
                all_xor ^= value;
                equal |= (value % 4 == values[lane] % 4 ? 1u : 0u) << other;
                const bool wide_equal = value % 2 == values[lane] % 2 && other % 2 == lane % 2;
                same_wide |= (wide_equal ? 1u : 0u) << other;
            }
            const auto less = [](uint32_t a, uint32_t b) { return static_cast<int>(a) < static_cast<int>(b); };
            const auto shuffled = [&](char how, int offset, int w) {
                return reference_shuffle(values, lane, mask, how, offset, w);
            };
            const uint32_t results[kWarpOperations] = {
                votes,
                all,
                any,
                shuffled('i', static_cast<int>(values[lane] >> 8) & 31, 32),
                shuffled('i', by + 32, width),
                shuffled('u', by, width),
                shuffled('d', by, width),
                shuffled('x', by, width),
                shuffled('i', by, 32),
                reference_shuffle(floats, lane, mask, 'i', by, 32),
                sum,
                *std::min_element(group.begin(), group.end()),
                *std::max_element(group.begin(), group.end()),
                *std::min_element(group.begin(), group.end(), less),
                *std::max_element(group.begin(), group.end(), less),
                all_and,
                all_or,
                all_xor,
                equal,
                same_wide,
            };
            std::copy_n(results, kWarpOperations, &expected[(round * 32 + lane) * kWarpOperations]);
        }
    }
    const auto run = [&] {
        const Words out(expected.size());
        launch("every_warp_collective", {1}, {32}, 0, Output{out.data(), kRounds});
        std::vector<uint32_t> got = out.read();
        for (size_t i = 0; i < got.size(); ++i) {
            if (expected[i] == 0xbadbad00) {
                got[i] = expected[i];
            }
        }
        return got;
    };
    check(run() == expected);
    check(cuda_shim::same_under_every_schedule(run));
}

void test_integer_intrinsics() {
    const auto bit = [](uint64_t x, int i) { return static_cast<uint32_t>(x >> i & 1); };
    for (uint32_t i = 0; i < 2000; ++i) {
        // Words of few bits too, and the ends of the range.
        const uint32_t a = i < 3 ? i - 1 : hash(i) >> (hash(i + 7777) & 31);
        const uint32_t b = i < 9 ? i / 3 - 1 : hash(i + 99999) << (i & 31);
        const uint64_t wide = static_cast<uint64_t>(b) << 32 | a;
        uint32_t count = 0, reversed = 0;
        uint32_t count_wide = 0;
        uint64_t reversed_wide = 0;
        int leading = 32, leading_wide = 64, lowest = 0;
        for (int j = 0; j < 64; ++j) {
            count_wide += bit(wide, j);
            reversed_wide |= static_cast<uint64_t>(bit(wide, j)) << (63 - j);
            leading_wide = bit(wide, j) ? 63 - j : leading_wide;
            if (j < 32) {
                count += bit(a, j);
                reversed |= bit(a, j) << (31 - j);
                leading = bit(a, j) ? 31 - j : leading;
                lowest = lowest == 0 && bit(a, j) ? j + 1 : lowest;
            }
        }
        check(__popc(a) == static_cast<int>(count) && __popcll(wide) == static_cast<int>(count_wide));
        check(__clz(static_cast<int>(a)) == leading && __clzll(static_cast<long long>(wide)) == leading_wide);
        check(__ffs(static_cast<int>(a)) == lowest && __brev(a) == reversed && __brevll(wide) == reversed_wide);
        check(__umulhi(a, b) == static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32));
        check(__mulhi(static_cast<int>(a), static_cast<int>(b)) ==
              static_cast<int>(static_cast<int64_t>(static_cast<int>(a)) * static_cast<int>(b) >> 32));
        // The high half by schoolbook multiplication.
        const uint64_t other = static_cast<uint64_t>(hash(a)) << 32 | hash(b);
        const uint64_t low = (wide & kFullWarp) * (other & kFullWarp);
        const uint64_t middle = (wide >> 32) * (other & kFullWarp) + (low >> 32);
        const uint64_t middle_2 = (wide & kFullWarp) * (other >> 32) + (middle & kFullWarp);
        check(__umul64hi(wide, other) == (wide >> 32) * (other >> 32) + (middle >> 32) + (middle_2 >> 32));
        const uint32_t selectors = hash(i + 5) & 0x7777;
        const uint32_t bytes = __byte_perm(a, b, selectors);
        uint32_t dot = b, dot_signed = b;
        for (int j = 0; j < 4; ++j) {
            const uint32_t from = selectors >> (4 * j) & 7;
            check((bytes >> (8 * j) & 255) == ((from < 4 ? a >> (8 * from) : b >> (8 * (from - 4))) & 255));
            const uint32_t x = a >> (8 * j) & 255, y = hash(a) >> (8 * j) & 255;
            dot += x * y;
            dot_signed += (x - (x >= 128 ? 256 : 0)) * (y - (y >= 128 ? 256 : 0));
        }
        check(__dp4a(a, hash(a), b) == dot);
        check(static_cast<uint32_t>(__dp4a(static_cast<int>(a), static_cast<int>(hash(a)), static_cast<int>(b))) ==
              dot_signed);
        const uint32_t shift = hash(i + 3) % 80;
        const auto funnel = [&](bool left, uint32_t by) {
            uint32_t result = 0;
            for (uint32_t j = 0; j < 32; ++j) {
                result |= bit(wide, static_cast<int>(left ? 32 + j - by : j + by)) << j;
            }
            return result;
        };
        check(__funnelshift_l(a, b, shift) == funnel(true, shift % 32));
        check(__funnelshift_r(a, b, shift) == funnel(false, shift % 32));
        check(__funnelshift_lc(a, b, shift) == funnel(true, std::min(shift, 32u)));
        check(__funnelshift_rc(a, b, shift) == funnel(false, std::min(shift, 32u)));
    }
    check(min(-1, 3) == -1 && max(2u, 5u) == 5 && min(-1, 3u) == 3 && max(1.5f, 1.0f) == 1.5f);
    const uint4 vector = make_uint4(1, 2, 3, 4);
    check(vector.x == 1 && vector.w == 4 && alignof(uint4) == 16 && alignof(uint2) == 8 && alignof(ushort2) == 4);
}

// Rounding to a grid of 16-bit floats, given by a function that decodes one: of a value and its neighbours' middle.
template <class Encode>
void check_rounding(Encode encode, int mantissa_bits, int least_exponent) {
    const auto decode = [&](uint32_t x) {
        const uint32_t exponent = x >> mantissa_bits;
        const uint32_t mantissa = x & ((1u << mantissa_bits) - 1);
        const double whole = exponent == 0 ? mantissa : mantissa + (1u << mantissa_bits);
        return std::ldexp(whole, static_cast<int>(exponent == 0 ? 1 : exponent) + least_exponent - 1 - mantissa_bits);
    };
    const uint32_t infinity = ((1u << (15 - mantissa_bits)) - 1) << mantissa_bits;
    for (uint32_t x = 0; x < infinity; ++x) {
        const double here = decode(x);
        const double middle = (here + decode(x + 1)) / 2;
        const float half_way = static_cast<float>(middle);
        const uint32_t even = x & 1 ? x + 1 : x;
        check(encode(static_cast<float>(here)) == x && encode(static_cast<float>(-here)) == (x | 0x8000));
        if (static_cast<double>(half_way) == middle) {
            check(encode(half_way) == even && encode(-half_way) == (even | 0x8000));
        }
        check(encode(std::nextafter(half_way, 0.0f)) == x);
        check(encode(std::nextafter(half_way, HUGE_VALF)) == x + 1);
    }
    check(encode(HUGE_VALF) == infinity && encode(-HUGE_VALF) == (infinity | 0x8000) && encode(NAN) == 0x7fff);
}

void test_conversions() {
    check_rounding([](float x) { return uint32_t{__half_as_ushort(__float2half_rn(x))}; }, 10, -14);
    check_rounding([](float x) { return uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }, 7, -126);
}

void test_groups_apart() {
    std::vector<uint32_t> expected(3 * 96);
    for (uint32_t group = 0; group < 12; ++group) {
        std::vector<uint32_t> sums(8), before(8);
        for (uint32_t round = 0; round < 1 + group * 7 % 5 * 5; ++round) {
            uint32_t votes = 0;
            for (uint32_t i = 0; i < 8; ++i) {
                votes |= (hash(round ^ (group * 8 + i)) & 1) << (group % 4 * 8 + i);
            }
            for (uint32_t& sum : sums) {
                sum = sum * 31 + votes;
            }
            for (const uint32_t partner : {3u, 5u}) {
                before = sums;
                for (uint32_t i = 0; i < 8; ++i) {
                    sums[i] += partner == 5 || group % 2 ? before[i ^ partner] : 0;
                }
            }
        }
        std::copy(sums.begin(), sums.end(), &expected[group * 8]);
    }
    for (uint32_t warp = 0; warp < 3; ++warp) {
        uint32_t* const sums = &expected[warp * 32];
        const uint32_t total = std::accumulate(sums, sums + 32, 0u);
        std::for_each(sums, sums + 32, [&](uint32_t& sum) { sum += total; });
    }
    std::copy_n(&expected[0], 96, &expected[96]);
    std::copy_n(&expected[0], 96, &expected[192]);
    check(cuda_shim::same_under_every_schedule([&] {
        const Words out(3 * 96);
        launch("groups_apart", {3}, {96}, 96 * 4, Output{out.data(), 5});
        check(out.read() == expected);
        return out.read();
    }));
}

void test_block_scan() {
    constexpr uint32_t kSize = 256 * 40 - 100;
    std::vector<uint32_t> values(kSize), expected(kSize), totals(40);
    for (uint32_t i = 0; i < kSize; ++i) {
        values[i] = hash(i);
        totals[i / 256] += values[i];
        expected[i] = totals[i / 256];
    }
    const Words in(values);
    check(cuda_shim::same_under_every_schedule([&] {
        const Words out(kSize), sums(40);
        launch("block_scan", {40}, {256}, 8 * 4, Scan{in.data(), out.data(), sums.data(), kSize});
        check(out.read() == expected && sums.read() == totals);
        return out.read();
    }));
}

void test_atomics() {
    constexpr uint32_t kThreads = 20 * 128;
    std::vector<uint32_t> expected(22);
    expected[17] = kFullWarp;
    expected[19] = kFullWarp;
    unsigned long long expected_total = 0;
    for (uint32_t i = 0; i < kThreads; ++i) {
        const uint32_t value = hash(i);
        ++expected[value % 16];
        expected[16] = std::max(expected[16], value);
        expected[17] = std::min(expected[17], value);
        expected[18] |= value & value << 1 & value << 2;
        expected[19] &= value | value << 1 | value << 2;
        expected[20] += value;
        expected[21] += value % 3;
        expected_total += value;
    }
    check(cuda_shim::same_under_every_schedule([&] {
        std::vector<uint32_t> initial(22);
        initial[17] = kFullWarp;
        initial[19] = kFullWarp;
        const Words out(initial), total(std::vector<uint32_t>{0, 0});
        launch("atomics", {20}, {128}, 64, Output{out.data(), 0}, reinterpret_cast<unsigned long long*>(total.data()));
        check(out.read() == expected);
        check(total.read()[0] == static_cast<uint32_t>(expected_total) && total.read()[1] == expected_total >> 32);
        return out.read();
    }));
}

void test_early_exits() {
    constexpr uint32_t kThreads = 100;  // the last warp is not full
    std::vector<uint32_t> expected(2 * kThreads);
    for (uint32_t i = 0; i < 2 * kThreads; ++i) {
        const uint32_t thread = i % kThreads;
        expected[i] = thread % 3 == 0 ? 1 : thread >= 32 ? 66 : 66 << 8 | 1 << 3 | 0 << 2 | 1 << 1 | 0;
    }
    check(cuda_shim::same_under_every_schedule([&] {
        const Words out(2 * kThreads);
        launch("early_exits", {2}, {kThreads}, 0, Output{out.data(), 0});
        check(out.read() == expected);
        return out.read();
    }));
}

void test_large_shared() {
    constexpr uint32_t kBytes = 232448;
    const Words out(kBytes / 4);
    const Output arguments{out.data(), kBytes / 4};
    void* const reversing = kernel("reverse_words");
    int allowed = 0;
    check(cuKernelGetAttribute(&allowed, kMaxDynamicShared, reversing, 0) == 0 && allowed == 48 << 10);
    check(try_launch("reverse_words", {1}, {128}, (48 << 10) + 4, arguments) == kInvalidValue);
    check(try_launch("reverse_words", {1}, {128}, 48 << 10, Output{out.data(), 12 << 10}) == 0);
    check(cuKernelSetAttribute(kMaxDynamicShared, kBytes + 1, reversing, 0) == kInvalidValue);
    check(cuKernelSetAttribute(kMaxDynamicShared, kBytes, reversing, 0) == 0);
    launch("reverse_words", {2}, {1024}, kBytes, arguments);
    const std::vector<uint32_t> words = out.read();
    for (uint32_t i = 0; i < kBytes / 4; ++i) {
        check(words[i] == hash(kBytes / 4 - 1 - i));
    }
}

void test_indices() {
    std::vector<uint32_t> expected;
    for (uint32_t block = 0; block < 2 * 3 * 4; ++block) {
        for (uint32_t thread = 0; thread < 5 * 6 * 7; ++thread) {
            const uint32_t b = block / 6 * 100 + block / 2 % 3 * 10 + block % 2;
            expected.push_back(b * 1000 + thread / 30 * 100 + thread / 5 % 6 * 10 + thread % 5);
        }
    }
    check(cuda_shim::same_under_every_schedule([&] {
        const Words out(expected.size());
        launch("indices", {2, 3, 4}, {5, 6, 7}, 0, Output{out.data(), 0});
        check(out.read() == expected);
        return out.read();
    }));
}

void test_faults_end_launches() {
    cuda_shim_abort_on_fault(0);
    const Words out(96);
    for (uint32_t i = 0; i < 60; ++i) {
        cuda_shim_schedule(static_cast<int>(i % 3), i);
        check(try_launch("divergent_ballot", {1}, {96}, 0, Case{out.data(), 96, false}) == kLaunchFailed);
        const std::string fault = cuda_shim_last_fault();
        check(fault.find("kernel divergent_ballot, block (0, 0, 0), warp 1") != std::string::npos);
        check(fault.find("lanes 0-7, 16-31: at __ballot_sync, mask 0xffffffff (self_test.cpp:") != std::string::npos);
        check(fault.find("lanes 8-15: returned") != std::string::npos);
        check(try_launch("ballot_without_self", {1}, {96}, 0, Case{out.data(), 96, false}) == kLaunchFailed);
        check(std::string(cuda_shim_last_fault()).rfind("wrong mask: ", 0) == 0);
        check(try_launch("barriers_of_two_kinds", {1}, {96}, 0, Case{out.data(), 96, false}) == kLaunchFailed);
        check(try_launch("divergent_ballot", {1}, {96}, 0, Case{out.data(), 96, true}) == 0);
        check(cuda_shim_last_fault() == nullptr);
    }
    // Where shared memory is watched, the launches themselves fail, all alike.
    const bool same = cuda_shim::same_under_every_schedule([&] {
        const int result = try_launch("missing_syncthreads", {1}, {96}, 96 * 4, Case{out.data(), 96, false});
        return result == 0 ? out.read() : std::vector<uint32_t>();
    });
    check(same == cuda_shim::watches_shared_memory());
    check(std::string(cuda_shim_last_fault()).rfind("race: ", 0) == 0);
    cuda_shim_abort_on_fault(1);
    cuda_shim_schedule(kCudaShimForward, 0);
}

void test_driver() {
    int value = 0;
    void* pointer = nullptr;
    const char* text = nullptr;
    char name[32];
    check(cuDriverGetVersion(&value) == 0 && value == 13000);
    check(cuDeviceGetCount(&value) == 0 && value == 1);
    check(cuDeviceGet(&value, 0) == 0 && value == 0 && cuDeviceGet(&value, 1) != 0);
    check(cuDeviceGetName(name, sizeof(name), 0) == 0 && std::strcmp(name, "host shim") == 0);
    const int attributes[][2] = {{10, 32}, {16, 4}, {39, 2048}, {75, 9}, {76, 0}, {81, 233472}, {97, 232448}};
    for (const auto& [attribute, expected] : attributes) {
        check(cuDeviceGetAttribute(&value, attribute, 0) == 0 && value == expected);
    }
    check(cuDeviceGetAttribute(&value, 9999, 0) == kInvalidValue);
    check(cuLibraryGetKernel(&pointer, library, "no_such_kernel") == kNotFound);
    check(cuGetErrorName(kNotFound, &text) == 0 && std::strcmp(text, "CUDA_ERROR_NOT_FOUND") == 0);
    check(cuGetErrorString(kInvalidValue, &text) == 0 && std::strcmp(text, "invalid argument") == 0);
    check(cuGetErrorName(12345, &text) == kInvalidValue && text == nullptr);
    check(cuCtxGetCurrent(&pointer) == 0 && pointer != nullptr && cuCtxGetDevice(&value) == 0 && value == 0);
    check(cuCtxSynchronize() == 0 && cuStreamSynchronize(nullptr) == 0);
    const Words out(1024);
    const Output arguments{out.data(), 0};
    check(try_launch("switching", {1}, {1025}, 0, arguments) == kInvalidValue);
    check(try_launch("switching", {1}, {1, 1, 65}, 0, arguments) == kInvalidValue);
    check(try_launch("switching", {1}, {32, 33}, 0, arguments) == kInvalidValue);
    check(try_launch("switching", {0}, {32}, 0, arguments) == kInvalidValue);
    check(try_launch("switching", {1, 65536}, {32}, 0, arguments) == kInvalidValue);
    check(try_launch("switching", {1}, {1024}, 0, arguments) == 0);
    check(cuCtxSetCurrent(nullptr) == 0);
    check(try_launch("switching", {1}, {32}, 0, arguments) == kInvalidContext);
    check(cuCtxSetCurrent(pointer) == 0);
}

void measure_switching() {
    const Words out(256);
    const uint64_t before = cuda_shim_switches();
    const auto begin = std::chrono::steady_clock::now();
    launch("switching", {1}, {256}, 0, Output{out.data(), 10000});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    const double millions = static_cast<double>(cuda_shim_switches() - before) * 1e-6;
    std::printf("%.1f million switches, %.1f million a second\n", millions, millions / seconds.count());
}

struct Test {
    const char* name;
    void (*run)();
};
constexpr Test kTests[] = {
    {"integer intrinsics", test_integer_intrinsics},
    {"conversions", test_conversions},
    {"driver API", test_driver},
    {"indices", test_indices},
    {"warp collectives", test_warp_collectives},
    {"groups at different times", test_groups_apart},
    {"block scan", test_block_scan},
    {"atomics", test_atomics},
    {"early exits", test_early_exits},
    {"large shared memory", test_large_shared},
    {"faults end launches", test_faults_end_launches},
};

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    const std::string mode = argc > 1 ? argv[1] : "";
    void* context = nullptr;
    check(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
    check(cuLibraryLoadData(&library, "image", nullptr, nullptr, 0, nullptr, nullptr, 0) == 0);
    if (mode == "list") {
        for (const Fault& fault : kFaults) {
            if (caught_by_this_build(fault)) {
                std::printf("%s\n", fault.kernel);
            }
        }
    } else if (argc > 2) {
        for (const Fault& fault : kFaults) {
            if (std::strcmp(fault.kernel, argv[2]) == 0) {
                return run_fault(fault, mode == "correct");
            }
        }
        return 2;
    } else {
        for (const Test& test : kTests) {
            test.run();
            std::printf("passed: %s\n", test.name);
        }
        measure_switching();
    }
    check(cuLibraryUnload(library) == 0);
    return 0;
}
