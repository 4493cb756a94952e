// CUDA C++ for g++: unchanged .cu sources compile against this file and run on the CPU, their threads as fibers.
//
//     g++ -std=c++20 -fno-strict-aliasing -Wno-unknown-pragmas -include tests/cuda_shim/cuda_shim.h -Itests/cuda_shim
//     ...
//
// (nvcc lets one view shared memory as words and as bytes, and knows #pragma unroll.)
//
// A registration file includes the kernel's source and names its kernels:
//
//     #include "kernels/rans/cuda/kernels.cu"
//     CUDA_SHIM_KERNEL(rans_decode)
//
// Linked with cuda_shim.cpp, which has the scheduler and the CUDA driver API (cuLibraryGetKernel finds the registered
// kernels), that makes a program or a shared library that stands in for libcuda.so.1.
//
// What it holds a kernel to, beyond what a GPU would notice:
//
//  * A collective names its lanes, and all of them must arrive at the same collective with the same mask. A lane that
//    returned, or waits elsewhere, is a fault: the message names block, warp and lanes, and the line where each waits.
//  * Lanes and warps run in forward, reverse or random order (cuda_shim_schedule), so that most missing barriers change
//    the result: see cuda_shim::same_under_every_schedule.
//  * Compiled with -fsanitize=thread (the kernels' sources alone; linked without it, and not with AddressSanitizer),
//    every access of shared memory is watched: one that no barrier orders with another thread's is a fault, even where
//    the result comes out right.
//  * Dynamic shared memory is filled with a pattern of its own before each block; what lies past the launch's size is
//    poisoned for AddressSanitizer. Device memory is malloc'ed, so its bounds are checked too.
//
// What it does not do: blocks run one after the other, and a thread runs until its next collective, so a kernel that
// spins until another thread has written something never ends. Shared memory is `extern __shared__` of the one name
// below; a static `__shared__` does not compile. A thread's stack has 64 KB. Bounds of __launch_bounds__ are not
// checked. Streams are synchronous.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include <utility>

#define FASTCODEC_CUDA_SHIM 1

