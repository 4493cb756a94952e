// What the drivers of the simulated CUDA coder share (cuda_rans.cpp, cuda_mixture.cpp): the host side's C interface,
// "device" memory, tables in it, and plans. To be included behind the cases' header, whose fail() and TableSet it uses.
#pragma once

#include <array>
#include <memory>

#include "rans/cuda/layout.h"

namespace gpu = fastcodec::rans::cuda;

extern "C" {
const char* fastcodec_rans_cuda_message();
int fastcodec_rans_cuda_open(const char*, void**);
int fastcodec_rans_cuda_load(void*, const void*);
void fastcodec_rans_cuda_close(void*);
int fastcodec_rans_cuda_tables(uint32_t, int, const int16_t*, const uint16_t*, const uint16_t*, size_t,
                               gpu::DeviceTables*, uint8_t*);
int fastcodec_rans_cuda_plan_decode(uint32_t, const uint8_t* const*, const size_t*, int, uint32_t*, uint32_t*, void**);
int fastcodec_rans_cuda_plan_encode(uint32_t, const uint32_t*, const uint64_t*, const uint64_t*, const uint32_t*,
                                    const uint32_t*, void**);
void fastcodec_rans_cuda_plan_numbers(const void*, uint64_t*);
void fastcodec_rans_cuda_plan_write(const void*, uint8_t*);
void fastcodec_rans_cuda_plan_shape(const void*, uint32_t, uint32_t*, uint32_t*);
uint32_t fastcodec_rans_cuda_plan_error(const void*, const gpu::Stream*, uint32_t*);
void fastcodec_rans_cuda_plan_free(void*);
void fastcodec_rans_cuda_shape(uint64_t, uint64_t, uint32_t, uint32_t*, uint32_t*);
int fastcodec_rans_cuda_complete_passes(uint32_t, gpu::TilePass*);
int fastcodec_rans_cuda_decode(void*, void*, gpu::DecodeArguments*, int, uint32_t, uint64_t);
int fastcodec_rans_cuda_finish(void*, void*, const gpu::FinishArguments*);
int fastcodec_rans_cuda_examine(void*, void*, const gpu::ExamineArguments*, uint32_t, uint64_t);
int fastcodec_rans_cuda_encode(void*, void*, gpu::EncodeArguments*);
int fastcodec_rans_cuda_arrange(void*, void*, const gpu::PackArguments*);
int fastcodec_rans_cuda_gather(void*, void*, const gpu::PackArguments*);
void fastcodec_rans_cuda_mixture_tables(gpu::DeviceTables*, uint8_t*);
void cuda_shim_schedule(int, uint64_t);
}

namespace {

void check(int status, const char* what) {
    if (status != 0) {
        std::printf("%s: status %d, %s\n", what, status, fastcodec_rans_cuda_message());
        fail();
    }
}

// "Device" memory: an allocation of its own, not initialised, aligned as the driver's.
template <typename T>
class Buffer {
   public:
    explicit Buffer(size_t n) : data_(static_cast<T*>(std::malloc(n == 0 ? 1 : n * sizeof(T)))) {
        std::memset(static_cast<void*>(data_), 0x5a, n * sizeof(T));
    }
    explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
        std::copy(values.begin(), values.end(), data_);
    }
    Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    T* get() const { return data_; }

   private:
    T* data_;
};

struct UploadedTables {
    gpu::DeviceTables layout;
    std::unique_ptr<Buffer<uint8_t>> blob;
};

// write(layout, blob) fills in the layout, and the blob unless that is null.
template <typename Write>
UploadedTables upload_by(const Write& write) {
    UploadedTables out;
    write(&out.layout, nullptr);
    out.blob = std::make_unique<Buffer<uint8_t>>(out.layout.end);
    write(&out.layout, out.blob->get());
    out.layout.blob = out.blob->get();
    return out;
}

inline UploadedTables upload(const TableSet& set) {
    return upload_by([&](gpu::DeviceTables* layout, uint8_t* blob) {
        check(
            fastcodec_rans_cuda_tables(static_cast<uint32_t>(set.sizes.size()), set.skip, set.firsts.data(),
                                       set.sizes.data(), set.frequencies.data(), set.frequencies.size(), layout, blob),
            "tables");
    });
}

class Plan {
   public:
    explicit Plan(void* handle) : handle_(handle) {
        fastcodec_rans_cuda_plan_numbers(handle_, numbers_.data());
        memory_ = std::make_unique<Buffer<uint8_t>>(numbers_[0]);
        fastcodec_rans_cuda_plan_write(handle_, memory_->get());
    }
    Plan(const Plan&) = delete;
    Plan& operator=(const Plan&) = delete;
    ~Plan() { fastcodec_rans_cuda_plan_free(handle_); }
    const void* handle() const { return handle_; }
    gpu::Stream* streams() const { return at<gpu::Stream>(0); }
    gpu::Warp* warps() const { return at<gpu::Warp>(numbers_[1]); }
    uint32_t* lanes() const { return at<uint32_t>(numbers_[2]); }
    uint32_t* states() const { return at<uint32_t>(numbers_[3]); }
    template <typename T>
    T* rest() const {
        return at<T>(numbers_[4]);
    }
    uint32_t stream_count() const { return static_cast<uint32_t>(numbers_[5]); }
    uint32_t warp_count() const { return static_cast<uint32_t>(numbers_[6]); }
    int full() const { return static_cast<int>(numbers_[7]); }
    uint64_t scratch_units() const { return numbers_[8]; }

   private:
    template <typename T>
    T* at(uint64_t offset) const {
        return reinterpret_cast<T*>(memory_->get() + offset);
    }
    void* handle_;
    std::array<uint64_t, 9> numbers_{};
    std::unique_ptr<Buffer<uint8_t>> memory_;
};

}  // namespace
