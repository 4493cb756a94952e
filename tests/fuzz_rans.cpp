// Feeds mutated and random payloads to every twin of the CPU coder and insists that they agree: on the errors, on every
// symbol, and on the final check. Meant to be built with AddressSanitizer and UndefinedBehaviorSanitizer.
//
//     fuzz_rans [cases] [seed] [mixed]
//
// mixed: tiles have passes of mixtures besides indexed ones, with any parameters. The same seed gives the same cases.
// On a disagreement it names the case and returns 1.

#include "rans_cases.h"

namespace {

struct Base {
    Tile passes;
    Payload payload;
};

std::vector<Base> make_bases(Random& random, const std::vector<TableSet>& sets, const std::vector<int>& isas,
                             bool mixed) {
    std::vector<Base> bases(96);
    for (size_t b = 0; b < bases.size(); ++b) {
        Tile& passes = bases[b].passes;
        for (uint32_t p = 1 + random.below(3); p > 0; --p) {
            const bool indexed = !mixed || random.below(3) == 0;
            passes.push_back(indexed ? make_pass(random, sets[random.below(sets.size())])
                                     : make_mixture(random, 1 + random.below(4)));
        }
        const uint32_t lanes = 1u << (b % 6);
        const uint32_t streams = b % 3 == 0 ? 1 : 1 + random.below(6);
        for (const int isa : isas) {
            const Payload payload = encode(passes, lanes, streams, isa);
            const Outcome outcome = decode({payload}, {passes}, 1, isa);
            bool same = outcome.start == 0 && outcome.end == 0 && (isa == 0 || payload == bases[b].payload);
            for (size_t p = 0; p < outcome.symbols.size(); ++p) {
                same = same && outcome.errors[p] == 0 && outcome.symbols[p][0] == passes[p].symbols;
            }
            if (!same) {
                std::printf("base %zu: no round trip by instruction set %d\n", b, isa);
                fail();
            }
            bases[b].payload = payload;
        }
    }
    return bases;
}

// Parameters that are not those the payload was made with.
void change_parameters(Random& random, PassData& pass) {
    if (pass.weights.empty()) {
        return;
    }
    const uint32_t at = random.below(pass.weights.size());
    pass.means[at] = static_cast<int16_t>(random.next());
    pass.scales[at] = static_cast<uint8_t>(random.next());
    if (random.below(4) == 0) {
        pass.weights[at] = static_cast<uint16_t>(pass.weights[at] + 1 + random.below(65535));
    }
}

// Makes a damaged case of a good one; `other` is another.
void damage(Random& random, Base& base, const Base& other, bool mixed) {
    Payload& payload = base.payload;
    const size_t size = payload.size();
    const uint32_t kind = random.below(10);
    if (kind == 0 && random.below(4) == 0) {
        payload.assign(random.below(200), 0);
        for (uint8_t& byte : payload) {
            byte = static_cast<uint8_t>(random.next());
        }
    } else if (kind <= 2) {
        payload = forge(random);
    } else if (kind == 3) {
        payload = other.payload;  // valid, of other passes
    } else if (kind == 4 && mixed) {
        change_parameters(random, base.passes[random.below(base.passes.size())]);
    } else {
        for (uint32_t n = 1 + random.below(3); n > 0; --n) {
            mutate(random, payload, other.payload);
        }
    }
    if (!payload.empty() && payload.size() % 2 != size % 2 && random.below(8) != 0) {
        payload.pop_back();  // most odd lengths would be refused before anything is decoded
    }
}

}  // namespace

int main(int argc, char** argv) {
    Arguments arguments(argc, argv, 20000);
    const bool mixed = arguments.kind == "mixed";
    Random& random = arguments.random;
    std::vector<int> isas;
    for (int isa = 0; isa < 3; ++isa) {
        if (fastcodec_rans_isas() >> isa & 1) {
            isas.push_back(isa);
        }
    }
    const std::vector<TableSet> sets = make_sets(random);
    const std::vector<Base> bases = make_bases(random, sets, isas, mixed);
    uint32_t counts[4] = {};  // refused at once, while decoding, at the end; accepted
    uint32_t seen[32] = {};
    uint32_t refused_weights = 0;
    for (uint32_t c = 0; c < arguments.cases; ++c) {
        Base damaged = bases[random.below(bases.size())];
        damage(random, damaged, bases[random.below(bases.size())], mixed);
        Outcome first;
        for (const int isa : isas) {
            const Outcome outcome = decode({damaged.payload}, {damaged.passes}, mixed ? 1 + random.below(2) : 1, isa);
            if (isa == isas.front()) {
                first = outcome;
            } else if (outcome != first) {
                std::printf("case %u: instruction sets %d and %d disagree\n", c, isas.front(), isa);
                fail();
            }
        }
        bool decoding = false;
        for (const uint32_t error : first.errors) {
            decoding = decoding || error != 0;
            refused_weights += error == 0x100u + fastcodec::rans::kStatusWeights;
        }
        ++counts[first.start != 0 ? 0 : decoding ? 1 : first.end != 0 ? 2 : 3];
        ++seen[(first.start != 0 ? first.start : first.end) & 31];
    }
    std::printf("refused at once %u, while decoding %u, at the end %u; accepted %u\n", counts[0], counts[1], counts[2],
                counts[3]);
    for (uint32_t e = 1; e <= fastcodec::rans::kEscapesLeft; ++e) {
        std::printf("%6u %s\n", seen[e], fastcodec_rans_error_text(e));
    }
    if (mixed) {
        std::printf("%6u weights refused\n", refused_weights);
    }
    for (const TableSet& set : sets) {
        fastcodec_rans_tables_free(set.handle);
    }
    return 0;
}
