// Runs the mixture coder's CUDA kernels in the host shim (cuda_shim/) beside the CPU coder, and insists that both write
// the same bytes, read each other's, and agree on damaged ones: on every symbol and on the error. Tiles mix indexed
// passes and passes of mixtures. Meant to be built with AddressSanitizer and UndefinedBehaviorSanitizer: every buffer
// that a kernel gets is an allocation of its exact size.
//
//     cuda_mixture [cases] [seed]
//
// The same seed gives the same cases. On a disagreement it names the case and returns 1.

#include "mixture_cases.h"

#include "cuda_device.h"

namespace {

// All passes p of the tiles are of one kind: indexed by the one table set, or mixtures.
using Tile = std::vector<MixedPass>;

struct Gpu {
    void* module = nullptr;
    UploadedTables indexed{};
    UploadedTables mixtures = upload_by(fastcodec_rans_cuda_mixture_tables);

    const gpu::DeviceTables& tables(uint32_t components) const { return (components == 0 ? indexed : mixtures).layout; }
};

// One pass of all tiles in device memory.
struct DevicePasses {
    uint32_t components;
    std::vector<Buffer<uint8_t>> bytes;
    std::vector<Buffer<int16_t>> shorts;
    std::vector<Buffer<uint16_t>> weights;
    std::vector<gpu::TilePass> described;
    std::unique_ptr<Buffer<gpu::TilePass>> records;
    uint64_t most = 0;  // elements of a tile

