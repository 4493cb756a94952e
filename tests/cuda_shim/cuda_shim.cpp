// The machine behind cuda_shim.h: fibers, the scheduler that runs a block's threads on them, collectives, and a CUDA
// driver API of one device.
//
// A thread runs until it blocks, then switches straight to the next one, so a collective of a whole warp costs 32
// switches and no detour. Everything here is shared by all OS threads and guarded by one lock, held for a launch.

#include "cuda_shim.h"

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#error "-fsanitize=thread is for the kernels' sources alone: this file takes libtsan's place"
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(CUDA_SHIM_UCONTEXT)
#define CUDA_SHIM_UCONTEXT 1
#endif
#if defined(CUDA_SHIM_UCONTEXT)
#include <ucontext.h>
#endif

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace {

constexpr size_t kMaxDynamicShared = 232448;  // of a block, after opting in: that of compute capability 9.0
constexpr unsigned kWarpLanes = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxWarps = kMaxThreads / kWarpLanes;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // room for a sanitizer's report; pages that are never touched cost nothing
#else
constexpr size_t kStackBytes = 64 << 10;
#endif
constexpr size_t kGuardBytes = 4096 * 4;  // a whole page on every machine of today

}  // namespace

extern "C" {
alignas(1024) unsigned char fastcodec_shared[kMaxDynamicShared];
}

namespace cuda_shim {
namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Fibers

// A stack, and where on it its owner left off.
struct Context {
#if defined(CUDA_SHIM_UCONTEXT)
    ucontext_t place;
#else
    void* place;
#endif
    const void* bottom;
    size_t bytes;
    void* fake_stack;  // AddressSanitizer's, of which it keeps one for each stack
};

#if !defined(CUDA_SHIM_UCONTEXT)
extern "C" void cuda_shim_switch(void** leave, void* enter);
// Leaves behind, on the old stack, what a function must preserve, and takes it from the new one. The return addresses
// of all fibers are alike, so `ret` is predicted well. MXCSR and the x87 control word are the same everywhere.
asm(R"(
    .pushsection .text
    .p2align 4
    .globl cuda_shim_switch
    .hidden cuda_shim_switch
    .type cuda_shim_switch, @function
cuda_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_shim_switch, . - cuda_shim_switch
    .popsection
)");
#endif

struct Fiber {
    Context context;
    uint3 thread;
    uint32_t warp;
    uint32_t lane;
};

// ---------------------------------------------------------------------------------------------------------------------
// The running launch

// Lanes as bits. A lane that is in none of the three has returned, or there is no such thread.
struct Warp {
    uint32_t runnable;             // the one that runs included
    uint32_t waiting;              // at a warp collective
    uint32_t at_barrier;           // of the block
    uint64_t request[kWarpLanes];  // what the lane waits at: mask << 32 | kind
    uint64_t operand[kWarpLanes];
    uint64_t result[kWarpLanes];
    uint32_t parameter[kWarpLanes];
    std::source_location where[kWarpLanes];
};

struct Block {
    uint32_t alive;    // threads that have not returned
    uint32_t arrived;  // at the barrier
    uint32_t agreed;   // those of them that give a true predicate
    bool mixed;        // they wait at barriers of more than one kind
    Kind kind;
    int result;      // of the latest barrier
    uint32_t ready;  // warps with runnable lanes, as bits
    uint32_t epoch;  // barriers and blocks so far
    uint64_t poison;
};

Fiber fibers[kMaxThreads];
Warp warps[kMaxWarps];
Block block;
Context launcher;
Fiber* current;  // null outside a launch
uint32_t fibers_made;
unsigned char* stacks;

const Kernel* running;
void* const* running_arguments;
uint32_t running_threads;
size_t running_shared;

std::mutex launch_lock;
int order = kCudaShimForward;
uint64_t schedule_seed;
uint64_t launches;  // since the schedule was set
uint64_t random_state;
bool abort_on_fault = true;
bool faulted;
std::string last_fault;
uint64_t switches;
Kernel* kernels;

template <class Function>
void for_lanes(uint32_t mask, Function function) {
    for (; mask != 0; mask &= mask - 1) {
        function(static_cast<uint32_t>(std::countr_zero(mask)));
    }
}

uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t random_bits() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(random_state >> 33);
}

// One of the set bits, as the schedule has it.
uint32_t choose(uint32_t bits) {
    if (order == kCudaShimForward) {
        return static_cast<uint32_t>(std::countr_zero(bits));
    }
    if (order == kCudaShimReverse) {
        return 31u - static_cast<uint32_t>(std::countl_zero(bits));
    }
    const uint32_t rotation = random_bits() & 31;
    return (static_cast<uint32_t>(std::countr_zero(std::rotr(bits, static_cast<int>(rotation)))) + rotation) & 31;
}

// ---------------------------------------------------------------------------------------------------------------------
// Switching

void finish_switch(Context& self) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(self.fake_stack, &bottom, &bytes);
    if (launcher.bottom == nullptr) {  // the first switch of a launch comes from there
        launcher.bottom = bottom;
        launcher.bytes = bytes;
    }
#else
    (void)self;
#endif
}

void switch_stack(Context& from, Context& to) {
    ++switches;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(CUDA_SHIM_UCONTEXT)
    swapcontext(&from.place, &to.place);
#else
    cuda_shim_switch(&from.place, to.place);
#endif
    finish_switch(from);
}

std::string describe_stuck_warp(uint32_t warp);
std::string describe_barriers();
[[noreturn]] void stop(std::string text);

