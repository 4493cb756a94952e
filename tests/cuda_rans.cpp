// Runs the coder's unchanged CUDA kernels in the host shim (cuda_shim/) beside the CPU coder, and insists that both
// write the same bytes, read each other's, and agree on damaged ones: on every symbol and on the error. Meant to be
// built with AddressSanitizer and UndefinedBehaviorSanitizer: every buffer that a kernel gets is an allocation of its
// exact size.
//
//     cuda_rans [cases] [seed]
//
// The same seed gives the same cases. On a disagreement it names the case and returns 1.

#include <string>

#include "rans_cases.h"

#include "cuda_device.h"

namespace {

using Tile = std::vector<PassData>;

struct Gpu {
    void* module = nullptr;
    std::vector<std::pair<const TableSet*, UploadedTables>> tables;

    const UploadedTables& device_tables(const TableSet* set) {
        for (const auto& [known, uploaded] : tables) {
            if (known == set) {
                return uploaded;
            }
        }
        tables.emplace_back(set, upload(*set));
        return tables.back().second;
    }
};

gpu::TilePass describe(const PassData& pass, uint32_t streams) {
    gpu::TilePass out{};
    out.positions = static_cast<uint32_t>(pass.positions);
    out.streams = streams;
    out.channels.value = static_cast<uint32_t>(pass.channels);
    out.symbol_bytes = 2;
    return out;
}

// The payloads of tiles that all have as many passes, pass p of all with the same tables.
std::vector<std::vector<uint8_t>> encode_by_gpu(Gpu& device, const std::vector<Tile>& tiles, uint32_t lanes,
                                                uint32_t streams, uint32_t preset, bool wide) {
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    const size_t passes = tiles[0].size();
    std::vector<std::vector<gpu::TilePass>> described(passes);
    std::vector<Buffer<uint8_t>> indexes;
    std::vector<Buffer<int16_t>> narrow;
    std::vector<Buffer<int32_t>> wider;
    std::vector<uint32_t> begins{0};
    std::vector<uint64_t> positions;
    std::vector<uint64_t> channels;
    for (const Tile& tile : tiles) {
        for (size_t p = 0; p < passes; ++p) {
            gpu::TilePass pass = describe(tile[p], 1);
            indexes.emplace_back(tile[p].indexes);
            pass.indexes = indexes.back().get();
            if (wide) {
                wider.emplace_back(std::vector<int32_t>(tile[p].symbols.begin(), tile[p].symbols.end()));
                pass.symbols = wider.back().get();
                pass.symbol_bytes = 4;
            } else {
                narrow.emplace_back(tile[p].symbols);
                pass.symbols = narrow.back().get();
            }
            described[p].push_back(pass);
            positions.push_back(tile[p].positions);
            channels.push_back(tile[p].channels);
        }
        begins.push_back(begins.back() + static_cast<uint32_t>(passes));
    }
    std::vector<uint32_t> tile_lanes(count, lanes);
    std::vector<uint32_t> tile_streams(count, streams);
    std::vector<uint64_t> costs(count, 0);
    for (size_t p = 0; p < passes; ++p) {
        check(fastcodec_rans_cuda_complete_passes(count, described[p].data()), "complete");
        uint64_t most = 0;
        for (uint32_t t = 0; t < count; ++t) {
            most = std::max(most, positions[t * passes + p] * channels[t * passes + p]);
        }
        const Buffer<gpu::TilePass> on_device(described[p]);
        const Buffer<gpu::Examination> results(std::vector<gpu::Examination>(count, gpu::Examination{}));
        gpu::ExamineArguments a{};
        a.tables = device.device_tables(tiles[0][p].tables).layout;
        a.passes = on_device.get();
        a.results = results.get();
        check(fastcodec_rans_cuda_examine(device.module, nullptr, &a, count, most), "examine");
        for (uint32_t t = 0; t < count; ++t) {
            if (results.get()[t].faults != 0) {
                std::printf("a fault in a good pass\n");
                fail();
            }
            costs[t] += results.get()[t].cost;
        }
    }
    for (uint32_t t = 0; t < count; ++t) {
        const auto first = positions.begin() + static_cast<ptrdiff_t>(t * passes);
        fastcodec_rans_cuda_shape(costs[t], *std::max_element(first, first + static_cast<ptrdiff_t>(passes)), preset,
                                  &tile_lanes[t], &tile_streams[t]);
    }
    void* handle = nullptr;
    check(fastcodec_rans_cuda_plan_encode(count, begins.data(), positions.data(), channels.data(), tile_lanes.data(),
                                          tile_streams.data(), &handle),
          "plan");
    const Plan plan(handle);
    const Buffer<uint16_t> scratch(plan.scratch_units());
    for (size_t p = passes; p-- > 0;) {
        for (uint32_t t = 0; t < count; ++t) {
            described[p][t].streams = tile_streams[t];
        }
        const Buffer<gpu::TilePass> on_device(described[p]);
        gpu::EncodeArguments a{};
        a.tables = device.device_tables(tiles[0][p].tables).layout;
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.scratch = scratch.get();
        a.passes = on_device.get();
        a.warp_count = plan.warp_count();
        check(fastcodec_rans_cuda_encode(device.module, nullptr, &a), "encode");
    }
    const Buffer<gpu::StreamOffsets> offsets(plan.stream_count());
    gpu::PackArguments pack{};
    pack.streams = plan.streams();
    pack.states = plan.states();
    pack.scratch = scratch.get();
    pack.tiles = plan.rest<gpu::TilePayload>();
    pack.offsets = offsets.get();
    pack.tile_count = count;
    pack.stream_count = plan.stream_count();
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
    std::vector<std::vector<std::vector<int16_t>>> symbols;  // of each pass and tile
    bool operator==(const Result&) const = default;
};

// The same on the CPU. Passes go on after an error, as on the GPU.
Result decode_by_cpu(const std::vector<std::vector<uint8_t>>& payloads, const std::vector<Tile>& tiles) {
    Result result;
    std::vector<const uint8_t*> data;
    std::vector<size_t> sizes;
    for (const std::vector<uint8_t>& payload : payloads) {
        data.push_back(payload.data());
        sizes.push_back(payload.size());
    }
    void* decoder = nullptr;
    fastcodec_rans_decoder_new(static_cast<uint32_t>(payloads.size()), data.data(), sizes.data(), 0, &result.start,
                               &result.tile, &decoder);
    if (result.start != 0) {
        return result;
    }
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        std::vector<std::vector<int16_t>> symbols;
        std::vector<const uint8_t*> indexes;
        std::vector<uint64_t> positions;
        std::vector<uint64_t> channels;
        std::vector<int16_t*> out;
        for (const Tile& tile : tiles) {
            symbols.emplace_back(tile[p].symbols.size(), int16_t{0x5a5a});
            indexes.push_back(tile[p].indexes.data());
            positions.push_back(tile[p].positions);
            channels.push_back(tile[p].channels);
        }
        for (std::vector<int16_t>& s : symbols) {
            out.push_back(s.data());
        }
        uint32_t error;
        uint32_t tile;
        fastcodec_rans_decoder_decode(decoder, tiles[0][p].tables->handle, indexes.data(), positions.data(),
                                      channels.data(), out.data(), 1, &error, &tile);
        result.symbols.push_back(std::move(symbols));
    }
    fastcodec_rans_decoder_finish(decoder, &result.end, &result.tile);
    fastcodec_rans_decoder_free(decoder);
    return result;
}