    DevicePasses(const std::vector<Tile>& tiles, size_t p, const std::vector<uint32_t>& streams, bool symbols)
        : components(0) {
        for (size_t t = 0; t < tiles.size(); ++t) {
            const MixedPass& pass = tiles[t][p];
            gpu::TilePass d{};
            d.positions = static_cast<uint32_t>(pass.data.positions);
            d.channels.value = static_cast<uint32_t>(pass.data.channels);
            d.streams = streams[t];
            d.symbol_bytes = 2;
            d.components = pass.components;
            components = std::max(components, pass.components);
            symbols ? shorts.emplace_back(pass.data.symbols) : shorts.emplace_back(pass.data.symbols.size());
            d.symbols = shorts.back().get();
            if (pass.components == 0) {
                bytes.emplace_back(pass.data.indexes);
                d.indexes = bytes.back().get();
            } else {
                weights.emplace_back(pass.weights);
                d.weights = weights.back().get();
                bytes.emplace_back(pass.scales);
                d.scales = bytes.back().get();
                shorts.emplace_back(pass.means);
                d.means = shorts.back().get();
            }
            most = std::max<uint64_t>(most, pass.data.symbols.size());
            described.push_back(d);
        }
        check(fastcodec_rans_cuda_complete_passes(static_cast<uint32_t>(tiles.size()), described.data()), "complete");
        records = std::make_unique<Buffer<gpu::TilePass>>(described);
    }
};

std::vector<std::vector<uint8_t>> encode_by_gpu(Gpu& device, const std::vector<Tile>& tiles, uint32_t lanes,
                                                uint32_t streams, uint32_t preset) {
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    const size_t passes = tiles[0].size();
    std::vector<uint32_t> tile_lanes(count, lanes);
    std::vector<uint32_t> tile_streams(count, streams);
    std::vector<uint64_t> costs(count, 0);
    for (size_t p = 0; p < passes; ++p) {
        const DevicePasses on_device(tiles, p, std::vector<uint32_t>(count, 1), true);
        const Buffer<gpu::Examination> results(std::vector<gpu::Examination>(count, gpu::Examination{}));
        const gpu::ExamineArguments a{device.tables(on_device.components), on_device.records->get(), results.get(), 0,
                                      on_device.components};
        check(fastcodec_rans_cuda_examine(device.module, nullptr, &a, count, on_device.most), "examine");
        for (uint32_t t = 0; t < count; ++t) {
            if (results.get()[t].faults != 0) {
                std::printf("a fault in a good pass\n");
                fail();
            }
            costs[t] += results.get()[t].cost;
        }
    }
    std::vector<uint32_t> begins{0};
    std::vector<uint64_t> positions;
    std::vector<uint64_t> channels;
    for (uint32_t t = 0; t < count; ++t) {
        uint64_t most = 0;
        for (const MixedPass& pass : tiles[t]) {
            positions.push_back(pass.data.positions);
            channels.push_back(pass.data.channels);
            most = std::max(most, pass.data.positions);
        }
        begins.push_back(static_cast<uint32_t>(positions.size()));
        fastcodec_rans_cuda_shape(costs[t], most, preset, &tile_lanes[t], &tile_streams[t]);
    }
    void* handle = nullptr;
    check(fastcodec_rans_cuda_plan_encode(count, begins.data(), positions.data(), channels.data(), tile_lanes.data(),
                                          tile_streams.data(), &handle),
          "plan");
    const Plan plan(handle);
    const Buffer<uint16_t> scratch(plan.scratch_units());
    for (size_t p = passes; p-- > 0;) {
        const DevicePasses on_device(tiles, p, tile_streams, true);
        gpu::EncodeArguments a{};
        a.tables = device.tables(on_device.components);
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.scratch = scratch.get();
        a.passes = on_device.records->get();
        a.warp_count = plan.warp_count();
        a.components = on_device.components;
        check(fastcodec_rans_cuda_encode(device.module, nullptr, &a), "encode");
    }
    const Buffer<gpu::StreamOffsets> offsets(plan.stream_count());
    gpu::PackArguments pack{plan.streams(), plan.states(), scratch.get(), plan.rest<gpu::TilePayload>(),
                            offsets.get(),  nullptr,       count,         plan.stream_count()};
    check(fastcodec_rans_cuda_arrange(device.module, nullptr, &pack), "arrange");
    const gpu::TilePayload& last = pack.tiles[count - 1];
    const Buffer<uint8_t> out(last.offset + last.size);
    pack.out = out.get();
    check(fastcodec_rans_cuda_gather(device.module, nullptr, &pack), "gather");
    std::vector<std::vector<uint8_t>> payloads;
    for (uint32_t t = 0; t < count; ++t) {
        const uint8_t* begin = out.get() + pack.tiles[t].offset;
        payloads.emplace_back(begin, begin + pack.tiles[t].size);
    }
    return payloads;
}

struct Result {
    uint32_t start = 0;
    uint32_t end = 0;
    uint32_t tile = 0;
    std::vector<std::vector<std::vector<int16_t>>> symbols;  // of each tile and pass
    bool operator==(const Result&) const = default;
};

// The first failing tile's error, as the GPU tells it.
Result decode_by_cpu(const std::vector<std::vector<uint8_t>>& payloads, const std::vector<Tile>& tiles) {
    Result result;
    for (uint32_t t = 0; t < tiles.size(); ++t) {
        const Outcome outcome = decode(payloads[t], tiles[t], 1, 0);
        if (outcome.start != 0) {
            return {outcome.start, 0, t, {}};
        }
        if (outcome.end != 0 && result.end == 0) {
            result.end = outcome.end;
            result.tile = t;
        }
        result.symbols.push_back(outcome.symbols);
    }
    return result;
}

Result decode_by_gpu(Gpu& device, Random& random, const std::vector<std::vector<uint8_t>>& payloads,
                     const std::vector<Tile>& tiles) {
    Result result;
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    std::vector<const uint8_t*> data;
    std::vector<size_t> sizes;
    for (const std::vector<uint8_t>& payload : payloads) {
        data.push_back(payload.data());
        sizes.push_back(payload.size());
    }
    void* handle = nullptr;
    check(fastcodec_rans_cuda_plan_decode(count, data.data(), sizes.data(), static_cast<int>(random.below(2)),
                                          &result.start, &result.tile, &handle),
          "plan");
    if (result.start != 0) {
        return result;
    }
    const Plan plan(handle);
    std::vector<uint32_t> streams(count, 0);
    for (uint32_t t = 0; t < count; ++t) {
        uint32_t lanes = 0;
        fastcodec_rans_cuda_plan_shape(handle, t, &lanes, &streams[t]);
    }
    result.symbols.resize(count);
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        const DevicePasses on_device(tiles, p, streams, false);
        gpu::DecodeArguments a{};
        a.tables = device.tables(on_device.components);
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.payloads = plan.rest<uint16_t>();
        a.passes = on_device.records->get();
        a.warp_count = plan.warp_count();
        a.components = on_device.components;
        check(fastcodec_rans_cuda_decode(device.module, nullptr, &a, plan.full(), 0, 0), "decode");
        for (uint32_t t = 0; t < count; ++t) {
            const int16_t* values = static_cast<const int16_t*>(on_device.described[t].symbols);
            result.symbols[t].emplace_back(values, values + tiles[t][p].data.symbols.size());
        }
    }
    const gpu::FinishArguments finish{plan.streams(), plan.states(), plan.lanes(), plan.stream_count(), 0};
    check(fastcodec_rans_cuda_finish(device.module, nullptr, &finish), "finish");
    result.end = fastcodec_rans_cuda_plan_error(plan.handle(), plan.streams(), &result.tile);
    return result;
}