// The thread to run next: of the same warp while that can go on, so that warps are changed only where they must be
// (and now and then in random order). Null when all threads of the block have returned.
Fiber* next_thread() {
    uint32_t warp = current->warp;
    if (warps[warp].runnable == 0) {
        // Only its own lanes could complete a warp's collective, and the block's barrier waits for all of them.
        if (warps[warp].waiting != 0) {
            stop(describe_stuck_warp(warp));
        }
        block.ready &= ~(1u << warp);
        if (block.ready == 0) {
            if (block.alive != 0) {
                stop(describe_barriers());
            }
            return nullptr;
        }
        warp = choose(block.ready);
    } else if (order == kCudaShimRandom && (random_bits() & 7) == 0) {
        warp = choose(block.ready);
    }
    return &fibers[warp * kWarpLanes + choose(warps[warp].runnable)];
}

void run_others() {
    Fiber* const self = current;
    Fiber* const next = next_thread();
    if (next == self) {
        return;
    }
    if (next == nullptr) {
        switch_stack(self->context, launcher);
        return;
    }
    current = next;
    threadIdx = next->thread;
    switch_stack(self->context, next->context);
}

// Lets go all threads that wait at the block's barrier, once those that have not returned are all there.
void release_barrier_if_complete() {
    if (block.arrived != block.alive || block.arrived == 0 || block.mixed) {
        return;
    }
    switch (block.kind) {
        case Kind::kSyncthreadsCount: block.result = static_cast<int>(block.agreed); break;
        case Kind::kSyncthreadsAnd: block.result = block.agreed == block.arrived; break;
        default: block.result = block.agreed != 0; break;
    }
    block.arrived = 0;
    block.agreed = 0;
    ++block.epoch;
    for (uint32_t w = 0; w * kWarpLanes < running_threads; ++w) {
        warps[w].runnable |= warps[w].at_barrier;
        warps[w].at_barrier = 0;
        block.ready |= static_cast<uint32_t>(warps[w].runnable != 0) << w;
    }
}

// A fiber is never done: it waits to run the same thread of the next block.
[[noreturn]] void fiber_main() {
    finish_switch(current->context);
    for (;;) {
        running->invoke(running_arguments);
        warps[current->warp].runnable &= ~(1u << current->lane);
        --block.alive;
        release_barrier_if_complete();
        run_others();
    }
}

unsigned char* stack_of(uint32_t fiber) { return stacks + fiber * (kStackBytes + kGuardBytes) + kGuardBytes; }

void start_fiber(uint32_t index) {
    Context& context = fibers[index].context;
    unsigned char* const bottom = stack_of(index);
    // Where the stacks begin is staggered, or the same frame of every lane would fall into the same cache set.
    const size_t bytes = kStackBytes - index % kWarpLanes * 128;
    context.bottom = bottom;
    context.bytes = bytes;
    context.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(bottom, kStackBytes);  // what an abandoned thread left
#endif
#if defined(CUDA_SHIM_UCONTEXT)
    getcontext(&context.place);
    context.place.uc_stack.ss_sp = bottom;
    context.place.uc_stack.ss_size = bytes;
    context.place.uc_link = nullptr;
    makecontext(&context.place, fiber_main, 0);
#else
    // As if fiber_main had been called from nowhere: six registers, its address, and 0 for its return address.
    void** const frame = reinterpret_cast<void**>(bottom + bytes) - 8;
    std::fill(frame, frame + 8, nullptr);
    frame[6] = reinterpret_cast<void*>(&fiber_main);
    context.place = frame;
#endif
}