// What the reconstructing kernels write besides symbols, one position after the other in the tile's raster.
struct Reconstruction {
    Buffer<int16_t> symbols;
    Buffer<int16_t> means;
    Buffer<int32_t> values;
    Buffer<float> gain;
    Buffer<float> latents;
    std::vector<int16_t> mean_values;
    std::vector<float> gains;
    uint32_t width;
    uint32_t height;
    uint32_t value_stride;
    uint32_t row_stride;
    uint32_t column_stride;
    uint32_t parity;
};

Result decode_by_gpu(Gpu& device, Random& random, const std::vector<std::vector<uint8_t>>& payloads,
                     const std::vector<Tile>& tiles, bool reconstruct) {
    Result result;
    const uint32_t count = static_cast<uint32_t>(tiles.size());
    std::vector<const uint8_t*> data;
    std::vector<size_t> sizes;
    for (const std::vector<uint8_t>& payload : payloads) {
        data.push_back(payload.data());
        sizes.push_back(payload.size());
    }
    void* handle = nullptr;
    const int padded = static_cast<int>(random.below(2));
    check(
        fastcodec_rans_cuda_plan_decode(count, data.data(), sizes.data(), padded, &result.start, &result.tile, &handle),
        "plan");
    if (result.start != 0) {
        return result;
    }
    const Plan plan(handle);
    std::vector<uint32_t> stream_counts(count, 0);
    for (uint32_t t = 0; t < count; ++t) {
        uint32_t lanes = 0;
        fastcodec_rans_cuda_plan_shape(handle, t, &lanes, &stream_counts[t]);
    }
    for (size_t p = 0; p < tiles[0].size(); ++p) {
        std::vector<gpu::TilePass> described;
        std::vector<Buffer<uint8_t>> indexes;
        std::vector<Buffer<int16_t>> symbols;
        std::vector<Reconstruction> restored;
        for (uint32_t t = 0; t < count; ++t) {
            const PassData& pass = tiles[t][p];
            gpu::TilePass d = describe(pass, stream_counts[t]);
            indexes.emplace_back(pass.indexes);
            symbols.emplace_back(pass.symbols.size());
            d.indexes = indexes.back().get();
            d.symbols = symbols.back().get();
            if (reconstruct) {
                const uint32_t parity = random.below(2);
                const uint32_t width = 1 + random.below(9);
                uint32_t height = 1;  // the least that has as many positions of this parity
                while ((static_cast<uint64_t>(height) * width + 1 - parity) / 2 < pass.positions) {
                    ++height;
                }
                // Values and latents may be some channels of more.
                const uint32_t value_stride = pass.channels + random.below(3);
                const uint32_t column_stride = pass.channels + random.below(3);
                const uint32_t row_stride = width * column_stride + random.below(30);
                std::vector<int16_t> means(pass.symbols.size());
                for (int16_t& mean : means) {
                    mean = static_cast<int16_t>(random.next());
                }
                std::vector<float> gains(pass.channels);
                for (float& gain : gains) {
                    gain = static_cast<float>(1 + random.below(100)) / 16;
                }
                const size_t size = static_cast<size_t>(height) * row_stride;
                const size_t value_count = static_cast<size_t>(pass.positions) * value_stride;
                restored.push_back({Buffer<int16_t>(0), Buffer<int16_t>(means), Buffer<int32_t>(value_count),
                                    Buffer<float>(gains), Buffer<float>(std::vector<float>(size, -1)), means, gains,
                                    width, height, value_stride, row_stride, column_stride, parity});
                const Reconstruction& r = restored.back();
                d.means = r.means.get();
                d.values = r.values.get();
                d.latents = r.latents.get();
                d.gain = r.gain.get();
                d.width.value = width;
                d.value_stride = value_stride;
                d.row_stride = row_stride;
                d.column_stride = column_stride;
                d.parity = parity;
                d.mean_bits = 4;
                d.latent_type = gpu::kFloat32;
            }
            described.push_back(d);
        }
        check(fastcodec_rans_cuda_complete_passes(count, described.data()), "complete");
        const Buffer<gpu::TilePass> on_device(described);
        gpu::DecodeArguments a{};
        a.tables = device.device_tables(tiles[0][p].tables).layout;
        a.warps = plan.warps();
        a.streams = plan.streams();
        a.states = plan.states();
        a.payloads = plan.rest<uint16_t>();
        a.passes = on_device.get();
        a.warp_count = plan.warp_count();
        size_t most = 0;
        for (const Tile& tile : tiles) {
            most = std::max(most, tile[p].symbols.size());
        }
        check(fastcodec_rans_cuda_decode(device.module, nullptr, &a, plan.full(), count, reconstruct ? most : 0),
              "decode");
        std::vector<std::vector<int16_t>> decoded;
        for (uint32_t t = 0; t < count; ++t) {
            const PassData& pass = tiles[t][p];
            const int16_t* values = symbols[t].get();
            decoded.emplace_back(values, values + pass.symbols.size());
            if (!reconstruct) {
                continue;
            }
            const Reconstruction& r = restored[t];
            std::vector<float> expected(static_cast<size_t>(r.height) * r.row_stride, -1);
            uint64_t position = 0;
            for (uint32_t row = 0; row < r.height; ++row) {
                for (uint32_t column = 0; column < r.width; ++column) {
                    if ((row + column) % 2 != r.parity || position == pass.positions) {
                        continue;
                    }
                    for (uint32_t c = 0; c < pass.channels; ++c) {
                        const uint64_t e = position * pass.channels + c;
                        const int32_t value = values[e] * 16 + r.mean_values[e];
                        if (r.values.get()[position * r.value_stride + c] != value) {
                            std::printf("a value is not symbol and mean\n");
                            fail();
                        }
                        expected[static_cast<size_t>(row) * r.row_stride + column * r.column_stride + c] =
                            static_cast<float>(value) * r.gains[c];
                    }
                    ++position;
                }
            }
            if (!std::equal(expected.begin(), expected.end(), r.latents.get())) {
                std::printf("latents are not where or what they must be\n");
                fail();
            }
        }
        result.symbols.push_back(std::move(decoded));
    }
    gpu::FinishArguments finish{};
    finish.streams = plan.streams();
    finish.states = plan.states();
    finish.lanes = plan.lanes();
    finish.stream_count = plan.stream_count();
    check(fastcodec_rans_cuda_finish(device.module, nullptr, &finish), "finish");
    result.end = fastcodec_rans_cuda_plan_error(plan.handle(), plan.streams(), &result.tile);
    return result;
}

