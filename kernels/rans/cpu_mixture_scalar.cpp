// The scalar twin of the mixture coder: mixture.h's rule element by element. It is the oracle for the others.

#include "mixture_lanes.h"

namespace fastcodec::rans {
namespace {

template <uint32_t K>
Error decode_components(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (lanes) {
        case 1: return decode_scalar<K, 1>(stream, mixtures, n, symbols);
        case 2: return decode_scalar<K, 2>(stream, mixtures, n, symbols);
        case 4: return decode_scalar<K, 4>(stream, mixtures, n, symbols);
        case 8: return decode_scalar<K, 8>(stream, mixtures, n, symbols);
        case 16: return decode_scalar<K, 16>(stream, mixtures, n, symbols);
        default: return decode_scalar<K, 32>(stream, mixtures, n, symbols);
    }
}

Error decode(DecodeStream& stream, uint32_t lanes, const Mixtures& mixtures, size_t n, int16_t* symbols) {
    switch (mixtures.components) {
        case 1: return decode_components<1>(stream, lanes, mixtures, n, symbols);
        case 2: return decode_components<2>(stream, lanes, mixtures, n, symbols);
        case 3: return decode_components<3>(stream, lanes, mixtures, n, symbols);
        default: return decode_components<4>(stream, lanes, mixtures, n, symbols);
    }
}

void code(const Mixtures& mixtures, const int16_t* symbols, size_t n, uint32_t* codes) {
    switch (mixtures.components) {
        case 1: return code_scalar<1>(mixtures, symbols, 0, n, codes);
        case 2: return code_scalar<2>(mixtures, symbols, 0, n, codes);
        case 3: return code_scalar<3>(mixtures, symbols, 0, n, codes);
        default: return code_scalar<4>(mixtures, symbols, 0, n, codes);
    }
}

}  // namespace

const MixtureKernels& scalar_mixture_kernels() {
    static constexpr MixtureKernels kernels{"scalar", decode, code};
    return kernels;
}

}  // namespace fastcodec::rans