bool make_fibers(uint32_t count) {
    if (stacks == nullptr) {
        void* const memory = mmap(nullptr, kMaxThreads * (kStackBytes + kGuardBytes), PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED) {
            return false;
        }
        stacks = static_cast<unsigned char*>(memory);
    }
    for (; fibers_made < count; ++fibers_made) {
        if (mprotect(stack_of(fibers_made), kStackBytes, PROT_READ | PROT_WRITE) != 0) {
            return false;
        }
        fibers[fibers_made].warp = fibers_made / kWarpLanes;
        fibers[fibers_made].lane = fibers_made % kWarpLanes;
        start_fiber(fibers_made);
    }
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults

const char* name_of(Kind kind) {
    static const char* const names[] = {
        "__syncwarp",
        "__ballot_sync",
        "__all_sync",
        "__any_sync",
        "__shfl_sync",
        "__shfl_up_sync",
        "__shfl_down_sync",
        "__shfl_xor_sync",
        "__reduce_add_sync",
        "__reduce_min_sync",
        "__reduce_max_sync",
        "__reduce_min_sync (int)",
        "__reduce_max_sync (int)",
        "__reduce_and_sync",
        "__reduce_or_sync",
        "__reduce_xor_sync",
        "__match_any_sync",
        "__syncthreads",
        "__syncthreads_or",
        "__syncthreads_and",
        "__syncthreads_count",
    };
    return names[static_cast<uint32_t>(kind)];
}

std::string hexadecimal(uint32_t value) {
    char text[16];
    std::snprintf(text, sizeof(text), "0x%08x", value);
    return text;
}

std::string line_of(std::source_location where) {
    const std::string file = where.file_name();
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

std::string lanes_text(uint32_t lanes) {
    std::string text = std::popcount(lanes) == 1 ? "lane " : "lanes ";
    for (uint32_t lane = 0; lane < kWarpLanes; ++lane) {
        if (!(lanes >> lane & 1)) {
            continue;
        }
        const uint32_t run = static_cast<uint32_t>(std::countr_one(lanes >> lane));
        text += text.back() == ' ' ? "" : ", ";
        text += std::to_string(lane);
        if (run > 1) {
            text += "-" + std::to_string(lane + run - 1);
        }
        lane += run;
    }
    return text;
}

// One line for each group of lanes in the same place.
std::string describe_lanes(uint32_t index) {
    const Warp& warp = warps[index];
    std::vector<std::pair<std::string, uint32_t>> places;
    for (uint32_t lane = 0; lane < std::min(kWarpLanes, running_threads - index * kWarpLanes); ++lane) {
        const uint32_t bit = 1u << lane;
        const std::string name = name_of(static_cast<Kind>(static_cast<uint32_t>(warp.request[lane])));
        const std::string line = " (" + line_of(warp.where[lane]) + ")";
        std::string place = "returned";
        if (warp.waiting & bit) {
            place = "at " + name + ", mask " + hexadecimal(static_cast<uint32_t>(warp.request[lane] >> 32)) + line;
        } else if (warp.at_barrier & bit) {
            place = "at " + name + line;
        } else if (warp.runnable & bit) {
            place = "can go on";
        }
        const auto same = [&](const auto& p) { return p.first == place; };
        const auto found = std::find_if(places.begin(), places.end(), same);
        if (found == places.end()) {
            places.emplace_back(place, bit);
        } else {
            found->second |= bit;
        }
    }
    std::string text;
    for (const auto& [place, lanes] : places) {
        text += "\n  warp " + std::to_string(index) + ", " + lanes_text(lanes) + ": " + place;
    }
    return text;
}

std::string describe_place() {
    const auto triple = [](auto v) {
        return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
    };
    return "kernel " + std::string(running->name) + ", block " + triple(blockIdx);
}

std::string describe_self() {
    if (current == nullptr) {
        return "outside a kernel";
    }
    return describe_place() + ", warp " + std::to_string(current->warp) + ", lane " + std::to_string(current->lane);
}

std::string describe_stuck_warp(uint32_t warp) {
    return "deadlock: " + describe_place() + ", warp " + std::to_string(warp) +
           ": lanes wait for lanes that returned or wait elsewhere" + describe_lanes(warp);
}

std::string describe_barriers() {
    std::string text = "deadlock: " + describe_place() + ": threads wait at different barriers";
    for (uint32_t warp = 0; warp * kWarpLanes < running_threads; ++warp) {
        text += describe_lanes(warp);
    }
    return text;
}

std::string describe_wrong_mask(Kind kind, uint32_t mask, std::source_location where) {
    return "wrong mask: " + describe_self() + " calls " + name_of(kind) + " with mask " + hexadecimal(mask) +
           ", which does not name it (" + line_of(where) + ")";
}

std::string describe_wrong_width(Kind kind, uint32_t width, std::source_location where) {
    return "wrong width: " + describe_self() + " calls " + name_of(kind) + " with width " + std::to_string(width) +
           " (" + line_of(where) + ")";
}

std::string describe_fault(const char* text, std::source_location where) {
    return std::string(text) + ": " + describe_self() + " (" + line_of(where) + ")";
}

// Ends the launch. The thread's stack is abandoned as it is, so nothing on it may own memory by then: callers pass what
// a function returns, and have no strings of their own.
void stop(std::string text) {
    if (abort_on_fault || current == nullptr) {
        std::fprintf(stderr, "cuda_shim: %s\n", text.c_str());
        std::abort();
    }
    last_fault = text;
    std::string().swap(text);
    faulted = true;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, launcher.bottom, launcher.bytes);
#endif
#if defined(CUDA_SHIM_UCONTEXT)
    setcontext(&launcher.place);
#else
    cuda_shim_switch(&current->context.place, launcher.place);
#endif
    std::abort();
}

void need_thread(Kind kind, std::source_location where) {
    if (current == nullptr) {
        stop(describe_fault(name_of(kind), where));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Races in shared memory, for kernels compiled with -fsanitize=thread but linked without: the calls that g++ puts
// before each access then come here, with no libtsan. Two accesses of a byte by different threads, one of them a write,
// need a block's barrier or a __syncwarp between them. Votes and shuffles order no memory, says CUDA, and so do none
// here.
//
// What is ordered is told by two clocks. The block's epoch counts its barriers: whatever is of an earlier epoch came
// before. Within an epoch only lanes of one warp can be ordered: the warp's time counts its __syncwarps, and each lane
// knows up to which time it has seen the others' accesses (FastTrack, Flanagan and Freund 2009, with one scalar for all
// lanes that read a byte at about the same time).

enum class Use { kRead, kWrite, kAtomic };

// The latest write of a byte, and its reads since.
struct Cell {
    uint32_t write_epoch;
    uint32_t write_time;
    uint32_t writer;  // thread of the block
    uint32_t read_epoch;
    uint32_t read_time;
    uint32_t read_lanes;
    uint32_t read_warp;
    bool write_is_atomic;
    bool several_warps_read;
    const void* write_at;  // code addresses
    const void* read_at;
};

struct WarpClock {
    uint32_t now = 1;
    uint32_t seen[kWarpLanes][kWarpLanes];  // [lane][other]: the time up to which the other's accesses came before
};

bool watching;
Cell cells[kMaxDynamicShared];
WarpClock clocks[kMaxWarps];

// After a __syncwarp: each of its lanes has seen what any of them has seen or done.
void join_clocks(uint32_t warp, uint32_t mask) {
    WarpClock& clock = clocks[warp];
    uint32_t joined[kWarpLanes] = {};
    for_lanes(mask, [&](uint32_t lane) {
        std::transform(joined, joined + kWarpLanes, clock.seen[lane], joined, max<uint32_t, uint32_t>);
    });
    for_lanes(mask, [&](uint32_t lane) { joined[lane] = clock.now; });
    for_lanes(mask, [&](uint32_t lane) { std::copy_n(joined, kWarpLanes, clock.seen[lane]); });
    ++clock.now;
}

bool came_before(uint32_t warp, uint32_t lanes, uint32_t epoch, uint32_t time) {
    if (epoch != block.epoch) {
        return true;
    }
    bool before = warp == current->warp;
    if (before) {
        const uint32_t* const seen = clocks[warp].seen[current->lane];
        for_lanes(lanes & ~(1u << current->lane), [&](uint32_t lane) { before = before && seen[lane] >= time; });
    }
    return before;
}

// The source line of a code address; of a shim's inline function, that of its caller.
std::string line_of(const void* code) {
    Dl_info module;
    if (dladdr(code, &module) == 0) {
        return "?";
    }
    char offset[32];
    const char* const before = static_cast<const char*>(code) - 1;  // within the call
    std::snprintf(offset, sizeof(offset), "%#tx", before - static_cast<const char*>(module.dli_fbase));
    std::string found = std::string(module.dli_fname) + "+" + offset;
    const std::string command = "addr2line -s -i -e '" + std::string(module.dli_fname) + "' " + offset + " 2>/dev/null";
    if (FILE* const lines = popen(command.c_str(), "r")) {
        char line[512];
        while (std::fgets(line, sizeof(line), lines) != nullptr) {
            const std::string text(line, std::strcspn(line, " \n"));
            if (text.rfind("??", 0) != 0 && text.rfind("cuda_shim.h:", 0) != 0) {
                found = text;
                break;
            }
        }
        pclose(lines);
    }
    return found;
}

std::string describe_access(Use use, size_t byte, const void* code) {
    static const char* const verbs[] = {" reads", " writes", " updates"};
    return describe_self() + verbs[static_cast<int>(use)] + " byte " + std::to_string(byte) +
           " of dynamic shared memory (" + line_of(code) + ")";
}

std::string describe_outside(Use use, size_t byte, const void* code) {
    return "out of bounds: " + describe_access(use, byte, code) + ", which has " + std::to_string(running_shared);
}

std::string describe_race(Use use, size_t byte, const void* code, bool with_write) {
    const Cell& cell = cells[byte];
    const uint32_t warp = with_write ? cell.writer / kWarpLanes : cell.read_warp;
    const uint32_t lanes = with_write ? 1u << cell.writer % kWarpLanes : cell.read_lanes;
    std::string others = "warp " + std::to_string(warp) + ", " + lanes_text(lanes);
    if (!with_write && cell.several_warps_read) {
        others = "several warps";
    }
    return "race: " + describe_access(use, byte, code) + "; before it, with no barrier between, " + others +
           (with_write ? " wrote it (" : " read it (") + line_of(with_write ? cell.write_at : cell.read_at) + ")";
}

void watch(const void* address, size_t bytes, Use use, const void* code) {
    const size_t begin = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(fastcodec_shared);
    if (begin >= kMaxDynamicShared || current == nullptr) {
        return;
    }
    if (begin + bytes > running_shared) {
        stop(describe_outside(use, begin, code));
    }
    const uint32_t now = clocks[current->warp].now;
    for (size_t byte = begin; byte < begin + bytes; ++byte) {
        Cell& cell = cells[byte];
        if (!(use == Use::kAtomic && cell.write_is_atomic) &&
            !came_before(cell.writer / kWarpLanes, 1u << cell.writer % kWarpLanes, cell.write_epoch, cell.write_time)) {
            stop(describe_race(use, byte, code, true));
        }
        const bool reads_before = came_before(cell.read_warp, cell.read_lanes, cell.read_epoch, cell.read_time) &&
                                  !(cell.several_warps_read && cell.read_epoch == block.epoch);
        if (use != Use::kRead) {
            if (!reads_before) {
                stop(describe_race(use, byte, code, false));
            }
            cell.write_epoch = block.epoch;
            cell.write_time = now;
            cell.writer = current->warp * kWarpLanes + current->lane;
            cell.write_is_atomic = use == Use::kAtomic;
            cell.write_at = code;
            continue;
        }
        if (reads_before) {
            // Who comes after this read comes after those too.
            cell.read_warp = current->warp;
            cell.read_lanes = 0;
            cell.several_warps_read = false;
        }
        cell.several_warps_read = cell.several_warps_read || cell.read_warp != current->warp;
        cell.read_lanes |= 1u << current->lane;
        cell.read_epoch = block.epoch;
        cell.read_time = now;
        cell.read_at = code;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Warp collectives

// A lane's source, as PTX's shfl has it: out of its segment means the lane itself.
uint32_t shuffle_source(Kind kind, uint32_t lane, uint32_t parameter) {
    const uint32_t width = parameter >> 8;
    const uint32_t by = parameter & 31;
    const uint32_t first = lane & ~(width - 1);
    const uint32_t last = first + width - 1;
    switch (kind) {
        case Kind::kShfl: return first | (by & (width - 1));
        case Kind::kShflUp: return lane - first >= by ? lane - by : lane;
        case Kind::kShflDown: return lane + by <= last ? lane + by : lane;
        default: return (lane ^ by) <= last ? lane ^ by : lane;
    }
}

template <class Function>
uint64_t fold(const Warp& warp, uint32_t mask, Function function) {
    const uint32_t first = static_cast<uint32_t>(std::countr_zero(mask));
    uint32_t sum = static_cast<uint32_t>(warp.operand[first]);
    for_lanes(mask & (mask - 1),
              [&](uint32_t lane) { sum = function(sum, static_cast<uint32_t>(warp.operand[lane])); });
    return sum;
}

// Computes the results of all lanes at once: the first to go on may already bring new operands.
void complete(Warp& warp, Kind kind, uint32_t mask) {
    const auto all = [&](uint64_t result) { for_lanes(mask, [&](uint32_t lane) { warp.result[lane] = result; }); };
    const auto ballot = [&] {
        uint32_t votes = 0;
        for_lanes(mask, [&](uint32_t lane) { votes |= static_cast<uint32_t>(warp.operand[lane]) << lane; });
        return votes;
    };
    const auto as_signed = [](uint32_t value) { return static_cast<int32_t>(value); };
    switch (kind) {
        case Kind::kSyncwarp:
            if (watching) {
                join_clocks(current->warp, mask);
            }
            break;
        case Kind::kBallot: all(ballot()); break;
        case Kind::kAll: all(ballot() == mask); break;
        case Kind::kAny: all(ballot() != 0); break;
        case Kind::kShfl:
        case Kind::kShflUp:
        case Kind::kShflDown:
        case Kind::kShflXor:
            for_lanes(mask, [&](uint32_t lane) {
                const uint32_t source = shuffle_source(kind, lane, warp.parameter[lane]);
                // What a lane outside the mask has is undefined.
                warp.result[lane] = mask >> source & 1 ? warp.operand[source] : block.poison;
            });
            break;
        case Kind::kReduceAdd: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return a + b; })); break;
        case Kind::kReduceMin: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return min(a, b); })); break;
        case Kind::kReduceMax: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return max(a, b); })); break;
        case Kind::kReduceMinSigned:
            all(fold(warp, mask, [&](uint32_t a, uint32_t b) { return as_signed(a) < as_signed(b) ? a : b; }));
            break;
        case Kind::kReduceMaxSigned:
            all(fold(warp, mask, [&](uint32_t a, uint32_t b) { return as_signed(a) > as_signed(b) ? a : b; }));
            break;
        case Kind::kReduceAnd: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return a & b; })); break;
        case Kind::kReduceOr: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return a | b; })); break;
        case Kind::kReduceXor: all(fold(warp, mask, [](uint32_t a, uint32_t b) { return a ^ b; })); break;
        case Kind::kMatchAny:
            for_lanes(mask, [&](uint32_t lane) {
                uint32_t matches = 0;
                for_lanes(mask, [&](uint32_t other) {
                    matches |= static_cast<uint32_t>(warp.operand[other] == warp.operand[lane]) << other;
                });
                warp.result[lane] = matches;
            });
            break;
        default: break;
    }
    warp.waiting &= ~mask;
    warp.runnable |= mask;
}

