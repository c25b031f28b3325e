// PrivateMemory: zeroed pages of this process alone, straight from the operating system. Large buffers that live as
// long as a model stay out of malloc's heap: there, short-lived tensors between them leave holes that are never given
// back. Linux: mmap, with huge pages where the system allows them. Threads: any.
#pragma once

#include <cstdint>

namespace deepscale {

/// Gives memory that was freed, but is kept by malloc for later, back to the system. Takes milliseconds, more
/// in a heap of many pieces.
void trim_heap();

/// Makes the system provide the pages of PrivateMemory from `data` on, a multiple of the page size; what they hold
/// stays, also while others use them. Speed only: nothing where the system has no such call (Linux before 5.14,
/// Windows).
void populate_pages(char* data, int64_t bytes) noexcept;

class PrivateMemory {
 public:
  /// bytes > 0. Pages take memory when they are touched. Throws IoError.
  explicit PrivateMemory(int64_t bytes);
  PrivateMemory(PrivateMemory&& other) noexcept;
  PrivateMemory& operator=(PrivateMemory&& other) noexcept;
  ~PrivateMemory();

  [[nodiscard]] char* data() const { return data_; }  ///< page-aligned
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace deepscale
