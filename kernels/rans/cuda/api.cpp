// The CUDA coder's launches behind a plain C interface; driver.cpp, device_tables.cpp and plan.cpp have the rest of it.
// It knows no PyTorch. All memory is the caller's. Every function that can fail returns a Status, and throws nothing.

#include <algorithm>
#include <vector>

#include "driver.h"
#include "layout.h"

using namespace fastcodec::rans;
using namespace fastcodec::rans::cuda;

namespace {

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

}  // namespace

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