bool all_request(const Warp& warp, uint32_t mask, uint64_t request) {
    bool same = true;
    for_lanes(mask, [&](uint32_t lane) { same = same && warp.request[lane] == request; });
    return same;
}

}  // namespace

uint64_t warp_collective(Kind kind, uint32_t mask, uint64_t operand, uint32_t parameter, std::source_location where) {
    need_thread(kind, where);
    Warp& warp = warps[current->warp];
    const uint32_t lane = current->lane;
    const uint32_t bit = 1u << lane;
    if (!(mask & bit)) {
        stop(describe_wrong_mask(kind, mask, where));
    }
    const bool shuffle = kind >= Kind::kShfl && kind <= Kind::kShflXor;
    if (const uint32_t width = parameter >> 8; shuffle && (width > kWarpLanes || !std::has_single_bit(width))) {
        stop(describe_wrong_width(kind, width, where));
    }
    const uint64_t request = static_cast<uint64_t>(mask) << 32 | static_cast<uint32_t>(kind);
    warp.request[lane] = request;
    warp.operand[lane] = operand;
    warp.parameter[lane] = parameter;
    warp.where[lane] = where;
    warp.waiting |= bit;
    warp.runnable &= ~bit;
    if ((warp.waiting & mask) == mask && all_request(warp, mask, request)) {
        complete(warp, kind, mask);
    }
    run_others();
    return warp.result[lane];
}

