// What the CUDA twin's kernels (kernels.cu) and their host side (driver.cpp, plan.cpp, api.cpp) agree on: descriptors
// in device memory, table sets as the kernels read them, and kernel arguments. Pointers are device pointers. Sizes in
// elements are 32 bits wide: a pass of one tile, and the words of a batch, stay below 2^32; the host side checks.
#pragma once

#include "../mixture.h"

namespace fastcodec::rans::cuda {

constexpr uint32_t kWarpThreads = 32;

// Sections of device memory begin at multiples of 16 bytes.
FASTCODEC_INLINE size_t aligned(size_t bytes) { return (bytes + 15) & ~size_t{15}; }

// ---------------------------------------------------------------------------------------------------------------------
// Table sets

// A table set on a GPU is one blob, 16-byte aligned, of sections that begin at multiples of 16 bytes:
//
//   locators    u32 [256]     where the buckets of each table are; see below
//   buckets     Slots []      tables have as many as they need, a power of two, at least 4
//   positions   u32 []        for each bucket where in `cumulative` its first entry is, or kNoTable
//   cumulative  u16 []
//   tables      Table [count]
//   costs       u16 []        likewise
//
// A block that decodes copies what it reads most from the front into shared memory: all up to `tables` when that fits,
// else locators and buckets alone, which are kept small enough to fit always. A walk then reads global memory. A block
// that encodes copies `cumulative` and `tables`, if they fit.
//
// A locator is the offset of a table's first bucket in the blob, a multiple of 32 bytes, with the shift that takes a
// slot to its bucket in the five bits below. Indexes that name no table have one bucket that every slot misses: so the
// check costs nothing until a walk.
constexpr uint32_t kLocators = 256;
constexpr uint32_t kLocatorShiftMask = 31;
constexpr uint32_t kMinBucketBits = 2;
constexpr uint32_t kMaxBucketBits = 10;
constexpr uint32_t kBucketBytes = 48 << 10;  // of a set's buckets, at most

// A bucket's two entries that cover most of it, as rans.h's Bucket in other terms: they take the fewest instructions.
// Sentinels are left out, as if they had no slots: so escapes, too, show as misses.
struct alignas(8) Slots {
    uint16_t start;
    uint16_t first;   // frequency of the entry that begins at `start`
    uint16_t second;  // frequency of the next one
    int16_t symbol;   // of the first; the second's is one more
};

constexpr uint32_t kNoTable = 0xffffffff;

struct DeviceTables {
    const unsigned char* blob;
    uint32_t positions;   // offsets in the blob
    uint32_t cumulative;  //
    uint32_t tables;      //
    uint32_t costs;       //
    uint32_t end;         //
    uint32_t count;       // of tables
    uint32_t skip;        // as rans.h's Tables
    uint32_t reserved;
};

// For mixtures, the blob holds mixture.h's tables instead: T with its slopes, then the scales. Each block copies them
// to its shared memory. Of the offsets only `end` is in use.
constexpr uint32_t kMixturePhiEntries = (kPhiCount + 3) / 4 * 4;  // whole copies of 16 bytes
constexpr uint32_t kMixtureTableEntries = kMixturePhiEntries + 256;
constexpr uint32_t kMixtureTableBytes = kMixtureTableEntries * sizeof(uint32_t);

// ---------------------------------------------------------------------------------------------------------------------
// Streams

// A stream between passes. Words and escapes are counted in units of 16 bits from the beginning of their buffer. The
// decoder moves `words` and `escapes` up to their ends, the encoder moves them down from there.
struct Stream {
    uint32_t words;
    uint32_t words_end;
    uint32_t escapes;
    uint32_t escapes_end;
    uint32_t states;  // the number of its first state among all
    uint32_t tile;
    uint32_t number;  // among the tile's streams
    uint32_t error;   // rans.h's Error; once set, it stays
};

// What a warp works on: as many streams of 2^lanes_log2 lanes as fit in, or fewer. Streams are numbered so that a
// warp's follow each other.
struct Warp {
    uint32_t first;
    uint16_t streams;
    uint16_t lanes_log2;
};

// Division by a constant as a multiplication, exact for every numerator of 32 bits (Granlund and Montgomery 1994,
// figure 4.1).
struct Divisor {
    uint32_t value;
    uint32_t multiplier;
    uint16_t shift_1;
    uint16_t shift_2;
};

FASTCODEC_INLINE uint32_t divide(uint32_t numerator, Divisor by) {
    const uint32_t high = static_cast<uint32_t>((static_cast<uint64_t>(numerator) * by.multiplier) >> 32);
    return (high + ((numerator - high) >> by.shift_1)) >> by.shift_2;
}

enum LatentType : uint32_t { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

// One pass of one tile: a matrix [positions, channels], channels fastest. What a kernel does not use may be null.
struct TilePass {
    void* symbols;           // int16, or (to encode) int32 when symbol_bytes is 4
    const uint8_t* indexes;  // of tables
    // Of mixtures, [components, positions, channels]. With indexes, means are [positions, channels], for
    // reconstruction: value = (symbol << mean_bits) + mean; latent = value * gain[channel], written where the position
    // lies in the tile's raster.
    const uint16_t* weights;
    const int16_t* means;
    const uint8_t* scales;
    int32_t* values;    // [positions, channels], value_stride elements from a position to the next
    void* latents;      // [rows, columns, channels], of latent_type
    const float* gain;  // [channels]
    uint32_t positions;
    uint32_t streams;  // of the tile
    Divisor channels;
    Divisor width;           // of the tile, in latents
    uint32_t value_stride;   // elements of values from a position to the next
    uint32_t row_stride;     // elements of latents from a row to the next
    uint32_t column_stride;  // and from a column to the next
    uint32_t parity;  // 0: the positions are the checkerboard's anchors ((row + column) even), 1: its non-anchors
    uint32_t mean_bits;
    uint32_t latent_type;
    uint32_t symbol_bytes;
    uint32_t components;  // of mixtures; 0: indexed, or nothing in a pass of mixtures
};

// A pass of all tiles is of one kind: `components` is 0 and the tables are those of its indexes, or it is the most that
// a tile's mixtures have.
struct DecodeArguments {
    DeviceTables tables;
    const Warp* warps;
    Stream* streams;
    uint32_t* states;
    const uint16_t* payloads;
    const TilePass* passes;  // [tiles]
    uint32_t warp_count;
    uint32_t warps_per_block;  // a block's other warps help to copy the tables, then leave
    uint32_t shared_tables;    // bytes of the blob that go to shared memory
    uint32_t components;
};

constexpr uint32_t kReconstructEach = 4;  // elements of a thread, whose loads are under way together

struct ReconstructArguments {
    const TilePass* passes;  // [tiles], one row of blocks for each
};

struct EncodeArguments {
    DeviceTables tables;
    const Warp* warps;
    Stream* streams;
    uint32_t* states;
    uint16_t* scratch;  // words and escapes of all streams
    const TilePass* passes;
    uint32_t warp_count;
    uint32_t warps_per_block;
    uint32_t shared_tables;  // bytes from `cumulative` on that go to shared memory: all up to `costs`, or none
    uint32_t components;
};

// What is wrong with a pass, as bits; in the order in which the CPU twin looks.
enum Fault : uint32_t { kFaultIndex = 1, kFaultWeights = 2, kFaultSymbol = 4, kFaultSkipped = 8 };

struct Examination {
    unsigned long long cost;  // 1/256 bit, of the elements that count for choose_shape
    uint32_t faults;
    uint32_t reserved;
};
constexpr uint32_t kExamineBlock = 1 << 14;  // elements a block examines

struct ExamineArguments {
    DeviceTables tables;
    const TilePass* passes;  // [tiles], one row of blocks for each
    Examination* results;    // [tiles]
    uint32_t exact;          // 1: every element's cost counts
    uint32_t components;
};

// Where an encoded tile goes in the output. Payloads begin where their states are aligned to four bytes.
struct TilePayload {
    uint64_t offset;
    uint64_t size;
    uint32_t directory;  // bytes before the states
    uint32_t words;      // of all its streams
    uint32_t escapes;
    uint32_t first_stream;
    uint32_t streams;
    uint32_t lanes_log2;
};
struct StreamOffsets {
    uint32_t escape_count_at;  // offsets of its counts in the directory
    uint32_t word_count_at;
    uint32_t words_at;  // in units of 16 bits, among the tile's
    uint32_t escapes_at;
};

struct PackArguments {
    const Stream* streams;
    const uint32_t* states;
    const uint16_t* scratch;
    TilePayload* tiles;
    StreamOffsets* offsets;
    uint8_t* out;
    uint32_t tile_count;
    uint32_t stream_count;
};

struct FinishArguments {
    Stream* streams;
    const uint32_t* states;
    const uint32_t* lanes;  // [tiles]
    uint32_t stream_count;
    uint32_t reserved;
};

// The most threads of a block; a kernel's registers follow from it.
constexpr uint32_t kCoderThreads = 1024;
constexpr uint32_t kReconstructThreads = 256;
constexpr uint32_t kReconstructBlock = kReconstructThreads * kReconstructEach;  // elements of a block
constexpr uint32_t kMixtureThreads = 512;  // a search takes registers: so each thread may have 128
constexpr uint32_t kExamineThreads = 256;
constexpr uint32_t kPackThreads = 256;
constexpr uint32_t kFinishThreads = 256;

// The queue of a warp in shared memory: elements that are to be coded but were not yet enough for a step.
struct alignas(8) Queued {
    uint32_t element;
    uint32_t locator;
};
constexpr uint32_t kQueueBlocks = 4;                             // capacity, in steps; a power of two
constexpr uint32_t kFillBlocks = kQueueBlocks - 1;               // what is looked through at once
constexpr uint32_t kQueueEntries = kQueueBlocks * kWarpThreads;  // of a warp
constexpr uint32_t kEncodeQueueEntries = 2 * kWarpThreads;       // likewise; of 32 bits

}  // namespace fastcodec::rans::cuda