std::vector<Tile> make_tiles(Random& random, const TableSet& set) {
    std::vector<Tile> tiles(1 + random.below(3));
    for (uint32_t p = 1 + random.below(3); p > 0; --p) {
        const uint32_t most = random.below(5);
        for (Tile& tile : tiles) {
            tile.push_back(most == 0 ? MixedPass{make_pass(random, set), 0, {}, {}, {}}
                                     : make_mixture(random, 1 + random.below(most)));
        }
    }
    return tiles;
}

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    const uint32_t cases = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 2000;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::printf("cuda_mixture: seed %llu, %u cases\n", static_cast<unsigned long long>(seed), cases);
    Random random{seed};
    TableSet set = make_tables(random, 64, true, 40);
    Gpu device;
    check(fastcodec_rans_cuda_open("", &device.module), "open");
    check(fastcodec_rans_cuda_load(device.module, "the shim has its kernels"), "load");
    device.indexed = upload(set);
    uint32_t errors[32] = {};
    uint32_t shapes[6] = {};
    uint32_t wrong_weights = 0;
    for (uint32_t c = 0; c < cases; ++c) {
        cuda_shim_schedule(static_cast<int>(c % 3), random.next());
        const std::vector<Tile> tiles = make_tiles(random, set);
        const bool automatic = random.below(6) == 0;
        const uint32_t lanes = automatic ? 0 : 1u << random.below(6);
        const uint32_t streams = automatic ? 0 : 1 + random.below(random.below(4) == 0 ? 64 : 5);
        const uint32_t preset = random.below(2);
        const std::vector<std::vector<uint8_t>> payloads = encode_by_gpu(device, tiles, lanes, streams, preset);
        Result good;
        for (size_t t = 0; t < tiles.size(); ++t) {
            if (encode(tiles[t], lanes, streams, 0, preset) != payloads[t]) {
                std::printf("case %u (%u lanes, %u streams): other bytes\n", c, lanes, streams);
                fail();
            }
            good.symbols.emplace_back();
            for (const MixedPass& pass : tiles[t]) {
                good.symbols.back().push_back(pass.data.symbols);
            }
        }
        ++shapes[payloads[0][0]];
        if (decode_by_gpu(device, random, payloads, tiles) != good || decode_by_cpu(payloads, tiles) != good) {
            std::printf("case %u (%u lanes, %u streams): no round trip\n", c, lanes, streams);
            fail();
        }
        std::vector<std::vector<uint8_t>> bad = payloads;
        for (uint32_t n = 1 + random.below(3); n > 0; --n) {
            std::vector<uint8_t>& victim = bad[random.below(bad.size())];
            if (random.below(6) == 0) {
                victim = forge(random);
            } else {
                mutate(random, victim, payloads[random.below(payloads.size())]);
            }
            if (victim.size() % 2 != payloads[0].size() % 2 && !victim.empty() && random.below(8) != 0) {
                victim.pop_back();
            }
        }
        const Result by_cpu = decode_by_cpu(bad, tiles);
        if (by_cpu != decode_by_gpu(device, random, bad, tiles)) {
            std::printf("case %u (%u lanes, %u streams), damaged: the twins disagree\n", c, lanes, streams);
            fail();
        }
        ++errors[(by_cpu.start != 0 ? by_cpu.start : by_cpu.end) & 31];
        std::vector<Tile> astray = tiles;
        const uint32_t victim = random.below(astray.size());
        MixedPass& pass = astray[victim][random.below(astray[victim].size())];
        if (!pass.weights.empty()) {
            uint16_t& weight = pass.weights[random.below(pass.weights.size())];
            weight = static_cast<uint16_t>(weight + 1 + random.below(65535));
            const Result lost = decode_by_gpu(device, random, payloads, astray);
            if (lost.end != fastcodec::rans::kWeightsWrong || lost.tile != victim) {
                std::printf("case %u: wrong weights gave error %u in tile %u\n", c, lost.end, lost.tile);
                fail();
            }
            ++wrong_weights;
        }
    }
    // Of a pass this long the shape follows from a sample, which must be the same to the element.
    const std::vector<Tile> large{{make_mixture(random, 3, 700, 100)}};
    if (encode_by_gpu(device, large, 0, 0, 1)[0] != encode(large[0], 0, 0, 0, 1)) {
        std::printf("a sampled pass: other bytes\n");
        fail();
    }
    std::printf("first tile's lanes, 1 to 32: %u %u %u %u %u %u\n", shapes[0], shapes[1], shapes[2], shapes[3],
                shapes[4], shapes[5]);
    std::printf("%6u no error\n", errors[0]);
    for (uint32_t e = 1; e <= fastcodec::rans::kEscapesLeft; ++e) {
        std::printf("%6u %s\n", errors[e], fastcodec_rans_error_text(e));
    }
    std::printf("%6u wrong weights\n", wrong_weights);
    fastcodec_rans_tables_free(set.handle);
    fastcodec_rans_cuda_close(device.module);
    return 0;
}
