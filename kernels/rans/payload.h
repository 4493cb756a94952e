// A tile's payload: its header written and parsed, without trust. The layout stands in rans.h.
#pragma once

#include <cstring>
#include <vector>

#include "rans.h"

namespace fastcodec::rans {

// Where a payload's sections lie, as byte offsets from its beginning.
struct Layout {
    uint32_t lanes = 0;
    uint32_t streams = 0;
    size_t states = 0;            // u32 [streams, lanes]
    std::vector<size_t> words;    // [streams + 1]: stream s has the bytes words[s] .. words[s + 1]
    std::vector<size_t> escapes;  // [streams + 1], likewise
};

inline uint32_t load_u32(const uint8_t* p) {
    return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
           static_cast<uint32_t>(p[3]) << 24;
}

// Reads a varint at `position` and moves it on.
inline Error read_varint(const uint8_t* data, size_t size, size_t& position, uint32_t& value) {
    uint64_t result = 0;
    for (int shift = 0; shift < 35; shift += 7) {
        if (position == size) {
            return kTruncated;
        }
        const uint8_t byte = data[position++];
        result |= static_cast<uint64_t>(byte & 0x7f) << shift;
        if (byte < 0x80) {
            if ((byte == 0 && shift != 0) || result > 0xffffffffu) {
                return kBadVarint;
            }
            value = static_cast<uint32_t>(result);
            return kOk;
        }
    }
    return kBadVarint;
}

inline void write_varint(std::vector<uint8_t>& out, uint32_t value) {
    for (; value >= 0x80; value >>= 7) {
        out.push_back(static_cast<uint8_t>(value | 0x80));
    }
    out.push_back(static_cast<uint8_t>(value));
}

// Checks everything that can be checked before decoding. Memory follows the payload's size: each stream takes at least
// one byte of directory and four of state, and that is tested before anything is allocated.
inline Error parse_payload(const uint8_t* data, size_t size, Layout& layout) {
    if (size == 0) {
        return kTruncated;
    }
    if (data[0] > kMaxLanesLog2) {
        return kReservedBits;
    }
    layout.lanes = 1u << data[0];
    size_t position = 1;
    if (const Error error = read_varint(data, size, position, layout.streams); error != kOk) {
        return error;
    }
    if (layout.streams == 0 || layout.streams > kMaxStreams) {
        return kBadStreamCount;
    }
    const size_t streams = layout.streams;
    const size_t state_bytes = streams * layout.lanes * 4;
    if (size - position < streams + (streams - 1) + state_bytes) {
        return kTruncated;
    }
    layout.words.assign(streams + 1, 0);
    layout.escapes.assign(streams + 1, 0);
    uint64_t escape_bytes = 0;  // 65535 counts below 2^32: no sum of them overflows
    for (size_t s = 0; s < streams; ++s) {
        uint32_t count;
        if (const Error error = read_varint(data, size, position, count); error != kOk) {
            return error;
        }
        layout.escapes[s] = escape_bytes;
        escape_bytes += uint64_t{2} * count;
    }
    uint64_t word_bytes = 0;
    for (size_t s = 0; s + 1 < streams; ++s) {
        uint32_t count;
        if (const Error error = read_varint(data, size, position, count); error != kOk) {
            return error;
        }
        layout.words[s] = word_bytes;
        word_bytes += uint64_t{2} * count;
    }
    if (size - position < state_bytes || size - position - state_bytes < escape_bytes + word_bytes) {
        return kTruncated;
    }
    if ((size - position - state_bytes) % 2 != 0) {
        return kOddLength;
    }
    layout.states = position;
    layout.words[streams - 1] = word_bytes;
    layout.words[streams] = size - position - state_bytes - escape_bytes;
    layout.escapes[streams] = escape_bytes;
    const size_t first_word = position + state_bytes;
    for (size_t s = 0; s <= streams; ++s) {
        layout.words[s] += first_word;
        layout.escapes[s] += size - escape_bytes;
    }
    for (size_t lane = 0; lane < streams * layout.lanes; ++lane) {
        if (load_u32(data + layout.states + 4 * lane) < kStateLow) {
            return kBadState;
        }
    }
    return kOk;
}

}  // namespace fastcodec::rans
