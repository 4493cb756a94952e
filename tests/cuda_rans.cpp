// Runs the coder's unchanged CUDA kernels in the host shim (cuda_shim/) beside the CPU coder, and insists that both
// write the same bytes, read each other's, and agree on damaged ones: on every symbol and on the error. Meant to be
// built with AddressSanitizer and UndefinedBehaviorSanitizer: every buffer that a kernel gets is an allocation of its
// exact size.
//
//     cuda_rans [cases] [seed] [mixed]
//
// mixed: tiles have passes of mixtures besides indexed ones. The same seed gives the same cases. On a disagreement it
// names the case and returns 1.

#include "rans_cases.h"

#include "cuda_device.h"

namespace {

struct Gpu {
    void* module = nullptr;
    std::vector<std::pair<const TableSet*, UploadedTables>> tables;

    // The tables that a pass is coded with, uploaded at their first use.
    const gpu::DeviceTables& tables_of(const PassData& pass) {
        for (const auto& [set, uploaded] : tables) {
            if (set == pass.tables) {
                return uploaded.layout;
            }
        }
        tables.emplace_back(
            pass.tables, pass.tables != nullptr ? upload(*pass.tables) : upload_by(fastcodec_rans_cuda_mixture_tables));
        return tables.back().second.layout;
    }
};

// What the reconstructing kernels write besides symbols, one position after the other in the tile's raster.
struct Reconstruction {
    std::vector<int16_t> means;
    std::vector<float> gains;
    uint32_t width;
    uint32_t height;
    uint32_t value_stride;
    uint32_t row_stride;
    uint32_t column_stride;
    uint32_t parity;

    Reconstruction(Random& random, const PassData& pass) : means(pass.symbols.size()), gains(pass.channels), height(1) {
        parity = random.below(2);
        width = 1 + random.below(9);
        // The least height that has as many positions of this parity.
        while ((static_cast<uint64_t>(height) * width + 1 - parity) / 2 < pass.positions) {
            ++height;
        }
        // Values and latents may be some channels of more.
        value_stride = pass.channels + random.below(3);
        column_stride = pass.channels + random.below(3);
        row_stride = width * column_stride + random.below(30);
        for (int16_t& mean : means) {
            mean = static_cast<int16_t>(random.next());
        }
        for (float& gain : gains) {
            gain = static_cast<float>(1 + random.below(100)) / 16;
        }
    }

    void check(const PassData& pass, const gpu::TilePass& described) const {
        const auto* symbols = static_cast<const int16_t*>(described.symbols);
        std::vector<float> expected(static_cast<size_t>(height) * row_stride, -1);
        uint64_t position = 0;
        for (uint32_t row = 0; row < height; ++row) {
            for (uint32_t column = 0; column < width; ++column) {
                if ((row + column) % 2 != parity || position == pass.positions) {
                    continue;
                }
                for (uint32_t c = 0; c < pass.channels; ++c) {
                    const uint64_t e = position * pass.channels + c;
                    const int32_t value = symbols[e] * 16 + means[e];
                    if (described.values[position * value_stride + c] != value) {
                        std::printf("a value is not symbol and mean\n");
                        fail();
                    }
                    expected[static_cast<size_t>(row) * row_stride + column * column_stride + c] =
                        static_cast<float>(value) * gains[c];
                }
                ++position;
            }
        }
        if (!std::equal(expected.begin(), expected.end(), static_cast<const float*>(described.latents))) {
            std::printf("latents are not where or what they must be\n");
            fail();
        }
    }
};

// The passes p of all tiles in device memory.
struct DevicePasses {
    std::vector<std::shared_ptr<void>> memory;
    std::vector<gpu::TilePass> described;
    std::vector<Reconstruction> restored;
    const gpu::TilePass* records = nullptr;
    gpu::DeviceTables tables;
    uint32_t components = 0;  // of a tile at the most
    uint64_t elements = 0;    // of a tile at the most

