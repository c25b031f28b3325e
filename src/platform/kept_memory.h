// KeptMemory: one PrivateMemory that is kept from one use to the next. Huge pages are dear to get: the system may move
// others to make them, and a virtual machine asks its host, at less than a disk's speed. Threads: any.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "platform/private_memory.h"

namespace deepscale {

class KeptMemory {
 public:
  KeptMemory() = default;
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;
  ~KeptMemory();

  /// Makes memory for the next take(); a thread of its own gets the pages while the caller does something else. Throws
  /// IoError.
  void prepare(int64_t bytes);
  [[nodiscard]] PrivateMemory take(int64_t bytes);  ///< at least so many; throws IoError
  void give_back(PrivateMemory memory);             ///< the largest is kept

 private:
  void stop_filling() noexcept;

  std::mutex mutex_;
  std::optional<PrivateMemory> kept_;
  std::thread filler_;  ///< works on memory that is kept or out; ends before that goes
  std::atomic<bool> stop_ = false;
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
