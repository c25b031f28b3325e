#include <malloc.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "platform/private_memory.h"

namespace deepscale {

void trim_heap() {
#ifdef __GLIBC__
  (void)malloc_trim(0);
#endif
}

void populate_pages([[maybe_unused]] char* data, [[maybe_unused]] int64_t bytes) noexcept {
#ifdef MADV_POPULATE_WRITE
  (void)madvise(data, static_cast<size_t>(bytes), MADV_POPULATE_WRITE);
#endif
}

PrivateMemory::PrivateMemory(int64_t bytes) : bytes_(bytes) {
  DS_CHECK_AS(IoError, bytes > 0, "cannot take {} bytes of memory: ask for at least one", bytes);
  const auto length = static_cast<size_t>(bytes);
  void* const data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  DS_CHECK_AS(IoError, data != MAP_FAILED,
              "cannot take {} bytes of memory: {}; use a smaller model or more ranks, or raise the limit (ulimit -v)",
              bytes, std::strerror(errno));
  (void)madvise(data, length, MADV_HUGEPAGE);  // speed only
  data_ = static_cast<char*>(data);
}

PrivateMemory::PrivateMemory(PrivateMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PrivateMemory& PrivateMemory::operator=(PrivateMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PrivateMemory::~PrivateMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace deepscale
