#include <malloc.h>

#include <utility>

#include "base/error.h"
#include "platform/private_memory.h"
#include "platform/text_windows.h"

namespace deepscale {

void trim_heap() {
  (void)_heapmin();
}

void populate_pages(char* /*data*/, int64_t /*bytes*/) noexcept {}

PrivateMemory::PrivateMemory(int64_t bytes) : bytes_(bytes) {
  DS_CHECK_AS(IoError, bytes > 0, "cannot take {} bytes of memory: ask for at least one", bytes);
  data_ =
      static_cast<char*>(VirtualAlloc(nullptr, static_cast<size_t>(bytes), MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
  DS_CHECK_AS(IoError, data_ != nullptr,
              "cannot take {} bytes of memory: {}; use a smaller model or more ranks, or enlarge the page file", bytes,
              error_text());
}

PrivateMemory::PrivateMemory(PrivateMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PrivateMemory& PrivateMemory::operator=(PrivateMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PrivateMemory::~PrivateMemory() {
  if (data_ != nullptr) VirtualFree(data_, 0, MEM_RELEASE);
}

}  // namespace deepscale
