// KeptMemory: one PrivateMemory that is kept from one use to the next. Huge pages are dear to get: the system may move
// others to make them, and a virtual machine ask its host, at less than a disk's speed. Threads: any.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <utility>

#include "platform/private_memory.h"

namespace deepscale {

class KeptMemory {
 public:
  [[nodiscard]] PrivateMemory take(int64_t bytes);  ///< at least so many; throws IoError
  void give_back(PrivateMemory memory);             ///< the largest is kept

 private:
  std::mutex mutex_;
  std::optional<PrivateMemory> kept_;
};

/// Memory from `kept`, which gets it back, or of its own when that is null.
class BorrowedMemory {
 public:
  BorrowedMemory(KeptMemory* kept, int64_t bytes)
      : kept_(kept), memory_(kept == nullptr ? PrivateMemory(bytes) : kept->take(bytes)) {}
  BorrowedMemory(const BorrowedMemory&) = delete;
  BorrowedMemory& operator=(const BorrowedMemory&) = delete;
  ~BorrowedMemory() {
    if (kept_ != nullptr) kept_->give_back(std::move(memory_));
  }
  [[nodiscard]] char* data() const { return memory_.data(); }

 private:
  KeptMemory* kept_;
  PrivateMemory memory_;
};

}  // namespace deepscale