    DevicePasses(Gpu& device, const std::vector<Tile>& tiles, size_t p) : tables(device.tables_of(tiles[0][p])) {
        for (const Tile& tile : tiles) {
            const PassData& pass = tile[p];
            gpu::TilePass d{};
            d.positions = static_cast<uint32_t>(pass.positions);
            d.channels.value = static_cast<uint32_t>(pass.channels);
            d.symbol_bytes = 2;
            d.components = pass.components;
            if (pass.components == 0) {
                d.indexes = put(pass.indexes);
            } else {
                d.weights = put(pass.weights);
                d.scales = put(pass.scales);
                d.means = put(pass.means);
            }
            components = std::max(components, pass.components);
            elements = std::max<uint64_t>(elements, pass.symbols.size());
            described.push_back(d);
        }
    }

    template <typename T>
    T* put(const std::vector<T>& values) {
        const auto buffer = std::make_shared<Buffer<T>>(values);
        memory.push_back(buffer);
        return buffer->get();
    }

    template <typename T>
    T* room(size_t n) {
        const auto buffer = std::make_shared<Buffer<T>>(n);
        memory.push_back(buffer);
        return buffer->get();
    }

    void put_symbols(const std::vector<Tile>& tiles, size_t p, bool wide) {
        for (size_t t = 0; t < tiles.size(); ++t) {
            const std::vector<int16_t>& symbols = tiles[t][p].symbols;
            if (wide) {
                described[t].symbols = put(std::vector<int32_t>(symbols.begin(), symbols.end()));
                described[t].symbol_bytes = 4;
            } else {
                described[t].symbols = put(symbols);
            }
        }
    }

    void make_room(Random& random, const std::vector<Tile>& tiles, size_t p, bool reconstruct) {
        for (size_t t = 0; t < tiles.size(); ++t) {
            const PassData& pass = tiles[t][p];
            gpu::TilePass& d = described[t];
            d.symbols = room<int16_t>(pass.symbols.size());
            if (!reconstruct) {
                continue;
            }
            const Reconstruction& r = restored.emplace_back(random, pass);
            d.means = put(r.means);
            d.values = room<int32_t>(static_cast<size_t>(pass.positions) * r.value_stride);
            d.latents = put(std::vector<float>(static_cast<size_t>(r.height) * r.row_stride, -1));
            d.gain = put(r.gains);
            d.width.value = r.width;
            d.value_stride = r.value_stride;
            d.row_stride = r.row_stride;
            d.column_stride = r.column_stride;
            d.parity = r.parity;
            d.mean_bits = 4;
            d.latent_type = gpu::kFloat32;
        }
    }

