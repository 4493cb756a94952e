// What the drivers share, programs that run random cases: their arguments, random numbers, and their end on a failure.
//
//     DRIVER [cases] [seed] [kind]
//
// The same seed gives the same cases.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

struct Random {
    uint64_t state;
    uint64_t next() {  // splitmix64
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        return z ^ z >> 31;
    }
    uint32_t below(uint64_t n) { return n == 0 ? 0 : static_cast<uint32_t>(next() % n); }
};

struct Arguments {
    uint32_t cases;
    Random random;
    std::string kind;

    Arguments(int argc, char** argv, uint32_t usual_cases)
        : cases(argc > 1 ? static_cast<uint32_t>(std::strtoul(argv[1], nullptr, 10)) : usual_cases),
          random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1},
          kind(argc > 3 ? argv[3] : "") {
        std::setvbuf(stdout, nullptr, _IONBF, 0);
        std::printf("seed %llu, %u cases %s\n", static_cast<unsigned long long>(random.state), cases, kind.c_str());
    }
};

[[noreturn]] void fail() { std::_Exit(1); }  // at once: what was not freed by then is no leak

}  // namespace
