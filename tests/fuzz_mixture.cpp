// Feeds mutated and random payloads to every twin of the CPU mixture coder and insists that they agree: on the errors,
// on every symbol, and on the final check. Tiles mix indexed passes and passes of mixtures with any parameters, the
// most extreme included. Meant to be built with AddressSanitizer and UndefinedBehaviorSanitizer.
//
//     fuzz_mixture [cases] [seed]
//
// The same seed gives the same cases. On a disagreement it names the case and returns 1.

#include "mixture_cases.h"

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IONBF, 0);
    const uint32_t cases = argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : 20000;
    const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
    std::printf("fuzz_mixture: seed %llu, %u cases\n", static_cast<unsigned long long>(seed), cases);
    Random random{seed};
    std::vector<int> isas;
    for (int isa = 0; isa < 3; ++isa) {
        if (fastcodec_rans_isas() >> isa & 1) {
            isas.push_back(isa);
        }
    }
    TableSet set = make_tables(random, 64, true, 40);
    struct Base {
        std::vector<MixedPass> passes;
        std::vector<uint8_t> payload;
    };
    std::vector<Base> bases(96);
    for (size_t b = 0; b < bases.size(); ++b) {
        std::vector<MixedPass>& passes = bases[b].passes;
        for (uint32_t p = 1 + random.below(3); p > 0; --p) {
            const bool indexed = random.below(3) == 0;
            passes.push_back(indexed ? MixedPass{make_pass(random, set), 0, {}, {}, {}}
                                     : make_mixture(random, 1 + random.below(4)));
        }
        const uint32_t lanes = 1u << (b % 6);
        const uint32_t streams = b % 3 == 0 ? 1 : 1 + random.below(6);
        for (const int isa : isas) {
            const std::vector<uint8_t> payload = encode(passes, lanes, streams, isa);
            const Outcome outcome = decode(payload, passes, 1, isa);
            bool same = outcome.start == 0 && outcome.end == 0 && (isa == 0 || payload == bases[b].payload);
            for (size_t p = 0; p < outcome.symbols.size(); ++p) {
                same = same && outcome.passes[p] == 0 && outcome.symbols[p] == passes[p].data.symbols;
            }
            if (!same) {
                std::printf("base %zu: no round trip by instruction set %d\n", b, isa);
                fail();
            }
            bases[b].payload = payload;
        }
    }
    uint32_t counts[4] = {};  // refused at once, while decoding, at the end; accepted
    uint32_t seen[32] = {};
    uint32_t refused_weights = 0;
    for (uint32_t c = 0; c < cases; ++c) {
        const Base& base = bases[random.below(bases.size())];
        const Base& other = bases[random.below(bases.size())];
        std::vector<uint8_t> payload = base.payload;
        std::vector<MixedPass> passes = base.passes;
        const uint32_t kind = random.below(10);
        if (kind <= 1) {
            payload = forge(random);
        } else if (kind == 2) {
            payload = other.payload;  // valid, of other passes
        } else if (kind == 3) {
            MixedPass& pass = passes[random.below(passes.size())];  // the payload is right, the parameters are not
            if (!pass.weights.empty()) {
                const uint32_t at = random.below(pass.weights.size());
                pass.means[at] = static_cast<int16_t>(random.next());
                pass.scales[at] = static_cast<uint8_t>(random.next());
                if (random.below(4) == 0) {
                    pass.weights[at] = static_cast<uint16_t>(pass.weights[at] + 1 + random.below(65535));
                }
            }
        } else {
            for (uint32_t n = 1 + random.below(3); n > 0; --n) {
                mutate(random, payload, other.payload);
            }
        }
        if (!payload.empty() && payload.size() % 2 != base.payload.size() % 2 && random.below(8) != 0) {
            payload.pop_back();  // most odd lengths would be refused before anything is decoded
        }
        Outcome first;
        for (const int isa : isas) {
            const Outcome outcome = decode(payload, passes, 1 + random.below(2), isa);
            if (isa == isas.front()) {
                first = outcome;
            } else if (outcome != first) {
                std::printf("case %u: instruction sets %d and %d disagree\n", c, isas.front(), isa);
                fail();
            }
        }
        bool decoding = false;
        for (const uint32_t e : first.passes) {
            decoding = decoding || e != 0;
            refused_weights += e == 0x100u + fastcodec::rans::kStatusWeights;
        }
        ++counts[first.start != 0 ? 0 : decoding ? 1 : first.end != 0 ? 2 : 3];
        ++seen[(first.start != 0 ? first.start : first.end) & 31];
    }
    std::printf("refused at once %u, while decoding %u, at the end %u; accepted %u\n", counts[0], counts[1], counts[2],
                counts[3]);
    for (uint32_t e = 1; e <= fastcodec::rans::kEscapesLeft; ++e) {
        std::printf("%6u %s\n", seen[e], fastcodec_rans_error_text(e));
    }
    std::printf("%6u weights refused\n", refused_weights);
    fastcodec_rans_tables_free(set.handle);
    return 0;
}