    void upload(const std::vector<uint32_t>& streams) {
        for (size_t t = 0; t < streams.size(); ++t) {
            described[t].streams = streams[t];
        }
        check(fastcodec_rans_cuda_complete_passes(static_cast<uint32_t>(described.size()), described.data()),
              "complete");
        records = put(described);
    }
};

// How the tiles are coded; 0 lanes or streams: as the preset says.
struct Shape {
    uint32_t lanes;
    uint32_t streams;
    uint32_t preset;
};

// What each tile costs by the kernels' estimate.
std::vector<uint64_t> examine(Gpu& device, const std::vector<DevicePasses>& passes, uint32_t count) {
    std::vector<uint64_t> costs(count, 0);
    for (const DevicePasses& pass : passes) {
        const Buffer<gpu::Examination> results(std::vector<gpu::Examination>(count, gpu::Examination{}));
        const gpu::ExamineArguments a{pass.tables, pass.records, results.get(), 0, pass.components};
        check(fastcodec_rans_cuda_examine(device.module, nullptr, &a, count, pass.elements), "examine");
        for (uint32_t t = 0; t < count; ++t) {
            if (results.get()[t].faults != 0) {
                std::printf("a fault in a good pass\n");
                fail();
            }
            costs[t] += results.get()[t].cost;
        }
    }
    return costs;
}

// The payloads of tiles that all have as many passes; passes of equal number are of one kind, as `decode` wants them.
std::vector<Payload> encode_by_gpu(Gpu& device, const std::vector<Tile>& tiles, const Shape& shape, bool wide) {
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    std::vector<DevicePasses> passes;
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        passes.emplace_back(device, tiles, p);
        passes.back().put_symbols(tiles, p, wide);
        passes.back().upload(std::vector<uint32_t>(count, 1));
    }
    const std::vector<uint64_t> costs = examine(device, passes, count);
    std::vector<uint32_t> lanes(count, shape.lanes);
    std::vector<uint32_t> streams(count, shape.streams);
    std::vector<uint32_t> begins{0};
    std::vector<uint64_t> positions;
    std::vector<uint64_t> channels;
    for (uint32_t t = 0; t < count; ++t) {
        uint64_t most = 0;
        for (const PassData& pass : tiles[t]) {
            positions.push_back(pass.positions);
            channels.push_back(pass.channels);
            most = std::max(most, pass.positions);
        }
        begins.push_back(static_cast<uint32_t>(positions.size()));
        fastcodec_rans_cuda_shape(costs[t], most, shape.preset, &lanes[t], &streams[t]);
    }
    void* handle = nullptr;
    check(fastcodec_rans_cuda_plan_encode(count, begins.data(), positions.data(), channels.data(), lanes.data(),
                                          streams.data(), &handle),
          "plan");
    const Plan plan(handle);
    const Buffer<uint16_t> scratch(plan.scratch_units());
    for (auto pass = passes.rbegin(); pass != passes.rend(); ++pass) {
        pass->upload(streams);
        gpu::EncodeArguments a{};
        a.tables = pass->tables;
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.scratch = scratch.get();
        a.passes = pass->records;
        a.warp_count = plan.warp_count();
        a.components = pass->components;
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
    std::vector<Payload> payloads;
    for (uint32_t t = 0; t < count; ++t) {
        const uint8_t* begin = out.get() + pack.tiles[t].offset;
        payloads.emplace_back(begin, begin + pack.tiles[t].size);
    }
    return payloads;
}

// The CPU's outcome but for the errors of each pass: the GPU tells the last of them only, and at the end.
Outcome decode_by_cpu(const std::vector<Payload>& payloads, const std::vector<Tile>& tiles) {
    Outcome outcome = decode(payloads, tiles, 1, 0);
    outcome.errors.clear();
    return outcome;
}

Outcome decode_by_gpu(Gpu& device, Random& random, const std::vector<Payload>& payloads, const std::vector<Tile>& tiles,
                      bool reconstruct) {
    Outcome outcome;
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    std::vector<const uint8_t*> data;
    std::vector<size_t> sizes;
    for (const Payload& payload : payloads) {
        data.push_back(payload.data());
        sizes.push_back(payload.size());
    }
    void* handle = nullptr;
    check(fastcodec_rans_cuda_plan_decode(count, data.data(), sizes.data(), static_cast<int>(random.below(2)),
                                          &outcome.start, &outcome.tile, &handle),
          "plan");
    if (outcome.start != 0) {
        return outcome;
    }
    const Plan plan(handle);
    std::vector<uint32_t> streams(count, 0);
    for (uint32_t t = 0; t < count; ++t) {
        uint32_t lanes = 0;
        fastcodec_rans_cuda_plan_shape(handle, t, &lanes, &streams[t]);
    }
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        DevicePasses passes(device, tiles, p);
        passes.make_room(random, tiles, p, reconstruct);
        passes.upload(streams);
        gpu::DecodeArguments a{};
        a.tables = passes.tables;
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.payloads = plan.rest<uint16_t>();
        a.passes = passes.records;
        a.warp_count = plan.warp_count();
        a.components = passes.components;
        check(fastcodec_rans_cuda_decode(device.module, nullptr, &a, plan.full(), reconstruct ? count : 0,
                                         reconstruct ? passes.elements : 0),
              "decode");
        outcome.symbols.emplace_back();
        for (uint32_t t = 0; t < count; ++t) {
            const auto* values = static_cast<const int16_t*>(passes.described[t].symbols);
            outcome.symbols.back().emplace_back(values, values + tiles[t][p].symbols.size());
            if (reconstruct) {
                passes.restored[t].check(tiles[t][p], passes.described[t]);
            }
        }
    }
    const gpu::FinishArguments finish{plan.streams(), plan.states(), plan.lanes(), plan.stream_count(), 0};
    check(fastcodec_rans_cuda_finish(device.module, nullptr, &finish), "finish");
    outcome.end = fastcodec_rans_cuda_plan_error(plan.handle(), plan.streams(), &outcome.tile);
    return outcome;
}

