// The CUDA coder's host side behind a plain C interface: it loads the kernels, lays out batches for them and launches
// them. It knows no PyTorch and no CUDA headers: the driver is opened when the first GPU is used, so one build of this
// file serves every machine. All memory is the caller's; pointers named `device_...` are not read here.
//
// Every function that can fail returns a Status or fills in an Error, and throws nothing.

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda.h"
#include "entries.h"
#include "host.h"
#include "payload.h"

using namespace fastcodec::rans;
using namespace fastcodec::rans::cuda;

#define FASTCODEC_API extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string last_message;

int driver_failed(const std::string& message) {
    last_message = message;
    return kStatusDriver;
}

size_t aligned(size_t bytes) { return (bytes + 15) & ~size_t{15}; }

// ---------------------------------------------------------------------------------------------------------------------
// The driver, as far as it is needed. The numbers are those of CUDA's cuda.h, which never change.

using CUresult = int;
using CUdevice = int;
using CUcontext = struct ContextOpaque*;
using CUlibrary = struct LibraryOpaque*;
using CUkernel = struct KernelOpaque*;  // the driver takes it for a CUfunction too
using CUstream = struct StreamOpaque*;

constexpr int kAttributeMultiprocessors = 16;
constexpr int kAttributeSharedBytesOptIn = 97;
constexpr int kFunctionMaxDynamicSharedBytes = 8;

struct Driver {
    CUresult (*init)(unsigned);
    CUresult (*context_current)(CUcontext*);
    CUresult (*context_set)(CUcontext);
    CUresult (*context_device)(CUdevice*);
    CUresult (*primary_context)(CUcontext*, CUdevice);
    CUresult (*device_attribute)(int*, int, CUdevice);
    CUresult (*library_load)(CUlibrary*, const void*, int*, void**, unsigned, int*, void**, unsigned);
    CUresult (*library_unload)(CUlibrary);
    CUresult (*library_kernel)(CUkernel*, CUlibrary, const char*);
    CUresult (*kernel_set)(int, int, CUkernel, CUdevice);
    CUresult (*launch)(CUkernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**,
                       void**);
    CUresult (*error_text)(CUresult, const char**);
};

// An empty path stands for the program itself, which may have been linked with another driver (tests/cuda_shim).
bool open_driver(const char* path, Driver& driver) {
    void* handle = dlopen(*path == '\0' ? nullptr : path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        last_message = dlerror();
        return false;
    }
    const auto find = [&](auto& function, const char* name) {
        void* const symbol = dlsym(handle, name);
        std::memcpy(&function, &symbol, sizeof(symbol));
        if (symbol == nullptr) {
            last_message = std::string("the CUDA driver is too old: it lacks ") + name;
        }
        return symbol != nullptr;
    };
    return find(driver.init, "cuInit") && find(driver.context_current, "cuCtxGetCurrent") &&
           find(driver.context_set, "cuCtxSetCurrent") && find(driver.context_device, "cuCtxGetDevice") &&
           find(driver.primary_context, "cuDevicePrimaryCtxRetain") &&
           find(driver.device_attribute, "cuDeviceGetAttribute") && find(driver.library_load, "cuLibraryLoadData") &&
           find(driver.library_unload, "cuLibraryUnload") && find(driver.library_kernel, "cuLibraryGetKernel") &&
           find(driver.kernel_set, "cuKernelSetAttribute") && find(driver.launch, "cuLaunchKernel") &&
           find(driver.error_text, "cuGetErrorString");
}

enum Kernel : int {
    kDecodeFullDense,
    kDecodeFullSkip,
    kDecodeMixedDense,
    kDecodeMixedSkip,
    kReconstruct,
    kEncodeDense,
    kEncodeSkip,
    kExamine,
    kMeasure,
    kArrange,
    kGather,
    kFinish,
    kDecodeMixturesFull3,
    kDecodeMixturesFull4,
    kDecodeMixturesMixed3,
    kDecodeMixturesMixed4,
    kEncodeMixtures3,
    kEncodeMixtures4,
    kExamineMixtures,
    kKernels,
};
constexpr const char* kKernelNames[kKernels] = {
    "fastcodec_rans_decode_full_dense",
    "fastcodec_rans_decode_full_skip",
    "fastcodec_rans_decode_mixed_dense",
    "fastcodec_rans_decode_mixed_skip",
    "fastcodec_rans_reconstruct",
    "fastcodec_rans_encode_dense",
    "fastcodec_rans_encode_skip",
    "fastcodec_rans_examine",
    "fastcodec_rans_measure",
    "fastcodec_rans_arrange",
    "fastcodec_rans_gather",
    "fastcodec_rans_finish",
    "fastcodec_rans_decode_mixtures_full_3",
    "fastcodec_rans_decode_mixtures_full_4",
    "fastcodec_rans_decode_mixtures_mixed_3",
    "fastcodec_rans_decode_mixtures_mixed_4",
    "fastcodec_rans_encode_mixtures_3",
    "fastcodec_rans_encode_mixtures_4",
    "fastcodec_rans_examine_mixtures",
};