// ---------------------------------------------------------------------------------------------------------------------
// Qualifiers

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Right for `extern __shared__`, while g++ refuses a weak variable that is static or automatic ("weak declaration must
// be public"): a static one would keep its values from block to block, and hide reads of what was never written.
#define __shared__ __attribute__((weak))

// The one array of dynamic shared memory. Declare it at global scope or in an `extern "C"` function.
extern "C" unsigned char fastcodec_shared[];

// ---------------------------------------------------------------------------------------------------------------------
// Vector types, aligned as on the GPU: UBSan reports a misaligned access

#define CUDA_SHIM_VECTORS(name, type)                                                             \
    struct __align__(sizeof(type)) name##1 { type x; };                                           \
    struct __align__(2 * sizeof(type)) name##2 { type x, y; };                                    \
    struct __align__(sizeof(type)) name##3 { type x, y, z; };                                     \
    struct __align__(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
    constexpr name##1 make_##name##1(type x) { return {x}; }                                      \
    constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                           \
    constexpr name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                \
    constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

CUDA_SHIM_VECTORS(char, signed char)
CUDA_SHIM_VECTORS(uchar, unsigned char)
CUDA_SHIM_VECTORS(short, short)
CUDA_SHIM_VECTORS(ushort, unsigned short)
CUDA_SHIM_VECTORS(int, int)
CUDA_SHIM_VECTORS(uint, unsigned)
CUDA_SHIM_VECTORS(longlong, long long)
CUDA_SHIM_VECTORS(ulonglong, unsigned long long)
CUDA_SHIM_VECTORS(float, float)
CUDA_SHIM_VECTORS(double, double)
#undef CUDA_SHIM_VECTORS

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

// ---------------------------------------------------------------------------------------------------------------------
// The shim's own interface

extern "C" {
enum CudaShimOrder { kCudaShimForward = 0, kCudaShimReverse = 1, kCudaShimRandom = 2 };
// The order in which lanes, warps and blocks run from now on, and the seed of random order and of the poison.
void cuda_shim_schedule(int order, uint64_t seed);
// What went wrong in the latest launch; null if nothing did.
const char* cuda_shim_last_fault();
// Whether a fault prints its text and aborts (so it is at first) or makes cuLaunchKernel return LAUNCH_FAILED.
void cuda_shim_abort_on_fault(int yes);
// How often a thread gave way to another since the process began.
uint64_t cuda_shim_switches();
}

namespace cuda_shim {

// A function of the CUDA source, callable through the array of pointers to arguments that cuLaunchKernel takes.
struct Kernel {
    Kernel(const char* name, void (*invoke)(void* const* arguments));

    const char* name;
    void (*invoke)(void* const* arguments);
    int max_dynamic_shared = 48 << 10;  // raised by cuKernelSetAttribute
    Kernel* next;                       // of the list of all kernels
};

template <auto function, class Signature = std::remove_pointer_t<decltype(function)>>
struct Invoke;

template <auto function, class... Arguments>
struct Invoke<function, void(Arguments...)> {
    static void call(void* const* arguments) {
        [arguments]<size_t... i>(std::index_sequence<i...>) {
            function(*static_cast<const Arguments*>(arguments[i])...);
        }(std::index_sequence_for<Arguments...>());
    }
};

#define CUDA_SHIM_KERNEL(name) \
    static ::cuda_shim::Kernel cuda_shim_kernel_##name(#name, ::cuda_shim::Invoke<&name>::call);

// Ends the launch as cuda_shim_abort_on_fault says.
[[noreturn]] void fault(const char* text, std::source_location where);

// For faults found outside a launch: prints and aborts, or keeps the text for cuda_shim_last_fault.
void report(const char* text);

// Whether `run`, which must start from the same inputs each time, returns the same value under the forward, the reverse
// and `seeds` random schedules. A difference is reported as a fault: a barrier is missing, or memory is read that was
// not written. Leaves the forward schedule set.
template <class Run>
bool same_under_every_schedule(Run&& run, uint64_t seeds = 8) {
    cuda_shim_schedule(kCudaShimForward, 0);
    const auto expected = run();
    bool same = true;
    for (uint64_t i = 0; same && i <= seeds; ++i) {
        cuda_shim_schedule(i == 0 ? kCudaShimReverse : kCudaShimRandom, i);
        same = run() == expected;
    }
    cuda_shim_schedule(kCudaShimForward, 0);
    if (!same) {
        report("race: the result depends on the order in which threads run, or on memory that was not written");
    }
    return same;
}

// Whether races in shared memory are looked for: a source was compiled with -fsanitize=thread.
bool watches_shared_memory();

enum class Kind : uint32_t {
    kSyncwarp,
    kBallot,
    kAll,
    kAny,
    kShfl,
    kShflUp,
    kShflDown,
    kShflXor,
    kReduceAdd,
    kReduceMin,
    kReduceMax,
    kReduceMinSigned,
    kReduceMaxSigned,
    kReduceAnd,
    kReduceOr,
    kReduceXor,
    kMatchAny,
    kSyncthreads,
    kSyncthreadsOr,
    kSyncthreadsAnd,
    kSyncthreadsCount,
};

// Waits until all lanes of the mask are here; returns this lane's result. The parameter is that of a shuffle: its width
// << 8 | its lane, delta or lane mask.
uint64_t warp_collective(Kind kind, uint32_t mask, uint64_t operand, uint32_t parameter, std::source_location where);

// Waits until all threads of the block are here, except those that have returned.
int block_barrier(Kind kind, bool predicate, std::source_location where);

// What an atomic operation does first: in random order it lets other threads go before it, now and then.
void begin_atomic(const void* address, size_t bytes);

}  // namespace cuda_shim

// ---------------------------------------------------------------------------------------------------------------------
// Collectives. Each passes on the line it was called from, for the text of a fault.

#define CUDA_SHIM_WHERE std::source_location where = std::source_location::current()

inline void __syncthreads(CUDA_SHIM_WHERE) { cuda_shim::block_barrier(cuda_shim::Kind::kSyncthreads, false, where); }
inline int __syncthreads_or(int predicate, CUDA_SHIM_WHERE) {
    return cuda_shim::block_barrier(cuda_shim::Kind::kSyncthreadsOr, predicate != 0, where);
}
inline int __syncthreads_and(int predicate, CUDA_SHIM_WHERE) {
    return cuda_shim::block_barrier(cuda_shim::Kind::kSyncthreadsAnd, predicate != 0, where);
}
inline int __syncthreads_count(int predicate, CUDA_SHIM_WHERE) {
    return cuda_shim::block_barrier(cuda_shim::Kind::kSyncthreadsCount, predicate != 0, where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_SHIM_WHERE) {
    cuda_shim::warp_collective(cuda_shim::Kind::kSyncwarp, mask, 0, 0, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_SHIM_WHERE) {
    return static_cast<unsigned>(cuda_shim::warp_collective(cuda_shim::Kind::kBallot, mask, predicate != 0, 0, where));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_SHIM_WHERE) {
    return static_cast<int>(cuda_shim::warp_collective(cuda_shim::Kind::kAll, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_SHIM_WHERE) {
    return static_cast<int>(cuda_shim::warp_collective(cuda_shim::Kind::kAny, mask, predicate != 0, 0, where));
}
// Which lanes happen to run together is nothing to rely on.
unsigned __activemask() = delete;

namespace cuda_shim {

// What a value becomes as an argument of __shfl_sync: 4 or 8 bytes.
template <class T>
using Promoted = decltype(+std::declval<T>());

template <class T>
uint64_t bits_of(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
Promoted<T> shuffle(Kind kind, unsigned mask, T value, unsigned lane, int width, std::source_location where) {
    const Promoted<T> promoted = value;
    const uint32_t parameter = static_cast<uint32_t>(width) << 8 | (lane & 31);
    const uint64_t bits = warp_collective(kind, mask, bits_of(promoted), parameter, where);
    Promoted<T> result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
}

}  // namespace cuda_shim

template <class T>
auto __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, CUDA_SHIM_WHERE) {
    return cuda_shim::shuffle(cuda_shim::Kind::kShfl, mask, value, static_cast<unsigned>(lane), width, where);
}
template <class T>
auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_SHIM_WHERE) {
    return cuda_shim::shuffle(cuda_shim::Kind::kShflUp, mask, value, delta, width, where);
}
template <class T>
auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_SHIM_WHERE) {
    return cuda_shim::shuffle(cuda_shim::Kind::kShflDown, mask, value, delta, width, where);
}
template <class T>
auto __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize, CUDA_SHIM_WHERE) {
    return cuda_shim::shuffle(cuda_shim::Kind::kShflXor, mask, value, static_cast<unsigned>(lane_mask), width, where);
}

#define CUDA_SHIM_REDUCE(name, type, kind)                                                                    \
    inline type __reduce_##name##_sync(unsigned mask, type value, CUDA_SHIM_WHERE) {                          \
        return static_cast<type>(                                                                             \
            cuda_shim::warp_collective(cuda_shim::Kind::kind, mask, static_cast<uint32_t>(value), 0, where)); \
    }
CUDA_SHIM_REDUCE(add, unsigned, kReduceAdd)
CUDA_SHIM_REDUCE(add, int, kReduceAdd)
CUDA_SHIM_REDUCE(min, unsigned, kReduceMin)
CUDA_SHIM_REDUCE(min, int, kReduceMinSigned)
CUDA_SHIM_REDUCE(max, unsigned, kReduceMax)
CUDA_SHIM_REDUCE(max, int, kReduceMaxSigned)
CUDA_SHIM_REDUCE(and, unsigned, kReduceAnd)
CUDA_SHIM_REDUCE(or, unsigned, kReduceOr)
CUDA_SHIM_REDUCE(xor, unsigned, kReduceXor)
#undef CUDA_SHIM_REDUCE

template <class T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_SHIM_WHERE) {
    const cuda_shim::Promoted<T> promoted = value;
    return static_cast<unsigned>(
        cuda_shim::warp_collective(cuda_shim::Kind::kMatchAny, mask, cuda_shim::bits_of(promoted), 0, where));
}

// ---------------------------------------------------------------------------------------------------------------------
// Integer and bit intrinsics

template <class A, class B>
    requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr auto min(A a, B b) {
    using Common = std::common_type_t<A, B>;
    return static_cast<Common>(b) < static_cast<Common>(a) ? static_cast<Common>(b) : static_cast<Common>(a);
}
template <class A, class B>
    requires std::is_arithmetic_v<A> && std::is_arithmetic_v<B>
constexpr auto max(A a, B b) {
    using Common = std::common_type_t<A, B>;
    return static_cast<Common>(a) < static_cast<Common>(b) ? static_cast<Common>(b) : static_cast<Common>(a);
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    x = (x & 0x55555555u) << 1 | (x >> 1 & 0x55555555u);
    x = (x & 0x33333333u) << 2 | (x >> 2 & 0x33333333u);
    x = (x & 0x0f0f0f0fu) << 4 | (x >> 4 & 0x0f0f0f0fu);
    return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
           __brev(static_cast<unsigned>(x >> 32));
}

// Four of the eight bytes of y:x. A selector's high bit is not defined by CUDA (PTX repeats the sign there): a fault.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selectors, CUDA_SHIM_WHERE) {
    if (selectors & 0x8888) {
        cuda_shim::fault("__byte_perm: a selector has its high bit set", where);
    }
    const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
    unsigned result = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned selector = selectors >> (4 * i) & 7;
        result |= static_cast<unsigned>(bytes >> (8 * selector) & 0xff) << (8 * i);
    }
    return result;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