enum Kind { kUniform, kSkewed, kAllSkipped, kEscapeHeavy, kEmpty, kKinds };
constexpr const char* kKindNames[kKinds] = {"uniform", "skewed", "all skipped", "escape-heavy", "with empty passes"};

std::vector<Tile> make_tiles(Random& random, const std::vector<TableSet>& sets, Kind kind) {
    const uint32_t count = 1 + random.below(4) / 2 + random.below(2);
    const uint32_t passes = 1 + random.below(3);
    std::vector<const TableSet*> tables;
    for (uint32_t p = 0; p < passes; ++p) {
        tables.push_back(kind == kAllSkipped ? &sets[0] : &sets[random.below(sets.size())]);
    }
    std::vector<Tile> tiles(count);
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

}  // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    const uint32_t cases = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 2000;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::printf("cuda_rans: seed %llu, %u cases\n", static_cast<unsigned long long>(seed), cases);
    Random random{seed};
    std::vector<TableSet> sets;
    sets.push_back(make_tables(random, 64, true, 40));
    sets.push_back(make_tables(random, 20, false, 3));
    sets.push_back(make_tables(random, 256, true, 12));
    sets.push_back(make_tables(random, 9, false, 16384));  // too many entries for shared memory
    Gpu device;
    check(fastcodec_rans_cuda_open("", &device.module), "open");
    check(fastcodec_rans_cuda_load(device.module, "the shim has its kernels"), "load");
    uint32_t kinds[kKinds] = {};
    uint32_t errors[32] = {};
    uint32_t damaged = 0;
    uint32_t lost_indexes = 0;
    uint32_t shapes[6] = {};
    for (uint32_t c = 0; c < cases; ++c) {
        cuda_shim_schedule(static_cast<int>(c % 3), random.next());
        const Kind kind = static_cast<Kind>(c % kKinds);
        const std::vector<Tile> tiles = make_tiles(random, sets, kind);
        const bool automatic = random.below(6) == 0;
        const uint32_t lanes = automatic ? 0 : 1u << random.below(6);
        const uint32_t streams = automatic ? 0 : random.below(4) == 0 ? 1 + random.below(64) : 1 + random.below(5);
        const uint32_t preset = random.below(2);
        const std::vector<std::vector<uint8_t>> payloads =
            encode_by_gpu(device, tiles, lanes, streams, preset, random.below(4) == 0);
        for (size_t t = 0; t < tiles.size(); ++t) {
            if (encode(tiles[t], lanes, streams, 0, preset) != payloads[t]) {
                std::printf("case %u (%s, %u lanes, %u streams): other bytes\n", c, kKindNames[kind], lanes, streams);
                fail();
            }
        }
        const bool reconstruct = random.below(4) == 0;
        Result good;
        for (size_t p = 0; p < tiles[0].size(); ++p) {
            good.symbols.emplace_back();
            for (const Tile& tile : tiles) {
                good.symbols.back().push_back(tile[p].symbols);
            }
        }
        const Result read = decode_by_gpu(device, random, payloads, tiles, reconstruct);
        if (read.end != 0 || read.symbols != good.symbols || decode_by_cpu(payloads, tiles).symbols != good.symbols) {
            std::printf("case %u (%s, %u lanes, %u streams): no round trip, error %u\n", c, kKindNames[kind], lanes,
                        streams, read.end);
            fail();
        }
        ++kinds[kind];
        ++shapes[payloads[0][0]];
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
        if (by_cpu != decode_by_gpu(device, random, bad, tiles, random.below(4) == 0)) {
            std::printf("case %u (%s, %u lanes, %u streams), damaged: the twins disagree\n", c, kKindNames[kind], lanes,
                        streams);
            fail();
        }
        damaged += by_cpu.start != 0 || by_cpu.end != 0;
        std::vector<Tile> astray = tiles;
        const uint32_t victim = random.below(astray.size());
        PassData& pass = astray[victim][random.below(astray[victim].size())];
        if (!pass.indexes.empty() && pass.tables->sizes.size() < 256) {
            pass.indexes[random.below(pass.indexes.size())] = static_cast<uint8_t>(255 - random.below(3));
            const Result lost = decode_by_gpu(device, random, payloads, astray, false);
            if (lost.end != fastcodec::rans::kIndexRange || lost.tile != victim) {
                std::printf("case %u: an index that names no table gave error %u in tile %u\n", c, lost.end, lost.tile);
                fail();
            }
            ++lost_indexes;
        }
        ++errors[(by_cpu.start != 0 ? by_cpu.start : by_cpu.end) & 31];
    }
    for (int k = 0; k < kKinds; ++k) {
        std::printf("%6u %s\n", kinds[k], kKindNames[k]);
    }
    std::printf("first tile's lanes, 1 to 32: %u %u %u %u %u %u\n", shapes[0], shapes[1], shapes[2], shapes[3],
                shapes[4], shapes[5]);
    std::printf("damaged payloads refused: %u of %u; indexes of no table found: %u\n", damaged, cases, lost_indexes);
    for (uint32_t e = 1; e <= fastcodec::rans::kEscapesLeft; ++e) {
        std::printf("%6u %s\n", errors[e], fastcodec_rans_error_text(e));
    }
    for (TableSet& set : sets) {
        fastcodec_rans_tables_free(set.handle);
    }
    fastcodec_rans_cuda_close(device.module);
    return 0;
}