int block_barrier(Kind kind, bool predicate, std::source_location where) {
    need_thread(kind, where);
    Warp& warp = warps[current->warp];
    const uint32_t lane = current->lane;
    warp.request[lane] = static_cast<uint32_t>(kind);
    warp.where[lane] = where;
    warp.at_barrier |= 1u << lane;
    warp.runnable &= ~(1u << lane);
    block.mixed = block.arrived != 0 && (block.mixed || block.kind != kind);
    block.kind = kind;
    ++block.arrived;
    block.agreed += predicate;
    release_barrier_if_complete();
    run_others();
    return block.result;
}

void begin_atomic(const void* address, size_t bytes) {
    if (order == kCudaShimRandom && current != nullptr && (random_bits() & 3) == 0) {
        run_others();
    }
    if (watching) {
        watch(address, bytes, Use::kAtomic, __builtin_return_address(0));
    }
}

void fault(const char* text, std::source_location where) { stop(describe_fault(text, where)); }

void report(const char* text) {
    if (abort_on_fault) {
        std::fprintf(stderr, "cuda_shim: %s\n", text);
        std::abort();
    }
    last_fault = text;
}

bool watches_shared_memory() { return watching; }

Kernel::Kernel(const char* name, void (*invoke)(void* const*)) : name(name), invoke(invoke), next(kernels) {
    kernels = this;
}

// ---------------------------------------------------------------------------------------------------------------------
// Launches