// The high word of high:low << shift, the low word of high:low >> shift; shift mod 32, or at most 32 with c (clamp).
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << min(shift, 32u) >> 32);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> min(shift, 32u));
}

// The dot product of four bytes, added to c modulo 2^32.
inline int __dp4a(int a, int b, int c) {
    unsigned sum = static_cast<unsigned>(c);
    for (int shift = 0; shift < 32; shift += 8) {
        sum += static_cast<unsigned>(static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift));
    }
    return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int shift = 0; shift < 32; shift += 8) {
        c += (a >> shift & 0xff) * (b >> shift & 0xff);
    }
    return c;
}

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }

[[noreturn]] inline void __trap(CUDA_SHIM_WHERE) { cuda_shim::fault("__trap", where); }

// ---------------------------------------------------------------------------------------------------------------------
// Memory. Fences order nothing here that is not ordered already: one thread runs at a time.

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

#define CUDA_SHIM_LOAD(name)   \
    template <class T>         \
    T name(const T* address) { \
        return *address;       \
    }
CUDA_SHIM_LOAD(__ldg)
CUDA_SHIM_LOAD(__ldca)
CUDA_SHIM_LOAD(__ldcg)
CUDA_SHIM_LOAD(__ldcs)
CUDA_SHIM_LOAD(__ldcv)
CUDA_SHIM_LOAD(__ldlu)
#undef CUDA_SHIM_LOAD

