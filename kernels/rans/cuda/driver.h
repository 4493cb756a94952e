// The CUDA driver as the host side uses it: opened when the first GPU is used, so that one build serves every machine
// and needs no CUDA headers. driver.cpp opens it and loads the kernels; api.cpp launches them.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "../status.h"

namespace fastcodec::rans::cuda {

// The numbers are those of CUDA's cuda.h, which never change.
using CUresult = int;
using CUdevice = int;
using CUcontext = struct ContextOpaque*;
using CUlibrary = struct LibraryOpaque*;
using CUkernel = struct KernelOpaque*;  // the driver takes it for a CUfunction too
using CUstream = struct StreamOpaque*;

struct Driver {
    CUresult (*init)(unsigned);
    CUresult (*context_current)(CUcontext*);
    CUresult (*context_set)(CUcontext);
    CUresult (*context_device)(CUdevice*);
    CUresult (*primary_context)(CUcontext*, CUdevice);
    CUresult (*device_attribute)(int*, int, CUdevice);
    CUresult (*library_load)(CUlibrary*, const void*, int*, void**, unsigned, int*, void**, unsigned);
    CUresult (*library_unload)(CUlibrary);
    CUresult (*library_kernel)(CUkernel*, CUlibrary, const char*);
    CUresult (*kernel_set)(int, int, CUkernel, CUdevice);
    CUresult (*launch)(CUkernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**,
                       void**);
    CUresult (*error_text)(CUresult, const char**);
};

enum Kernel : int {
    kDecodeFullDense,
    kDecodeFullSkip,
    kDecodeMixedDense,
    kDecodeMixedSkip,
    kReconstruct,
    kEncodeDense,
    kEncodeSkip,
    kExamine,
    kMeasure,
    kArrange,
    kGather,
    kFinish,
    kDecodeMixturesFull3,
    kDecodeMixturesFull4,
    kDecodeMixturesMixed3,
    kDecodeMixturesMixed4,
    kEncodeMixtures3,
    kEncodeMixtures4,
    kExamineMixtures,
    kKernels,
};
constexpr const char* kKernelNames[kKernels] = {
    "fastcodec_rans_decode_full_dense",
    "fastcodec_rans_decode_full_skip",
    "fastcodec_rans_decode_mixed_dense",
    "fastcodec_rans_decode_mixed_skip",
    "fastcodec_rans_reconstruct",
    "fastcodec_rans_encode_dense",
    "fastcodec_rans_encode_skip",
    "fastcodec_rans_examine",
    "fastcodec_rans_measure",
    "fastcodec_rans_arrange",
    "fastcodec_rans_gather",
    "fastcodec_rans_finish",
    "fastcodec_rans_decode_mixtures_full_3",
    "fastcodec_rans_decode_mixtures_full_4",
    "fastcodec_rans_decode_mixtures_mixed_3",
    "fastcodec_rans_decode_mixtures_mixed_4",
    "fastcodec_rans_encode_mixtures_3",
    "fastcodec_rans_encode_mixtures_4",
    "fastcodec_rans_examine_mixtures",
};

struct Device {
    uint32_t multiprocessors;
    uint32_t shared_bytes;  // that a block can have
};

struct Module {
    Driver driver;
    CUlibrary library = nullptr;
    CUkernel kernels[kKernels] = {};
    std::mutex lock;
    std::map<CUdevice, Device> devices;  // those whose kernels may use all shared memory
};

// The status of a driver's call; fastcodec_rans_cuda_message says what it was.
int checked(const Module& module, CUresult result, const char* what);

// The current device; the first call on a device prepares the kernels for it.
int current_device(Module& module, Device& out);

// What `body` returns for the module and the current device.
template <typename Body>
int on_device(void* module, const Body& body) {
    return guarded([&]() -> int {
        Module& m = *static_cast<Module*>(module);
        Device device;
        if (int bad = current_device(m, device)) {
            return bad;
        }
        return body(m, device);
    });
}

template <typename Arguments>
int launch(const Module& module, Kernel kernel, uint32_t blocks_x, uint32_t blocks_y, uint32_t threads, uint32_t shared,
           void* stream, const Arguments& arguments) {
    void* parameters[] = {const_cast<Arguments*>(&arguments)};
    return checked(module,
                   module.driver.launch(module.kernels[kernel], blocks_x, blocks_y, 1, threads, 1, 1, shared,
                                        static_cast<CUstream>(stream), parameters, nullptr),
                   kKernelNames[kernel]);
}

}  // namespace fastcodec::rans::cuda