namespace {

// Every launch gets a pattern of its own for each block, and never zeros.
void poison_shared(uint64_t number) {
    block.poison =
        mix(schedule_seed * 0x9e3779b97f4a7c15u + launches * 0x632be59bd9b4e019u + number + 1) | 0x0101010101010101u;
    unsigned char* const shared = fastcodec_shared;
    size_t at = 0;
    for (; at + sizeof(block.poison) <= running_shared; at += sizeof(block.poison)) {
        std::memcpy(shared + at, &block.poison, sizeof(block.poison));
    }
    std::memcpy(shared + at, &block.poison, running_shared - at);
}

void run_block(uint64_t number) {
    blockIdx.x = static_cast<unsigned>(number % gridDim.x);
    blockIdx.y = static_cast<unsigned>(number / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(number / gridDim.x / gridDim.y);
    poison_shared(number);
    block.alive = running_threads;
    block.arrived = 0;
    block.agreed = 0;
    block.mixed = false;
    block.ready = 0;
    ++block.epoch;
    for (uint32_t w = 0; w * kWarpLanes < running_threads; ++w) {
        const uint32_t lanes = std::min(kWarpLanes, running_threads - w * kWarpLanes);
        warps[w].runnable = 0xffffffffu >> (kWarpLanes - lanes);
        warps[w].waiting = 0;
        warps[w].at_barrier = 0;
        block.ready |= 1u << w;
    }
    const uint32_t warp = choose(block.ready);
    current = &fibers[warp * kWarpLanes + choose(warps[warp].runnable)];
    threadIdx = current->thread;
    switch_stack(launcher, current->context);
    current = nullptr;
}

// Whether it came to its end.
bool run(const Kernel& kernel, dim3 grid, dim3 threads, size_t shared, void* const* arguments) {
    running = &kernel;
    running_arguments = arguments;
    running_threads = threads.x * threads.y * threads.z;
    running_shared = shared;
    gridDim = grid;
    blockDim = threads;
    for (uint32_t t = 0; t < running_threads; ++t) {
        fibers[t].thread = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
    }
    launcher = Context{};
    random_state = mix(schedule_seed + ++launches * 0x9e3779b97f4a7c15u);
    faulted = false;
    last_fault.clear();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fastcodec_shared, kMaxDynamicShared);
    ASAN_POISON_MEMORY_REGION(fastcodec_shared + shared, kMaxDynamicShared - shared);
#endif
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    std::vector<uint64_t> numbers;
    if (order == kCudaShimRandom) {
        for (uint64_t b = 0; b < blocks; ++b) {
            numbers.push_back(b);
            std::swap(numbers[b], numbers[random_bits() % (b + 1)]);
        }
    }
    for (uint64_t b = 0; b < blocks && !faulted; ++b) {
        run_block(!numbers.empty() ? numbers[b] : order == kCudaShimReverse ? blocks - 1 - b : b);
    }
    if (faulted) {
        for (uint32_t t = 0; t < running_threads; ++t) {
            start_fiber(t);
        }
    }
    return !faulted;
}

}  // namespace
}  // namespace cuda_shim

// What g++ calls before each access of a source compiled with -fsanitize=thread.
#define CUDA_SHIM_WATCH(name, bytes, use)                                                   \
    extern "C" void __tsan_##name(void* address) {                                          \
        cuda_shim::watch(address, bytes, cuda_shim::Use::use, __builtin_return_address(0)); \
    }