struct Device {
    uint32_t multiprocessors;
    uint32_t shared_bytes;  // that a block can have
};

struct Module {
    Driver driver;
    CUlibrary library = nullptr;
    CUkernel kernels[kKernels] = {};
    std::mutex lock;
    std::map<CUdevice, Device> devices;  // those whose kernels may use all shared memory
};

int checked(const Module& module, CUresult result, const char* what) {
    if (result == 0) {
        return kStatusOk;
    }
    const char* text = nullptr;
    module.driver.error_text(result, &text);
    return driver_failed(std::string(what) + ": " + (text != nullptr ? text : "error " + std::to_string(result)));
}

// The current device; the first call on a device prepares the kernels for it.
int current_device(Module& module, Device& out) {
    const Driver& driver = module.driver;
    CUcontext context = nullptr;
    CUdevice number = 0;
    if (int bad = checked(module, driver.context_current(&context), "cuCtxGetCurrent")) {
        return bad;
    }
    if (context == nullptr) {  // a thread that has not used the GPU yet
        if (int bad = checked(module, driver.primary_context(&context, 0), "cuDevicePrimaryCtxRetain")) {
            return bad;
        }
        if (int bad = checked(module, driver.context_set(context), "cuCtxSetCurrent")) {
            return bad;
        }
    }
    if (int bad = checked(module, driver.context_device(&number), "cuCtxGetDevice")) {
        return bad;
    }
    const std::lock_guard<std::mutex> guard(module.lock);
    if (const auto known = module.devices.find(number); known != module.devices.end()) {
        out = known->second;
        return kStatusOk;
    }
    int multiprocessors = 0;
    int shared = 0;
    if (int bad = checked(module, driver.device_attribute(&multiprocessors, kAttributeMultiprocessors, number),
                          "cuDeviceGetAttribute")) {
        return bad;
    }
    if (int bad = checked(module, driver.device_attribute(&shared, kAttributeSharedBytesOptIn, number),
                          "cuDeviceGetAttribute")) {
        return bad;
    }
    for (CUkernel kernel : module.kernels) {
        if (int bad = checked(module, driver.kernel_set(kFunctionMaxDynamicSharedBytes, shared, kernel, number),
                              "cuKernelSetAttribute")) {
            return bad;
        }
    }
    out = {static_cast<uint32_t>(multiprocessors), static_cast<uint32_t>(shared)};
    module.devices[number] = out;
    return kStatusOk;
}

// What `body` returns for the module and the current device.
template <typename Body>
int on_device(void* module, const Body& body) {
    return guarded([&]() -> int {
        Module& m = *static_cast<Module*>(module);
        Device device;
        if (int bad = current_device(m, device)) {
            return bad;
        }
        return body(m, device);
    });
}

template <typename Arguments>
int launch(const Module& module, Kernel kernel, uint32_t blocks_x, uint32_t blocks_y, uint32_t threads, uint32_t shared,
           void* stream, const Arguments& arguments) {
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    return checked(module,
                   module.driver.launch(module.kernels[kernel], blocks_x, blocks_y, 1, threads, 1, 1, shared,
                                        static_cast<CUstream>(stream), parameters, nullptr),
                   kKernelNames[kernel]);
}

// ---------------------------------------------------------------------------------------------------------------------
// Tables