enum Kind { kUniform, kSkewed, kAllSkipped, kEscapeHeavy, kEmpty, kKinds, kMixed = kKinds };
constexpr const char* kKindNames[] = {"uniform",           "skewed",       "all skipped", "escape-heavy",
                                      "with empty passes", "with mixtures"};

std::vector<Tile> make_tiles(Random& random, const std::vector<TableSet>& sets, Kind kind) {
    std::vector<Tile> tiles(1 + random.below(4) / 2 + random.below(2));
    const uint32_t passes = 1 + random.below(3);
    std::vector<const TableSet*> tables;
    for (uint32_t p = 0; p < passes; ++p) {
        tables.push_back(kind == kAllSkipped ? &sets[0] : &sets[random.below(sets.size())]);
    }
    for (Tile& tile : tiles) {
        for (const TableSet* set : tables) {
            const bool empty = kind == kEmpty && random.below(2) == 0;
            const uint64_t positions = empty ? 0 : random.below(random.below(4) == 0 ? 120 : 24);
            const uint64_t channels = 1 + random.below(24);
            const uint32_t used = kind == kAllSkipped ? 1 : 1 + random.below(set->sizes.size());
            const uint32_t escapes = kind == kEscapeHeavy ? 20 + random.below(80) : random.below(4) == 0 ? 2 : 0;
            tile.push_back(make_pass(random, *set, positions, channels, escapes, used, kind == kSkewed));
        }
    }
    return tiles;
}

std::vector<Tile> make_mixed_tiles(Random& random, const TableSet& set) {
    std::vector<Tile> tiles(1 + random.below(3));
    for (uint32_t p = 1 + random.below(3); p > 0; --p) {
        const uint32_t most = random.below(5);
        for (Tile& tile : tiles) {
            tile.push_back(most == 0 ? make_pass(random, set) : make_mixture(random, 1 + random.below(most)));
        }
    }
    return tiles;
}

// Damages some of the payloads.
std::vector<Payload> damaged(Random& random, const std::vector<Payload>& payloads) {
    std::vector<Payload> bad = payloads;
    for (uint32_t n = 1 + random.below(3); n > 0; --n) {
        Payload& victim = bad[random.below(bad.size())];
        if (random.below(6) == 0) {
            victim = forge(random);
        } else {
            mutate(random, victim, payloads[random.below(payloads.size())]);
        }
        if (victim.size() % 2 != payloads[0].size() % 2 && !victim.empty() && random.below(8) != 0) {
            victim.pop_back();
        }
    }
    return bad;
}

// Makes an index name no table, or weights wrong, where a pass has some. Returns the error that this is, or 0.
uint32_t lead_astray(Random& random, PassData& pass) {
    if (!pass.weights.empty()) {
        uint16_t& weight = pass.weights[random.below(pass.weights.size())];
        weight = static_cast<uint16_t>(weight + 1 + random.below(65535));
        return fastcodec::rans::kWeightsWrong;
    }
    if (!pass.indexes.empty() && pass.tables->sizes.size() < 256) {
        pass.indexes[random.below(pass.indexes.size())] = static_cast<uint8_t>(255 - random.below(3));
        return fastcodec::rans::kIndexRange;
    }
    return 0;
}

struct Counts {
    uint32_t kinds[kMixed + 1] = {};
    uint32_t errors[32] = {};  // of damaged payloads
    uint32_t lanes[6] = {};    // of the first tile
    uint32_t lost_indexes = 0;
    uint32_t wrong_weights = 0;

    void print(bool mixed) const {
        for (int k = mixed ? kMixed : 0; k < (mixed ? kMixed + 1 : kKinds); ++k) {
            std::printf("%6u %s\n", kinds[k], kKindNames[k]);
        }
        std::printf("first tile's lanes, 1 to 32: %u %u %u %u %u %u\n", lanes[0], lanes[1], lanes[2], lanes[3],
                    lanes[4], lanes[5]);
        std::printf("indexes of no table found: %u; damaged payloads:\n%6u no error\n", lost_indexes, errors[0]);
        for (uint32_t e = 1; e <= fastcodec::rans::kEscapesLeft; ++e) {
            std::printf("%6u %s\n", errors[e], fastcodec_rans_error_text(e));
        }
        if (mixed) {
            std::printf("%6u wrong weights\n", wrong_weights);
        }
    }
};

