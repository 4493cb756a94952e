// The CUDA twin of the coder: the rules of rans.h and mixture.h, a warp's threads for its lanes. This file names the
// kernels; indexed.cuh and mixtures.cuh code the two kinds of passes with what warp.cuh has for both,
// pack.cuh makes payloads. layout.h says what lies where; docs/kernels.md derives what it costs.
//
// What a warp does
// ----------------
// One stream of 32 lanes has a warp of its own, one thread a lane; streams of fewer lanes share one, each a group of
// neighbouring threads ("mixed" kernels; "full" ones, which know that each group is a warp, save a few instructions).
// One stream a warp and not two: 16 warps on each scheduler hide what a step waits for, and a lone stream's latency
// would not change.
//
//  * Renormalisation: lanes that need a word vote; a lane's word is the stream's next one, plus how many lanes below it
//    voted. The next 2 N words of a stream lie in a register of its lanes, two each, so a lane gets its word by a
//    shuffle and not from memory; N more are on their way.
//  * Nothing is trusted: a read past a section's end gives zeros, and a stream that needs more than it has, or whose
//    indexes or weights cannot be, ends with an error word.
//
// Every thread of a warp takes part in every vote and shuffle, with the whole warp's mask, whether its group has work
// or not: loops end when all groups are done.

#include "indexed.cuh"
#include "mixtures.cuh"
#include "pack.cuh"

using namespace fastcodec::rans::cuda;

#define FASTCODEC_KERNEL(name, threads, Arguments, body)     \
    extern "C" __global__ void __launch_bounds__(threads, 1) \
    name(const __grid_constant__ Arguments a) { body(a); }

FASTCODEC_KERNEL(fastcodec_rans_decode_full_dense, kCoderThreads, DecodeArguments, (decode<true, false>))
FASTCODEC_KERNEL(fastcodec_rans_decode_full_skip, kCoderThreads, DecodeArguments, (decode<true, true>))
FASTCODEC_KERNEL(fastcodec_rans_decode_mixed_dense, kCoderThreads, DecodeArguments, (decode<false, false>))
FASTCODEC_KERNEL(fastcodec_rans_decode_mixed_skip, kCoderThreads, DecodeArguments, (decode<false, true>))
FASTCODEC_KERNEL(fastcodec_rans_reconstruct, kReconstructThreads, ReconstructArguments, reconstruct)
FASTCODEC_KERNEL(fastcodec_rans_encode_dense, kCoderThreads, EncodeArguments, encode<false>)
FASTCODEC_KERNEL(fastcodec_rans_encode_skip, kCoderThreads, EncodeArguments, encode<true>)
FASTCODEC_KERNEL(fastcodec_rans_examine, kExamineThreads, ExamineArguments, examine)
FASTCODEC_KERNEL(fastcodec_rans_measure, kPackThreads, PackArguments, measure)
FASTCODEC_KERNEL(fastcodec_rans_arrange, kPackThreads, PackArguments, arrange)
FASTCODEC_KERNEL(fastcodec_rans_gather, kPackThreads, PackArguments, gather)
FASTCODEC_KERNEL(fastcodec_rans_finish, kFinishThreads, FinishArguments, finish)

// Of 3 components or fewer, and of 4.
FASTCODEC_KERNEL(fastcodec_rans_decode_mixtures_full_3, kMixtureThreads, DecodeArguments, (decode_mixtures<true, 3>))
FASTCODEC_KERNEL(fastcodec_rans_decode_mixtures_full_4, kMixtureThreads, DecodeArguments, (decode_mixtures<true, 4>))
FASTCODEC_KERNEL(fastcodec_rans_decode_mixtures_mixed_3, kMixtureThreads, DecodeArguments, (decode_mixtures<false, 3>))
FASTCODEC_KERNEL(fastcodec_rans_decode_mixtures_mixed_4, kMixtureThreads, DecodeArguments, (decode_mixtures<false, 4>))
FASTCODEC_KERNEL(fastcodec_rans_encode_mixtures_3, kMixtureThreads, EncodeArguments, encode_mixtures<3>)
FASTCODEC_KERNEL(fastcodec_rans_encode_mixtures_4, kMixtureThreads, EncodeArguments, encode_mixtures<4>)
FASTCODEC_KERNEL(fastcodec_rans_examine_mixtures, kExamineThreads, ExamineArguments, examine_mixtures)