#define CUDA_SHIM_STORE(name)                              \
    template <class T>                                     \
    void name(T* address, std::type_identity_t<T> value) { \
        *address = value;                                  \
    }
CUDA_SHIM_STORE(__stwb)
CUDA_SHIM_STORE(__stcg)
CUDA_SHIM_STORE(__stcs)
CUDA_SHIM_STORE(__stwt)
#undef CUDA_SHIM_STORE

// Overloads and no templates: as in CUDA, there is none for uint64_t, which is unsigned long on Linux.
#define CUDA_SHIM_ATOMIC(name, type, expression)                                         \
    __attribute__((no_sanitize("thread"))) inline type name(type* address, type value) { \
        cuda_shim::begin_atomic(address, sizeof(*address));                              \
        const type old = *address;                                                       \
        *address = static_cast<type>(expression);                                        \
        return old;                                                                      \
    }
#define CUDA_SHIM_ATOMICS(type)                                                                                     \
    CUDA_SHIM_ATOMIC(atomicAdd, type,                                                                               \
                     static_cast<std::make_unsigned_t<type>>(old) + static_cast<std::make_unsigned_t<type>>(value)) \
    CUDA_SHIM_ATOMIC(atomicMin, type, min(old, value))                                                              \
    CUDA_SHIM_ATOMIC(atomicMax, type, max(old, value))                                                              \
    CUDA_SHIM_ATOMIC(atomicAnd, type, old& value)                                                                   \
    CUDA_SHIM_ATOMIC(atomicOr, type, old | value)                                                                   \
    CUDA_SHIM_ATOMIC(atomicXor, type, old ^ value)                                                                  \
    CUDA_SHIM_ATOMIC(atomicExch, type, value)                                                                       \
    __attribute__((no_sanitize("thread"))) inline type atomicCAS(type* address, type compare, type value) {         \
        cuda_shim::begin_atomic(address, sizeof(*address));                                                         \
        const type old = *address;                                                                                  \
        *address = old == compare ? value : old;                                                                    \
        return old;                                                                                                 \
    }
CUDA_SHIM_ATOMICS(int)
CUDA_SHIM_ATOMICS(unsigned)
CUDA_SHIM_ATOMICS(unsigned long long)
CUDA_SHIM_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
CUDA_SHIM_ATOMIC(atomicSub, unsigned, old - value)
#undef CUDA_SHIM_ATOMICS
#undef CUDA_SHIM_ATOMIC
#undef CUDA_SHIM_WHERE