void run_case(Gpu& device, Random& random, const std::vector<TableSet>& sets, Kind kind, Counts& counts) {
    const std::vector<Tile> tiles = kind == kMixed ? make_mixed_tiles(random, sets[0]) : make_tiles(random, sets, kind);
    const bool automatic = random.below(6) == 0;
    const uint32_t lanes = automatic ? 0 : 1u << random.below(6);
    const uint32_t streams = automatic ? 0 : 1 + random.below(random.below(4) == 0 ? 64 : 5);
    const Shape shape{lanes, streams, random.below(2)};
    const auto fail_with = [&](const char* what, const Outcome& found) {
        std::printf("%s, %u lanes, %u streams: %s (errors %u, %u in tile %u)\n", kKindNames[kind], lanes, streams, what,
                    found.start, found.end, found.tile);
        fail();
    };
    const std::vector<Payload> payloads = encode_by_gpu(device, tiles, shape, random.below(4) == 0);
    const auto reconstructs = [&] { return kind != kMixed && random.below(4) == 0; };
    const bool reconstruct = reconstructs();
    Outcome good;
    good.symbols.resize(tiles[0].size());
    for (size_t t = 0; t < tiles.size(); ++t) {
        if (encode(tiles[t], lanes, streams, 0, shape.preset) != payloads[t]) {
            fail_with("other bytes", good);
        }
        for (size_t p = 0; p < tiles[t].size(); ++p) {
            good.symbols[p].push_back(tiles[t][p].symbols);
        }
    }
    const Outcome read = decode_by_gpu(device, random, payloads, tiles, reconstruct);
    if (read != good || decode_by_cpu(payloads, tiles) != good) {
        fail_with("no round trip", read);
    }
    ++counts.kinds[kind];
    ++counts.lanes[payloads[0][0]];
    const std::vector<Payload> bad = damaged(random, payloads);
    const Outcome by_cpu = decode_by_cpu(bad, tiles);
    if (by_cpu != decode_by_gpu(device, random, bad, tiles, reconstructs())) {
        fail_with("damaged, and the twins disagree", by_cpu);
    }
    ++counts.errors[(by_cpu.start != 0 ? by_cpu.start : by_cpu.end) & 31];
    std::vector<Tile> astray = tiles;
    const uint32_t victim = random.below(astray.size());
    if (const uint32_t error = lead_astray(random, astray[victim][random.below(astray[victim].size())])) {
        const Outcome lost = decode_by_gpu(device, random, payloads, astray, false);
        if (lost.end != error || lost.tile != victim) {
            fail_with("an index that names no table, or wrong weights, are not found", lost);
        }
        ++(error == fastcodec::rans::kWeightsWrong ? counts.wrong_weights : counts.lost_indexes);
    }
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments(argc, argv, 2000);
    const bool mixed = arguments.kind == "mixed";
    Random& random = arguments.random;
    const std::vector<TableSet> sets = make_sets(random);
    Gpu device;
    check(fastcodec_rans_cuda_open("", &device.module), "open");
    check(fastcodec_rans_cuda_load(device.module, "the shim has its kernels"), "load");
    Counts counts;
    for (uint32_t c = 0; c < arguments.cases; ++c) {
        cuda_shim_schedule(static_cast<int>(c % 3), random.next());
        run_case(device, random, sets, mixed ? kMixed : static_cast<Kind>(c % kKinds), counts);
    }
    // Of a pass this long the shape follows from a sample, which must be the same to the element.
    const std::vector<Tile> large{{make_mixture(random, 3, 700, 100)}};
    if (mixed && encode_by_gpu(device, large, {0, 0, 1}, false)[0] != encode(large[0], 0, 0, 0, 1)) {
        std::printf("a sampled pass: other bytes\n");
        fail();
    }
    counts.print(mixed);
    for (const TableSet& set : sets) {
        fastcodec_rans_tables_free(set.handle);
    }
    fastcodec_rans_cuda_close(device.module);
    return 0;
}