// One table's buckets of 2^bits, and for each the position of its first entry. Returns how many slots miss theirs, the
// sentinel's aside.
uint32_t fill_slots(const uint16_t* edges, Table table, uint32_t bits, Slots* buckets, uint32_t* positions) {
    const uint32_t width = 1u << (kProbabilityBits - bits);
    const uint32_t symbols = table.size - 1u;  // entries but for the sentinel
    uint32_t missed = 0;
    uint32_t entry = 0;
    for (uint32_t b = 0; b < 1u << bits; ++b) {
        const uint32_t begin = b * width;
        const uint32_t end = begin + width;
        while (edges[entry + 1] <= begin) {
            ++entry;
        }
        // With no symbol of its own a bucket is the sentinel's, of no slots: its first entry is the sentinel.
        Slots best{edges[symbols], 0, 0, 0};
        uint32_t best_entry = symbols;
        uint32_t most = 0;
        for (uint32_t k = entry; k < symbols && edges[k] < end; ++k) {
            const uint32_t last = std::min(k + 2, symbols);
            const uint32_t covered = std::min(uint32_t{edges[last]}, end) - std::max(uint32_t{edges[k]}, begin);
            if (covered > most) {
                most = covered;
                best_entry = k;
                best = {edges[k], static_cast<uint16_t>(edges[k + 1] - edges[k]),
                        static_cast<uint16_t>(edges[last] - edges[k + 1]),
                        static_cast<int16_t>(table.first + static_cast<int32_t>(k))};
            }
        }
        const uint32_t coded = std::min(uint32_t{edges[symbols]}, end);
        missed += (coded > begin ? coded - begin : 0) - most;
        if (buckets != nullptr) {
            buckets[b] = best;
            positions[b] = table.base + best_entry;
        }
    }
    return missed;
}