#define CUDA_SHIM_WATCH_BYTES(bytes)                     \
    CUDA_SHIM_WATCH(read##bytes, bytes, kRead)           \
    CUDA_SHIM_WATCH(write##bytes, bytes, kWrite)         \
    CUDA_SHIM_WATCH(unaligned_read##bytes, bytes, kRead) \
    CUDA_SHIM_WATCH(unaligned_write##bytes, bytes, kWrite)
CUDA_SHIM_WATCH_BYTES(1)
CUDA_SHIM_WATCH_BYTES(2)
CUDA_SHIM_WATCH_BYTES(4)
CUDA_SHIM_WATCH_BYTES(8)
CUDA_SHIM_WATCH_BYTES(16)

extern "C" {
void __tsan_read_range(void* address, size_t bytes) {
    cuda_shim::watch(address, bytes, cuda_shim::Use::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    cuda_shim::watch(address, bytes, cuda_shim::Use::kWrite, __builtin_return_address(0));
}
void __tsan_init() { cuda_shim::watching = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}

// ---------------------------------------------------------------------------------------------------------------------
// The driver API, and the shim's own calls. Real names, types and values of cuda.h; what is checked is what a driver
// would refuse.

#define CUDA_SHIM_API extern "C" __attribute__((visibility("default")))

using CUresult = int;
using CUdevice = int;
using CUdevice_attribute = int;
using CUfunction_attribute = int;
using CUcontext = struct CUctx_st*;
using CUlibrary = struct CUlib_st*;
using CUkernel = struct CUkern_st*;
using CUfunction = struct CUfunc_st*;
using CUstream = struct CUstream_st*;
using CUdeviceptr = unsigned long long;

namespace {

enum : CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_LAUNCH_FAILED = 719,
};

struct ErrorText {
    CUresult code;
    const char* name;
    const char* text;
};
constexpr ErrorText kErrors[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
};

struct Attribute {
    int number;
    int value;
};
constexpr Attribute kDeviceAttributes[] = {
    {1, 1024},                // MAX_THREADS_PER_BLOCK
    {2, 1024},                // MAX_BLOCK_DIM_X
    {3, 1024},                // MAX_BLOCK_DIM_Y
    {4, 64},                  // MAX_BLOCK_DIM_Z
    {5, 0x7fffffff},          // MAX_GRID_DIM_X
    {6, 65535},               // MAX_GRID_DIM_Y
    {7, 65535},               // MAX_GRID_DIM_Z
    {8, 48 << 10},            // MAX_SHARED_MEMORY_PER_BLOCK
    {10, 32},                 // WARP_SIZE
    {12, 65536},              // MAX_REGISTERS_PER_BLOCK
    {13, 1000000},            // CLOCK_RATE, in kHz
    {16, 4},                  // MULTIPROCESSOR_COUNT
    {18, 0},                  // INTEGRATED
    {38, 4 << 20},            // L2_CACHE_SIZE
    {39, 2048},               // MAX_THREADS_PER_MULTIPROCESSOR
    {41, 1},                  // UNIFIED_ADDRESSING
    {75, 9},                  // COMPUTE_CAPABILITY_MAJOR
    {76, 0},                  // COMPUTE_CAPABILITY_MINOR
    {81, 233472},             // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    {82, 65536},              // MAX_REGISTERS_PER_MULTIPROCESSOR
    {97, kMaxDynamicShared},  // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    {106, 32},                // MAX_BLOCKS_PER_MULTIPROCESSOR
    {111, 1024},              // RESERVED_SHARED_MEMORY_PER_BLOCK
};
constexpr int kFunctionMaxDynamicShared = 8;
constexpr int kFunctionCarveout = 9;
constexpr Attribute kFunctionAttributes[] = {
    {0, 1024},  // MAX_THREADS_PER_BLOCK
    {1, 0},     // SHARED_SIZE_BYTES
    {2, 0},     // CONST_SIZE_BYTES
    {3, 0},     // LOCAL_SIZE_BYTES
    {4, 32},    // NUM_REGS
    {5, 90},    // PTX_VERSION
    {6, 90},    // BINARY_VERSION
    {7, 0},     // CACHE_MODE_CA
    {kFunctionCarveout, -1},
};

bool initialised;
char device_context;
char library;
thread_local CUcontext current_context;

CUresult ready() {
    if (!initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    return current_context == nullptr ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

CUresult check_device(CUdevice device) {
    if (!initialised) {
        return CUDA_ERROR_NOT_INITIALIZED;
    }
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

cuda_shim::Kernel* kernel_of(const void* handle) {
    cuda_shim::Kernel* kernel = cuda_shim::kernels;
    while (kernel != nullptr && kernel != handle) {
        kernel = kernel->next;
    }
    return kernel;
}

CUresult check_kernel(const cuda_shim::Kernel* kernel, CUdevice device) {
    const CUresult result = check_device(device);
    return result == CUDA_SUCCESS && kernel == nullptr ? CUDA_ERROR_INVALID_HANDLE : result;
}

CUresult find_attribute(const Attribute* begin, const Attribute* end, int number, int* value) {
    const Attribute* const found = std::find_if(begin, end, [&](const Attribute& a) { return a.number == number; });
    if (found == end || value == nullptr) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *value = found->value;
    return CUDA_SUCCESS;
}

CUresult find_error(CUresult code, const char** text, const char* ErrorText::* member) {
    for (const ErrorText& error : kErrors) {
        if (error.code == code) {
            *text = error.*member;
            return CUDA_SUCCESS;
        }
    }
    *text = nullptr;
    return CUDA_ERROR_INVALID_VALUE;
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

CUresult copy(void* to, const void* from, size_t bytes) {
    const CUresult result = ready();
    if (result == CUDA_SUCCESS && bytes != 0) {
        std::memmove(to, from, bytes);
    }
    return result;
}

}  // namespace

CUDA_SHIM_API void cuda_shim_schedule(int order, uint64_t seed) {
    const std::lock_guard guard(cuda_shim::launch_lock);
    cuda_shim::order = order;
    cuda_shim::schedule_seed = seed;
    cuda_shim::launches = 0;
}

CUDA_SHIM_API const char* cuda_shim_last_fault() {
    return cuda_shim::last_fault.empty() ? nullptr : cuda_shim::last_fault.c_str();
}

CUDA_SHIM_API void cuda_shim_abort_on_fault(int yes) { cuda_shim::abort_on_fault = yes != 0; }

CUDA_SHIM_API uint64_t cuda_shim_switches() { return cuda_shim::switches; }

CUDA_SHIM_API CUresult cuInit(unsigned flags) {
    if (flags != 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    initialised = true;
    return CUDA_SUCCESS;
}

CUDA_SHIM_API CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUDA_SHIM_API CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return check_device(0);
}

CUDA_SHIM_API CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    *device = 0;
    return check_device(ordinal);
}

CUDA_SHIM_API CUresult cuDeviceGetName(char* name, int size, CUdevice device) {
    std::snprintf(name, static_cast<size_t>(size), "host shim");
    return check_device(device);
}

CUDA_SHIM_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    const CUresult result = check_device(device);
    return result != CUDA_SUCCESS
               ? result
               : find_attribute(std::begin(kDeviceAttributes), std::end(kDeviceAttributes), attribute, value);
}

CUDA_SHIM_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    *context = reinterpret_cast<CUcontext>(&device_context);
    return check_device(device);
}

CUDA_SHIM_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return check_device(device); }

CUDA_SHIM_API CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = current_context;
    return check_device(0);
}

CUDA_SHIM_API CUresult cuCtxSetCurrent(CUcontext context) {
    current_context = context;
    return check_device(0);
}

CUDA_SHIM_API CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return ready();
}

CUDA_SHIM_API CUresult cuCtxSynchronize() { return ready(); }

CUDA_SHIM_API CUresult cuStreamSynchronize(CUstream) { return ready(); }

CUDA_SHIM_API CUresult cuLibraryLoadData(CUlibrary* loaded, const void* code, int*, void**, unsigned, int*, void**,
                                         unsigned) {
    const CUresult result = check_device(0);
    if (result != CUDA_SUCCESS || code == nullptr) {
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    }
    *loaded = reinterpret_cast<CUlibrary>(&library);
    return CUDA_SUCCESS;
}

CUDA_SHIM_API CUresult cuLibraryUnload(CUlibrary unloaded) {
    return unloaded == reinterpret_cast<CUlibrary>(&library) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUDA_SHIM_API CUresult cuLibraryGetKernel(CUkernel* found, CUlibrary loaded, const char* name) {
    if (loaded != reinterpret_cast<CUlibrary>(&library)) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    for (cuda_shim::Kernel* kernel = cuda_shim::kernels; kernel != nullptr; kernel = kernel->next) {
        if (std::strcmp(kernel->name, name) == 0) {
            *found = reinterpret_cast<CUkernel>(kernel);
            return CUDA_SUCCESS;
        }
    }
    return CUDA_ERROR_NOT_FOUND;
}

// A kernel serves as a function too, in a launch.
CUDA_SHIM_API CUresult cuKernelGetFunction(CUfunction* function, CUkernel kernel) {
    *function = reinterpret_cast<CUfunction>(kernel);
    return kernel_of(kernel) == nullptr ? CUDA_ERROR_INVALID_HANDLE : ready();
}

CUDA_SHIM_API CUresult cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel handle,
                                            CUdevice device) {
    cuda_shim::Kernel* const kernel = kernel_of(handle);
    if (const CUresult result = check_kernel(kernel, device); result != CUDA_SUCCESS) {
        return result;
    }
    if (attribute == kFunctionMaxDynamicShared && value >= 0 && value <= static_cast<int>(kMaxDynamicShared)) {
        kernel->max_dynamic_shared = value;
        return CUDA_SUCCESS;
    }
    // A preference that has no effect here.
    return attribute == kFunctionCarveout && value >= -1 && value <= 100 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUDA_SHIM_API CUresult cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel handle,
                                            CUdevice device) {
    const cuda_shim::Kernel* const kernel = kernel_of(handle);
    if (const CUresult result = check_kernel(kernel, device); result != CUDA_SUCCESS) {
        return result;
    }
    if (attribute == kFunctionMaxDynamicShared) {
        *value = kernel->max_dynamic_shared;
        return CUDA_SUCCESS;
    }
    return find_attribute(std::begin(kFunctionAttributes), std::end(kFunctionAttributes), attribute, value);
}

CUDA_SHIM_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                      unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                      CUstream, void** arguments, void** extra) {
    if (const CUresult result = ready(); result != CUDA_SUCCESS) {
        return result;
    }
    const cuda_shim::Kernel* const kernel = kernel_of(function);
    if (kernel == nullptr) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    const bool grid_fits = grid_x - 1 < 0x7fffffffu && grid_y - 1 < 65535 && grid_z - 1 < 65535;
    const bool block_fits = block_x - 1 < kMaxThreads && block_y - 1 < kMaxThreads && block_z - 1 < 64 &&
                            block_x * block_y * block_z <= kMaxThreads;
    // A buffer of packed arguments (extra) is not supported.
    if (!grid_fits || !block_fits || extra != nullptr ||
        shared_bytes > static_cast<unsigned>(kernel->max_dynamic_shared)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const std::lock_guard guard(cuda_shim::launch_lock);
    if (!cuda_shim::make_fibers(block_x * block_y * block_z)) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    const bool done =
        cuda_shim::run(*kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, arguments);
    return done ? CUDA_SUCCESS : CUDA_ERROR_LAUNCH_FAILED;
}

// Filled with a pattern: a GPU's memory is not zero either.
CUDA_SHIM_API CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    if (const CUresult result = ready(); result != CUDA_SUCCESS || bytes == 0) {
        return result != CUDA_SUCCESS ? result : CUDA_ERROR_INVALID_VALUE;
    }
    void* memory;
    if (posix_memalign(&memory, 256, bytes) != 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    std::memset(memory, 0xa5, bytes);
    *address = reinterpret_cast<CUdeviceptr>(memory);
    return CUDA_SUCCESS;
}

CUDA_SHIM_API CUresult cuMemFree_v2(CUdeviceptr address) {
    std::free(pointer(address));
    return ready();
}

CUDA_SHIM_API CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    return copy(pointer(to), pointer(from), bytes);
}
CUDA_SHIM_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return copy(pointer(to), from, bytes);
}
CUDA_SHIM_API CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return copy(to, pointer(from), bytes);
}
CUDA_SHIM_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, CUstream) {
    return copy(pointer(to), from, bytes);
}
CUDA_SHIM_API CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, CUstream) {
    return copy(to, pointer(from), bytes);
}
CUDA_SHIM_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    return copy(pointer(to), pointer(from), bytes);
}
CUDA_SHIM_API CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream) {
    const CUresult result = ready();
    if (result == CUDA_SUCCESS && bytes != 0) {
        std::memset(pointer(to), value, bytes);
    }
    return result;
}

CUDA_SHIM_API CUresult cuGetErrorName(CUresult code, const char** name) {
    return find_error(code, name, &ErrorText::name);
}
CUDA_SHIM_API CUresult cuGetErrorString(CUresult code, const char** text) {
    return find_error(code, text, &ErrorText::text);
}
