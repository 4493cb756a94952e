// The CUDA mixture coder's host side: mixture.h's tables for a GPU, and the launches of cuda_mixture.cu's kernels.
// Plans, drivers and devices are cuda_host.cpp's own, so the two are one translation unit.

#include "cuda_host.cpp"

#include "cuda_mixture.h"

namespace {

// A mixture kernel by name, on a grid of blocks.
template <typename Arguments>
int launch_mixtures(const Module& module, const std::string& name, uint32_t blocks_x, uint32_t blocks_y,
                    uint32_t threads, void* stream, const Arguments& arguments) {
    CUkernel kernel = nullptr;
    if (int bad = checked(module, module.driver.library_kernel(&kernel, module.library, name.c_str()), name.c_str())) {
        return bad;
    }
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    return checked(module,
                   module.driver.launch(kernel, blocks_x, blocks_y, 1, threads, 1, 1, kMixtureTableBytes,
                                        static_cast<CUstream>(stream), parameters, nullptr),
                   name.c_str());
}

// One pass of every tile, by as many warps a block as spread over all multiprocessors.
template <typename Arguments>
int launch_coder(void* module, const std::string& name, uint32_t components, void* stream, Arguments& a) {
    return on_device(module, [&](Module& m, const Device& device) -> int {
        if (a.warp_count == 0) {
            return kStatusOk;
        }
        const Launch how = choose_launch(device, a.warp_count, kMixtureThreads, 0, {kMixtureTableBytes});
        a.warps_per_block = how.warps_per_block;
        return launch_mixtures(m, name + (components <= 3 ? "_3" : "_4"),
                               (a.warp_count + how.warps_per_block - 1) / how.warps_per_block, 1, how.threads, stream,
                               a);
    });
}

}  // namespace

// The tables that the kernels take: kMixtureTableEntries of them; without `out`, only their number.
FASTCODEC_API uint32_t fastcodec_rans_cuda_mixture_tables(uint32_t* out) {
    static constexpr MixtureTableValues values = make_mixture_tables();
    if (out != nullptr) {
        std::fill(out, out + kMixtureTableEntries, 0);
        std::copy(values.phi, values.phi + kPhiCount, out);
        std::copy(values.scales, values.scales + 256, out + kMixturePhiEntries);
    }
    return kMixtureTableEntries;
}

// fastcodec_rans_cuda_complete_passes for mixtures.
FASTCODEC_API int fastcodec_rans_cuda_complete_mixtures(uint32_t count, MixtureTilePass* passes) {
    for (uint32_t i = 0; i < count; ++i) {
        if (int bad = fastcodec_rans_cuda_complete_passes(1, passes + i)) {
            return bad;
        }
    }
    return kStatusOk;
}

// Decodes one pass of every tile, of this many components: all of `arguments` but how it is launched is set.
FASTCODEC_API int fastcodec_rans_cuda_decode_mixtures(void* module, void* stream, DecodeMixturesArguments* arguments,
                                                      int full, uint32_t components) {
    return launch_coder(module, std::string("fastcodec_rans_decode_mixtures_") + (full ? "full" : "mixed"), components,
                        stream, *arguments);
}

// Encodes one pass of every tile; passes are encoded last to first.
FASTCODEC_API int fastcodec_rans_cuda_encode_mixtures(void* module, void* stream, EncodeMixturesArguments* arguments,
                                                      uint32_t components) {
    return launch_coder(module, "fastcodec_rans_encode_mixtures", components, stream, *arguments);
}

// Examines one pass of every tile; the longest has `elements`. Results must be zero before.
FASTCODEC_API int fastcodec_rans_cuda_examine_mixtures(void* module, void* stream,
                                                       const ExamineMixturesArguments* arguments, uint32_t tiles,
                                                       uint64_t elements) {
    return on_device(module, [&](Module& m, const Device&) -> int {
        const uint32_t blocks = static_cast<uint32_t>((elements + kExamineBlock - 1) / kExamineBlock);
        if (blocks == 0 || tiles == 0) {
            return kStatusOk;
        }
        constexpr uint32_t kMostRows = 65535;  // of a grid
        ExamineMixturesArguments a = *arguments;
        for (uint32_t first = 0; first < tiles; first += kMostRows) {
            a.passes = arguments->passes + first;
            a.results = arguments->results + first;
            if (int bad = launch_mixtures(m, "fastcodec_rans_examine_mixtures", blocks,
                                          std::min(tiles - first, kMostRows), kExamineThreads, stream, a)) {
                return bad;
            }
        }
        return kStatusOk;
    });
}