// How many bits each table's buckets take: all tables miss as rarely as the memory for buckets allows.
std::vector<uint32_t> choose_bucket_bits(const Entries& e) {
    std::vector<uint32_t> missed(e.tables.size() * (kMaxBucketBits + 1));
    for (size_t i = 0; i < e.tables.size(); ++i) {
        for (uint32_t bits = kMinBucketBits; bits <= kMaxBucketBits; ++bits) {
            missed[i * (kMaxBucketBits + 1) + bits] =
                fill_slots(e.cumulative.data() + e.tables[i].base, e.tables[i], bits, nullptr, nullptr);
        }
    }
    std::vector<uint32_t> result(e.tables.size());
    for (uint32_t tolerated = 0;; tolerated = tolerated * 5 / 4 + 1) {
        size_t buckets = 1u << kMinBucketBits;  // the one of indexes that name no table
        for (size_t i = 0; i < e.tables.size(); ++i) {
            uint32_t bits = kMinBucketBits;
            while (bits < kMaxBucketBits && missed[i * (kMaxBucketBits + 1) + bits] > tolerated) {
                ++bits;
            }
            result[i] = bits;
            buckets += size_t{1} << bits;
        }
        if (buckets * sizeof(Slots) <= kBucketBytes) {
            return result;
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Plans

// What the kernels need to know of a batch, laid out as one piece of memory:
//   Stream [streams], Warp [warps], u32 lanes [tiles], u32 states [...], then (to decode) the payloads or (to encode)
//   TilePlace [tiles]; each begins at a multiple of 16 bytes.
struct Plan {
    std::vector<Layout> layouts;  // to decode
    std::vector<const uint8_t*> payloads;
    std::vector<size_t> payload_begins;  // relative to the payloads' section
    std::vector<uint32_t> lanes;         // of each tile
    std::vector<uint32_t> stream_counts;
    std::vector<uint32_t> first_streams;
    std::vector<Stream> streams;
    std::vector<Warp> warps;
    std::vector<uint32_t> states;
    std::vector<TilePlace> places;  // to encode
    uint64_t scratch_units = 0;     // likewise: 16 bits each
    bool full = true;

    size_t warps_at() const { return aligned(streams.size() * sizeof(Stream)); }
    size_t lanes_at() const { return warps_at() + aligned(warps.size() * sizeof(Warp)); }
    size_t states_at() const { return lanes_at() + aligned(lanes.size() * sizeof(uint32_t)); }
    size_t rest_at() const { return states_at() + aligned(states.size() * sizeof(uint32_t)); }
};

// Numbers the streams, those of equally many lanes after each other so that they can share warps, and makes the warps.
void arrange_streams(Plan& plan) {
    const size_t tiles = plan.lanes.size();
    plan.first_streams.resize(tiles);
    for (uint32_t log2 = kMaxLanesLog2 + 1; log2-- > 0;) {
        const size_t begin = plan.streams.size();
        for (uint32_t t = 0; t < tiles; ++t) {
            if (plan.lanes[t] != 1u << log2) {
                continue;
            }
            plan.first_streams[t] = static_cast<uint32_t>(plan.streams.size());
            for (uint32_t s = 0; s < plan.stream_counts[t]; ++s) {
                plan.streams.push_back({0, 0, 0, 0, static_cast<uint32_t>(plan.states.size()), t, s, kOk});
                plan.states.resize(plan.states.size() + plan.lanes[t], kStateLow);
            }
        }
        const size_t together = kWarpThreads >> log2;
        for (size_t s = begin; s < plan.streams.size(); s += together) {
            plan.warps.push_back({static_cast<uint32_t>(s),
                                  static_cast<uint16_t>(std::min(together, plan.streams.size() - s)),
                                  static_cast<uint16_t>(log2)});
            plan.full = plan.full && log2 == kMaxLanesLog2;
        }
    }
}

// Rounds a batch up to one of few sizes, so that batches of about the same size can be decoded by the same launches:
// streams and warps that are made up have no elements, and leave at once.
void pad_streams(Plan& plan) {
    if (plan.streams.empty()) {
        return;
    }
    const auto padded = [](size_t count, size_t least) {
        while (least < count) {
            least *= 2;
        }
        return least;
    };
    plan.streams.resize(padded(plan.streams.size(), 4), {0, 0, 0, 0, 0, 0, 0, kOk});
    plan.warps.resize(padded(plan.warps.size(), plan.full ? 4 : 2), {0, 0, 0});
    plan.states.resize(plan.full ? plan.streams.size() * kWarpThreads : padded(plan.states.size(), 32), kStateLow);
}

Divisor make_divisor(uint32_t value) {
    value = std::max(value, 1u);
    uint32_t log2 = 0;
    while (log2 < 32 && (uint64_t{1} << log2) < value) {
        ++log2;
    }
    const uint64_t multiplier = ((uint64_t{1} << 32) * ((uint64_t{1} << log2) - value)) / value + 1;
    return {value, static_cast<uint32_t>(multiplier), static_cast<uint16_t>(std::min(log2, 1u)),
            static_cast<uint16_t>(log2 == 0 ? 0 : log2 - 1)};
}

// How a coding kernel is launched: warps are spread over all multiprocessors first; more of them share a block, and the
// tables in its shared memory, only then.
struct Launch {
    uint32_t warps_per_block;
    uint32_t threads;
    uint32_t shared_tables;
    uint32_t shared_bytes;
};

// Shared memory for the first of `choices` (bytes of tables, descending; not empty) that fits beside the warps' queues.
// A block may be halved for it, and is as small as it must be for the last one.
Launch choose_launch(const Device& device, uint32_t warp_count, uint32_t max_threads, uint32_t queue_bytes,
                     const std::vector<uint32_t>& choices) {
    constexpr uint32_t kHelpers = 256;  // threads that copy tables, at least
    const uint32_t most = max_threads / kWarpThreads;
    const uint32_t even = (warp_count + device.multiprocessors - 1) / device.multiprocessors;
    const uint32_t wanted = std::clamp(even, 1u, most);
    uint32_t tables = choices.back();
    uint32_t warps = wanted;
    const auto fits = [&] { return tables + warps * queue_bytes <= device.shared_bytes; };
    for (const uint32_t choice : choices) {
        tables = choice;
        for (warps = wanted; warps > (wanted + 1) / 2 && !fits();) {
            warps = (wanted + 1) / 2;
        }
        if (fits()) {
            break;
        }
    }
    while (warps > 1 && !fits()) {
        warps /= 2;
    }
    return {warps, std::max(warps * kWarpThreads, std::min(kHelpers, max_threads)), tables,
            tables + warps * queue_bytes};
}

// Launches a kernel that codes: all of `a` but how is set.
template <typename Arguments>
int launch_coder(const Module& module, const Device& device, Kernel kernel, uint32_t max_threads, uint32_t queue_bytes,
                 const std::vector<uint32_t>& choices, void* stream, Arguments& a) {
    const Launch how = choose_launch(device, a.warp_count, max_threads, queue_bytes, choices);
    a.warps_per_block = how.warps_per_block;
    a.shared_tables = how.shared_tables;
    return launch(module, kernel, (a.warp_count + how.warps_per_block - 1) / how.warps_per_block, 1, how.threads,
                  how.shared_bytes, stream, a);
}

// The kernel for so many components of mixtures, from that for 3 of them.
Kernel for_components(int kernel_of_3, uint32_t components) {
    return static_cast<Kernel>(kernel_of_3 + (components <= 3 ? 0 : 1));
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// The interface

// What the driver said when a function returned kStatusDriver, in this thread.
FASTCODEC_API const char* fastcodec_rans_cuda_message() { return last_message.c_str(); }

// Opens the driver's library; kStatusDriver if there is none, or no GPU.
FASTCODEC_API int fastcodec_rans_cuda_open(const char* path, void** module) {
    return guarded([&]() -> int {
        auto out = std::make_unique<Module>();
        if (!open_driver(path, out->driver)) {
            return kStatusDriver;
        }
        if (int bad = checked(*out, out->driver.init(0), "cuInit")) {
            return bad;
        }
        *module = out.release();
        return kStatusOk;
    });
}

// Loads the kernels from an image: a cubin, a fatbin or PTX. It is read before the function returns.
FASTCODEC_API int fastcodec_rans_cuda_load(void* module, const void* image) {
    return guarded([&]() -> int {
        Module& m = *static_cast<Module*>(module);
        if (int bad = checked(m, m.driver.library_load(&m.library, image, nullptr, nullptr, 0, nullptr, nullptr, 0),
                              "cuLibraryLoadData")) {
            return bad;
        }
        for (int k = 0; k < kKernels; ++k) {
            if (int bad =
                    checked(m, m.driver.library_kernel(&m.kernels[k], m.library, kKernelNames[k]), kKernelNames[k])) {
                return bad;
            }
        }
        return kStatusOk;
    });
}

FASTCODEC_API void fastcodec_rans_cuda_close(void* module) {
    Module* m = static_cast<Module*>(module);
    if (m->library != nullptr) {
        m->driver.library_unload(m->library);
    }
    delete m;
}

// A table set's blob, `layout->end` bytes of it; without one, only its layout. Arguments as fastcodec_rans_tables_new.
FASTCODEC_API int fastcodec_rans_cuda_tables(uint32_t count, int skip, const int16_t* firsts, const uint16_t* sizes,
                                             const uint16_t* frequencies, size_t entries, TableSet* layout,
                                             uint8_t* blob) {
    return guarded([&]() -> int {
        Entries e;
        if (!build_entries(e, count, firsts, sizes, frequencies, entries)) {
            return kStatusBadTables;
        }
        const std::vector<uint32_t> bits = choose_bucket_bits(e);
        size_t buckets = size_t{1} << kMinBucketBits;
        for (const uint32_t b : bits) {
            buckets += size_t{1} << b;
        }
        const size_t places_bytes = kPlaces * sizeof(uint32_t);
        const size_t positions_at = places_bytes + aligned(buckets * sizeof(Slots));
        const size_t cumulative_at = positions_at + aligned(buckets * sizeof(uint32_t));
        const size_t tables_at = cumulative_at + aligned(e.cumulative.size() * sizeof(uint16_t));
        const size_t costs_at = tables_at + aligned(count * sizeof(Table));
        const size_t end = costs_at + aligned(e.costs.size() * sizeof(uint16_t));
        *layout = {nullptr,
                   static_cast<uint32_t>(positions_at),
                   static_cast<uint32_t>(cumulative_at),
                   static_cast<uint32_t>(tables_at),
                   static_cast<uint32_t>(costs_at),
                   static_cast<uint32_t>(end),
                   count,
                   skip != 0,
                   0};
        if (blob == nullptr) {
            return kStatusOk;
        }
        std::memset(blob, 0, end);
        uint32_t* const places = reinterpret_cast<uint32_t*>(blob);
        Slots* const slots = reinterpret_cast<Slots*>(blob + places_bytes);
        uint32_t* const positions = reinterpret_cast<uint32_t*>(blob + positions_at);
        size_t bucket = size_t{1} << kMinBucketBits;
        std::fill(positions, positions + bucket, kNoTable);
        for (uint32_t i = 0; i < kPlaces; ++i) {
            if (i >= count) {
                places[i] = static_cast<uint32_t>(places_bytes) | kProbabilityBits;
                continue;
            }
            places[i] = static_cast<uint32_t>(places_bytes + bucket * sizeof(Slots)) | (kProbabilityBits - bits[i]);
            fill_slots(e.cumulative.data() + e.tables[i].base, e.tables[i], bits[i], slots + bucket,
                       positions + bucket);
            bucket += size_t{1} << bits[i];
        }
        std::memcpy(blob + tables_at, e.tables.data(), count * sizeof(Table));
        std::memcpy(blob + cumulative_at, e.cumulative.data(), e.cumulative.size() * sizeof(uint16_t));
        std::memcpy(blob + costs_at, e.costs.data(), e.costs.size() * sizeof(uint16_t));
        return kStatusOk;
    });
}

// The blob for passes of mixtures, likewise.
FASTCODEC_API void fastcodec_rans_cuda_mixture_tables(TableSet* layout, uint8_t* blob) {
    static constexpr MixtureTableValues values = make_mixture_tables();
    *layout = {};
    layout->end = kMixtureTableBytes;
    if (blob != nullptr) {
        std::memset(blob, 0, kMixtureTableBytes);
        std::memcpy(blob, values.phi, sizeof(values.phi));
        std::memcpy(blob + kMixturePhiEntries * sizeof(uint32_t), values.scales, sizeof(values.scales));
    }
}

// A plan to decode payloads, which must outlive its use by plan_write. `error` receives a rans::Error and `tile` whose
// it is; then there is no plan. padded: rounded up to one of few sizes.
FASTCODEC_API int fastcodec_rans_cuda_plan_decode(uint32_t tiles, const uint8_t* const* payloads, const size_t* sizes,
                                                  int padded, uint32_t* error, uint32_t* tile, void** plan) {
    return guarded([&]() -> int {
        *error = kOk;
        auto out = std::make_unique<Plan>();
        out->layouts.resize(tiles);
        size_t total = 0;
        for (uint32_t t = 0; t < tiles; ++t) {
            Layout& layout = out->layouts[t];
            if (const Error bad = parse_payload(payloads[t], sizes[t], layout); bad != kOk) {
                *error = bad;
                *tile = t;
                return kStatusOk;
            }
            out->payloads.push_back(payloads[t]);
            // So that its states are aligned, its words and escapes are too.
            total += (4 - (total + layout.states) % 4) % 4;
            out->payload_begins.push_back(total);
            total += sizes[t];
            out->lanes.push_back(layout.lanes);
            out->stream_counts.push_back(layout.streams);
        }
        out->payload_begins.push_back(total);
        if (total / 2 > UINT32_MAX) {
            return kStatusTooLarge;
        }
        arrange_streams(*out);
        for (Stream& stream : out->streams) {
            const Layout& layout = out->layouts[stream.tile];
            const size_t begin = out->payload_begins[stream.tile];
            stream.words = static_cast<uint32_t>((begin + layout.words[stream.number]) / 2);
            stream.words_end = static_cast<uint32_t>((begin + layout.words[stream.number + 1]) / 2);
            stream.escapes = static_cast<uint32_t>((begin + layout.escapes[stream.number]) / 2);
            stream.escapes_end = static_cast<uint32_t>((begin + layout.escapes[stream.number + 1]) / 2);
            const uint8_t* states = payloads[stream.tile] + layout.states + size_t{4} * stream.number * layout.lanes;
            for (uint32_t lane = 0; lane < layout.lanes; ++lane) {
                out->states[stream.states + lane] = load_u32(states + 4 * size_t{lane});
            }
        }
        if (padded) {
            pad_streams(*out);
        }
        *plan = out.release();
        return kStatusOk;
    });
}

// A plan to encode tiles with lanes[t] and streams[t]; tile t has the passes pass_begin[t] .. pass_begin[t + 1] - 1, of
// positions[p] and channels[p].
FASTCODEC_API int fastcodec_rans_cuda_plan_encode(uint32_t tiles, const uint32_t* pass_begin, const uint64_t* positions,
                                                  const uint64_t* channels, const uint32_t* lanes,
                                                  const uint32_t* streams, void** plan) {
    return guarded([&]() -> int {
        auto out = std::make_unique<Plan>();
        out->lanes.assign(lanes, lanes + tiles);
        out->stream_counts.assign(streams, streams + tiles);
        arrange_streams(*out);
        uint64_t units = 0;
        for (Stream& stream : out->streams) {
            uint64_t elements = 0;  // a symbol writes one word and one escape at most
            for (uint32_t p = pass_begin[stream.tile]; p < pass_begin[stream.tile + 1]; ++p) {
                elements += (stream_begin(positions[p], streams[stream.tile], stream.number + 1) -
                             stream_begin(positions[p], streams[stream.tile], stream.number)) *
                            channels[p];
            }
            if (units + 2 * elements > UINT32_MAX) {
                return kStatusTooLarge;
            }
            stream.words = stream.words_end = static_cast<uint32_t>(units + elements);
            stream.escapes = stream.escapes_end = static_cast<uint32_t>(units + 2 * elements);
            units += 2 * elements;
        }
        out->scratch_units = units;
        for (uint32_t t = 0; t < tiles; ++t) {
            out->places.push_back(
                {0, 0, 0, 0, 0, out->first_streams[t], streams[t], static_cast<uint32_t>(__builtin_ctz(lanes[t]))});
        }
        *plan = out.release();
        return kStatusOk;
    });
}

// numbers: bytes of the plan; offsets of its warps, lanes, states and rest; streams; warps; 1 if every warp has one
// stream of all lanes; units of 16 bits of scratch.
FASTCODEC_API void fastcodec_rans_cuda_plan_numbers(const void* plan, uint64_t numbers[9]) {
    const Plan& p = *static_cast<const Plan*>(plan);
    const size_t rest =
        p.places.empty() && !p.payload_begins.empty() ? p.payload_begins.back() : p.places.size() * sizeof(TilePlace);
    const uint64_t values[9] = {p.rest_at() + aligned(rest),
                                p.warps_at(),
                                p.lanes_at(),
                                p.states_at(),
                                p.rest_at(),
                                p.streams.size(),
                                p.warps.size(),
                                p.full,
                                p.scratch_units};
    std::memcpy(numbers, values, sizeof(values));
}

FASTCODEC_API void fastcodec_rans_cuda_plan_write(const void* plan, uint8_t* out) {
    const Plan& p = *static_cast<const Plan*>(plan);
    const auto copy = [&](size_t at, const auto& values) {
        if (!values.empty()) {
            std::memcpy(out + at, values.data(), values.size() * sizeof(values[0]));
        }
    };
    copy(0, p.streams);
    copy(p.warps_at(), p.warps);
    copy(p.lanes_at(), p.lanes);
    copy(p.states_at(), p.states);
    copy(p.rest_at(), p.places);
    for (size_t t = 0; t < p.payloads.size(); ++t) {
        const Layout& layout = p.layouts[t];
        std::memcpy(out + p.rest_at() + p.payload_begins[t], p.payloads[t], layout.escapes[layout.streams]);
    }
}

FASTCODEC_API void fastcodec_rans_cuda_plan_shape(const void* plan, uint32_t tile, uint32_t* lanes, uint32_t* streams) {
    const Plan& p = *static_cast<const Plan*>(plan);
    *lanes = p.lanes[tile];
    *streams = p.stream_counts[tile];
}

// The error of the first failing tile, from the streams as the kernels left them; ok if there is none.
FASTCODEC_API uint32_t fastcodec_rans_cuda_plan_error(const void* plan, const Stream* streams, uint32_t* tile) {
    const Plan& p = *static_cast<const Plan*>(plan);
    for (uint32_t t = 0; t < p.lanes.size(); ++t) {
        for (uint32_t s = 0; s < p.stream_counts[t]; ++s) {
            if (const uint32_t error = streams[p.first_streams[t] + s].error; error != kOk) {
                *tile = t;
                return error;
            }
        }
    }
    return kOk;
}

FASTCODEC_API void fastcodec_rans_cuda_plan_free(void* plan) { delete static_cast<Plan*>(plan); }

// choose_shape of rans.h, for a cost in 1/256 bit.
FASTCODEC_API void fastcodec_rans_cuda_shape(uint64_t cost, uint64_t positions, uint32_t preset, uint32_t* lanes,
                                             uint32_t* streams) {
    const Shape shape = choose_shape(cost / 256, positions, preset, *lanes, *streams);
    *lanes = shape.lanes;
    *streams = shape.streams;
}

// Completes descriptors of which pointers, positions, streams, strides, parity, mean_bits and types are set, and
// channels.value and width.value.
FASTCODEC_API int fastcodec_rans_cuda_complete_passes(uint32_t count, TilePass* passes) {
    for (uint32_t i = 0; i < count; ++i) {
        TilePass& pass = passes[i];
        if (uint64_t{pass.positions} * pass.channels.value > UINT32_MAX) {
            return kStatusTooLarge;
        }
        pass.channels = make_divisor(pass.channels.value);
        pass.width = make_divisor(pass.width.value);
    }
    return kStatusOk;
}

// What `body` returns for each row of blocks that a grid has room for, of a kernel that gives each tile one.
template <typename Body>
int for_rows(uint32_t tiles, const Body& body) {
    constexpr uint32_t kMostRows = 65535;  // of a grid
    for (uint32_t first = 0; first < tiles; first += kMostRows) {
        if (int bad = body(first, std::min(tiles - first, kMostRows))) {
            return bad;
        }
    }
    return kStatusOk;
}

// Decodes one pass of every tile: all of `arguments` but how it is launched is set. With tiles (and `elements`, of the
// longest one) the symbols become values and latents too; of indexed passes only.
FASTCODEC_API int fastcodec_rans_cuda_decode(void* module, void* stream, DecodeArguments* arguments, int full,
                                             uint32_t tiles, uint64_t elements) {
    return on_device(module, [&](Module& m, const Device& device) -> int {
        DecodeArguments& a = *arguments;
        if (a.warp_count == 0) {
            return kStatusOk;
        }
        if (a.components != 0) {
            const int of_3 = full ? kDecodeMixturesFull3 : kDecodeMixturesMixed3;
            return launch_coder(m, device, for_components(of_3, a.components), kMixtureThreads, 0, {kMixtureTableBytes},
                                stream, a);
        }
        const bool skip = a.tables.skip != 0;
        const int kernel = kDecodeFullDense + (full ? 0 : 2) + (skip ? 1 : 0);
        if (int bad = launch_coder(m, device, static_cast<Kernel>(kernel), kCoderThreads,
                                   skip ? kQueueEntries * static_cast<uint32_t>(sizeof(Queued)) : 0,
                                   {a.tables.tables, a.tables.positions}, stream, a)) {
            return bad;
        }
        const uint32_t blocks = static_cast<uint32_t>((elements + kReconstructBlock - 1) / kReconstructBlock);
        return blocks == 0 ? kStatusOk : for_rows(tiles, [&](uint32_t first, uint32_t rows) {
            return launch(m, kReconstruct, blocks, rows, kReconstructThreads, 0, stream,
                          ReconstructArguments{a.passes + first});
        });
    });
}

// After the last pass: leaves every stream's error in its record.
FASTCODEC_API int fastcodec_rans_cuda_finish(void* module, void* stream, const FinishArguments* arguments) {
    return on_device(module, [&](Module& m, const Device&) -> int {
        const uint32_t blocks = (arguments->stream_count + kFinishThreads - 1) / kFinishThreads;
        return blocks == 0 ? kStatusOk : launch(m, kFinish, blocks, 1, kFinishThreads, 0, stream, *arguments);
    });
}

// Examines one pass of every tile; the longest has `elements`. Results must be zero before.
FASTCODEC_API int fastcodec_rans_cuda_examine(void* module, void* stream, const ExamineArguments* arguments,
                                              uint32_t tiles, uint64_t elements) {
    return on_device(module, [&](Module& m, const Device&) -> int {
        const uint32_t blocks = static_cast<uint32_t>((elements + kExamineBlock - 1) / kExamineBlock);
        return blocks == 0 ? kStatusOk : for_rows(tiles, [&](uint32_t first, uint32_t rows) {
            ExamineArguments a = *arguments;
            a.passes += first;
            a.results += first;
            const bool mixtures = a.components != 0;
            return launch(m, mixtures ? kExamineMixtures : kExamine, blocks, rows, kExamineThreads,
                          mixtures ? kMixtureTableBytes : 0, stream, a);
        });
    });
}

// Encodes one pass of every tile; passes are encoded last to first.
FASTCODEC_API int fastcodec_rans_cuda_encode(void* module, void* stream, EncodeArguments* arguments) {
    return on_device(module, [&](Module& m, const Device& device) -> int {
        EncodeArguments& a = *arguments;
        if (a.warp_count == 0) {
            return kStatusOk;
        }
        if (a.components != 0) {
            return launch_coder(m, device, for_components(kEncodeMixtures3, a.components), kMixtureThreads, 0,
                                {kMixtureTableBytes}, stream, a);
        }
        const bool skip = a.tables.skip != 0;
        return launch_coder(m, device, skip ? kEncodeSkip : kEncodeDense, kCoderThreads,
                            skip ? kEncodeQueueEntries * 4 : 0, {a.tables.costs - a.tables.cumulative, 0}, stream, a);
    });
}

// After all passes: measures and arranges the payloads. Their sizes are in the tiles' records then.
FASTCODEC_API int fastcodec_rans_cuda_arrange(void* module, void* stream, const PackArguments* arguments) {
    return on_device(module, [&](Module& m, const Device&) -> int {
        if (arguments->tile_count == 0) {
            return kStatusOk;
        }
        constexpr uint32_t kSums = kPackThreads / kWarpThreads * 4;
        if (int bad = launch(m, kMeasure, arguments->tile_count, 1, kPackThreads, kSums, stream, *arguments)) {
            return bad;
        }
        return launch(m, kArrange, 1, 1, kPackThreads, kSums, stream, *arguments);
    });
}

// And writes them: `out` has room for all.
FASTCODEC_API int fastcodec_rans_cuda_gather(void* module, void* stream, const PackArguments* arguments) {
    return on_device(module, [&](Module& m, const Device&) -> int {
        if (arguments->stream_count == 0) {
            return kStatusOk;
        }
        return launch(m, kGather, arguments->stream_count, 1, kPackThreads, 0, stream, *arguments);
    });
}
