// The CUDA driver, and the coder's kernels loaded by it.

#include "driver.h"

#include <dlfcn.h>

#include <cstring>
#include <memory>

namespace fastcodec::rans::cuda {
namespace {

thread_local std::string last_message;

constexpr int kAttributeMultiprocessors = 16;
constexpr int kAttributeSharedBytesOptIn = 97;
constexpr int kFunctionMaxDynamicSharedBytes = 8;

// An empty path stands for the program itself, which may have been linked with another driver (tests/cuda_shim).
bool open_driver(const char* path, Driver& driver) {
    void* handle = dlopen(*path == '\0' ? nullptr : path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        last_message = dlerror();
        return false;
    }
    const auto find = [&](auto& function, const char* name) {
        void* const symbol = dlsym(handle, name);
        std::memcpy(&function, &symbol, sizeof(symbol));
        if (symbol == nullptr) {
            last_message = std::string("the CUDA driver is too old: it lacks ") + name;
        }
        return symbol != nullptr;
    };
    return find(driver.init, "cuInit") && find(driver.context_current, "cuCtxGetCurrent") &&
           find(driver.context_set, "cuCtxSetCurrent") && find(driver.context_device, "cuCtxGetDevice") &&
           find(driver.primary_context, "cuDevicePrimaryCtxRetain") &&
           find(driver.device_attribute, "cuDeviceGetAttribute") && find(driver.library_load, "cuLibraryLoadData") &&
           find(driver.library_unload, "cuLibraryUnload") && find(driver.library_kernel, "cuLibraryGetKernel") &&
           find(driver.kernel_set, "cuKernelSetAttribute") && find(driver.launch, "cuLaunchKernel") &&
           find(driver.error_text, "cuGetErrorString");
}

}  // namespace

int checked(const Module& module, CUresult result, const char* what) {
    if (result == 0) {
        return kStatusOk;
    }
    const char* text = nullptr;
    module.driver.error_text(result, &text);
    last_message = std::string(what) + ": " + (text != nullptr ? text : "error " + std::to_string(result));
    return kStatusDriver;
}

int current_device(Module& module, Device& out) {
    const Driver& driver = module.driver;
    CUcontext context = nullptr;
    CUdevice number = 0;
    if (int bad = checked(module, driver.context_current(&context), "cuCtxGetCurrent")) {
        return bad;
    }
    if (context == nullptr) {  // a thread that has not used the GPU yet
        if (int bad = checked(module, driver.primary_context(&context, 0), "cuDevicePrimaryCtxRetain")) {
            return bad;
        }
        if (int bad = checked(module, driver.context_set(context), "cuCtxSetCurrent")) {
            return bad;
        }
    }
    if (int bad = checked(module, driver.context_device(&number), "cuCtxGetDevice")) {
        return bad;
    }
    const std::lock_guard<std::mutex> guard(module.lock);
    if (const auto known = module.devices.find(number); known != module.devices.end()) {
        out = known->second;
        return kStatusOk;
    }
    int multiprocessors = 0;
    int shared = 0;
    if (int bad = checked(module, driver.device_attribute(&multiprocessors, kAttributeMultiprocessors, number),
                          "cuDeviceGetAttribute")) {
        return bad;
    }
    if (int bad = checked(module, driver.device_attribute(&shared, kAttributeSharedBytesOptIn, number),
                          "cuDeviceGetAttribute")) {
        return bad;
    }
    for (CUkernel kernel : module.kernels) {
        if (int bad = checked(module, driver.kernel_set(kFunctionMaxDynamicSharedBytes, shared, kernel, number),
                              "cuKernelSetAttribute")) {
            return bad;
        }
    }
    out = {static_cast<uint32_t>(multiprocessors), static_cast<uint32_t>(shared)};
    module.devices[number] = out;
    return kStatusOk;
}

}  // namespace fastcodec::rans::cuda

using namespace fastcodec::rans;
using namespace fastcodec::rans::cuda;

// What the driver said when a function returned kStatusDriver, in this thread.
FASTCODEC_API const char* fastcodec_rans_cuda_message() { return last_message.c_str(); }

// Opens the driver's library; kStatusDriver if there is none, or no GPU.
FASTCODEC_API int fastcodec_rans_cuda_open(const char* path, void** module) {
    return guarded([&]() -> int {
        auto out = std::make_unique<Module>();
        if (!open_driver(path, out->driver)) {
            return kStatusDriver;
        }
        if (int bad = checked(*out, out->driver.init(0), "cuInit")) {
            return bad;
        }
        *module = out.release();
        return kStatusOk;
    });
}

// Loads the kernels from an image: a cubin, a fatbin or PTX. It is read before the function returns.
FASTCODEC_API int fastcodec_rans_cuda_load(void* module, const void* image) {
    return guarded([&]() -> int {
        Module& m = *static_cast<Module*>(module);
        if (int bad = checked(m, m.driver.library_load(&m.library, image, nullptr, nullptr, 0, nullptr, nullptr, 0),
                              "cuLibraryLoadData")) {
            return bad;
        }
        for (int k = 0; k < kKernels; ++k) {
            if (int bad =
                    checked(m, m.driver.library_kernel(&m.kernels[k], m.library, kKernelNames[k]), kKernelNames[k])) {
                return bad;
            }
        }
        return kStatusOk;
    });
}

FASTCODEC_API void fastcodec_rans_cuda_close(void* module) {
    Module* m = static_cast<Module*>(module);
    if (m->library != nullptr) {
        m->driver.library_unload(m->library);
    }
    delete m;
}
