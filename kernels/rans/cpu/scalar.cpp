// The scalar twin: the rules of rans.h and mixture.h, spelled out. It is the oracle that the others are compared with,
// and it runs the steps that they leave to it (a pass's last, partial step, and any step that may fail).

#include <cstring>

#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

// Whether the words that remain suffice for a step of `count` symbols.
bool words_suffice(const DecodeStream& s, const Tables& tables, const uint8_t* indexes, size_t count) {
    const size_t remaining = static_cast<size_t>(s.words_end - s.words) / 2;
    if (remaining >= count) {
        return true;
    }
    size_t needed = 0;
    for (size_t lane = 0; lane < count; ++lane) {
        const Found found = lookup(tables, indexes[lane], slot_of(s.states[lane]));
        needed += decode_needs_word(decode_advance(s.states[lane], found.start, found.frequency));
    }
    return needed <= remaining;
}

// Lanes is the number of symbols of a full step; 0 stands for a partial one of `count`.
template <size_t Lanes>
Error decode_step(DecodeStream& s, const Tables& tables, const uint8_t* indexes, size_t count, int16_t* symbols) {
    const size_t n = Lanes != 0 ? Lanes : count;
    if (!words_suffice(s, tables, indexes, n)) [[unlikely]] {
        return kWordsExhausted;
    }
    const uint8_t* words = s.words;
    for (size_t lane = 0; lane < n; ++lane) {
        const uint32_t state = s.states[lane];
        Found found = lookup(tables, indexes[lane], slot_of(state));
        const uint32_t advanced = decode_advance(state, found.start, found.frequency);
        const bool refill = decode_needs_word(advanced);
        // Read in any case (there is slack) and keep it by masks: compilers make a branch of a choice, and this one
        // cannot be predicted.
        const uint32_t taken = 0u - static_cast<uint32_t>(refill);
        s.states[lane] = (advanced & ~taken) | (decode_refill(advanced, load_word(words)) & taken);
        words += taken & 2;
        if (found.escape) [[unlikely]] {
            if (s.escapes == s.escapes_end) {
                return kEscapesExhausted;
            }
            found.symbol = load_word(s.escapes);
            s.escapes += 2;
        }
        symbols[lane] = static_cast<int16_t>(found.symbol);
    }
    s.words = words;
    return kOk;
}

template <size_t Lanes>
Error decode_lanes(DecodeStream& stream, const Tables& set, const uint8_t* indexes, size_t n, int16_t* symbols) {
    const Tables tables = with_constant_bits(set);
    // States and cursors in locals, so that stores of symbols cannot be taken for changes of them.
    uint32_t states[Lanes];
    std::memcpy(states, stream.states, sizeof(states));
    DecodeStream s = stream;
    s.states = states;
    Error error = kOk;
    size_t j = 0;
    for (; j + Lanes <= n && error == kOk; j += Lanes) {
        error = decode_step<Lanes>(s, tables, indexes + j, Lanes, symbols + j);
    }
    if (error != kOk) {
        j -= Lanes;
    } else if (j < n) {
        error = decode_step<0>(s, tables, indexes + j, n - j, symbols + j);
    }
    if (error != kOk) {
        std::memset(symbols + j, 0, (n - j) * sizeof(*symbols));
    }
    std::memcpy(stream.states, states, sizeof(states));
    s.states = stream.states;
    stream = s;
    return error;
}

Error decode(DecodeStream& stream, uint32_t lanes, const Tables& tables, const uint8_t* indexes, size_t n,
             int16_t* symbols) {
    switch (lanes) {
        case 1: return decode_lanes<1>(stream, tables, indexes, n, symbols);
        case 2: return decode_lanes<2>(stream, tables, indexes, n, symbols);
        case 4: return decode_lanes<4>(stream, tables, indexes, n, symbols);
        case 8: return decode_lanes<8>(stream, tables, indexes, n, symbols);
        case 16: return decode_lanes<16>(stream, tables, indexes, n, symbols);
        default: return decode_lanes<32>(stream, tables, indexes, n, symbols);
    }
}

void push(EncodeStream& stream, uint32_t lanes, const uint32_t* codes, const int16_t* symbols, size_t n) {
    uint16_t* words = stream.words;
    for (size_t j = n; j-- > 0;) {
        const uint32_t frequency = code_frequency(codes[j]);
        uint32_t& state = stream.states[j & (lanes - 1)];
        uint32_t x = state;
        const bool emits = encode_emits(x, frequency);
        words[-1] = static_cast<uint16_t>(x);
        words -= emits;
        x = emits ? x >> kWordBits : x;
        state = encode_push(x, code_start(codes[j]), frequency);
        if (codes[j] & kCodeEscape) [[unlikely]] {
            *--stream.escapes = static_cast<uint16_t>(symbols[j]);
        }
    }
    stream.words = words;
}

size_t compact_indexes(const uint8_t* indexes, size_t n, uint8_t* packed) {
    size_t count = 0;
    for (size_t j = 0; j < n; ++j) {
        packed[count] = indexes[j];
        count += indexes[j] != 0;
    }
    return count;
}

size_t compact_symbols(const uint8_t* indexes, const int16_t* symbols, size_t n, int16_t* packed, bool& lost) {
    size_t count = 0;
    int dropped = 0;
    for (size_t j = 0; j < n; ++j) {
        packed[count] = symbols[j];
        count += indexes[j] != 0;
        dropped |= indexes[j] != 0 ? 0 : symbols[j];
    }
    lost |= dropped != 0;
    return count;
}

void expand_symbols(const uint8_t* indexes, size_t n, const int16_t* packed, int16_t* symbols) {
    size_t count = 0;
    for (size_t j = 0; j < n; ++j) {
        symbols[j] = indexes[j] != 0 ? packed[count] : 0;
        count += indexes[j] != 0;
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Mixtures

template <uint32_t K>
Error decode_mixtures_of(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (lanes) {
        case 1: return decode_scalar<K, 1>(stream, mixtures, n, symbols);
        case 2: return decode_scalar<K, 2>(stream, mixtures, n, symbols);
        case 4: return decode_scalar<K, 4>(stream, mixtures, n, symbols);
        case 8: return decode_scalar<K, 8>(stream, mixtures, n, symbols);
        case 16: return decode_scalar<K, 16>(stream, mixtures, n, symbols);
        default: return decode_scalar<K, 32>(stream, mixtures, n, symbols);
    }
}

Error decode_mixtures(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (mixtures.components) {
        case 1: return decode_mixtures_of<1>(stream, lanes, mixtures, n, symbols);
        case 2: return decode_mixtures_of<2>(stream, lanes, mixtures, n, symbols);
        case 3: return decode_mixtures_of<3>(stream, lanes, mixtures, n, symbols);
        default: return decode_mixtures_of<4>(stream, lanes, mixtures, n, symbols);
    }
}

void code_mixtures(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes) {
    switch (mixtures.components) {
        case 1: return code_scalar<1>(mixtures, symbols, 0, n, codes);
        case 2: return code_scalar<2>(mixtures, symbols, 0, n, codes);
        case 3: return code_scalar<3>(mixtures, symbols, 0, n, codes);
        default: return code_scalar<4>(mixtures, symbols, 0, n, codes);
    }
}

}  // namespace

const Kernels& scalar_kernels() {
    static constexpr Kernels kernels{"scalar",
                                     1,
                                     scalar_kernels,
                                     decode,
                                     push,
                                     compact_indexes,
                                     compact_symbols,
                                     expand_symbols,
                                     decode_mixtures,
                                     code_mixtures};
    return kernels;
}

}  // namespace fastcodec::rans
