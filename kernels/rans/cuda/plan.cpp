// Plans: a batch's streams, warps, states and payloads laid out as one piece of the device's memory.

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "../payload.h"
#include "../status.h"
#include "layout.h"

using namespace fastcodec::rans;
using namespace fastcodec::rans::cuda;

namespace {

// What the kernels need to know of a batch, laid out as one piece of memory:
//   Stream [streams], Warp [warps], u32 lanes [tiles], u32 states [...], then (to decode) the payloads or (to encode)
//   TilePayload [tiles]; each begins at a multiple of 16 bytes.
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
    std::vector<TilePayload> tile_payloads;  // to encode
    uint64_t scratch_units = 0;              // likewise: 16 bits each
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

}  // namespace

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
            out->tile_payloads.push_back(
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
    const size_t rest = p.tile_payloads.empty() && !p.payload_begins.empty()
                            ? p.payload_begins.back()
                            : p.tile_payloads.size() * sizeof(TilePayload);
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
    copy(p.rest_at(), p.tile_payloads);
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
