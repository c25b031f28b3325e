// Keeping pages in main memory: never swapped out, and ready for devices and for io_uring's registered buffers. Systems
// limit how much a user may lock. Threads: any, for disjoint ranges.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace deepscale {

/// Locks a range as long as it lives. Locks do not nest: two of them must not share a page.
class MemoryLock {
 public:
  /// `data` on a page boundary, bytes > 0 (whole pages are locked); takes memory for all of it at once. Raises this
  /// process's own soft limit (Linux: RLIMIT_MEMLOCK up to the hard limit; Windows: the working set) when it is in the
  /// way. Throws IoError that says which limit forbids it, how large it is, and how to raise it.
  MemoryLock(void* data, int64_t bytes);
  MemoryLock(MemoryLock&& other) noexcept;
  MemoryLock& operator=(MemoryLock&& other) noexcept;
  ~MemoryLock();

  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  void unlock() noexcept;

  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct MemoryLockFacts {
  std::optional<int64_t> limit_bytes;  ///< what this process may lock in all; nothing: no limit
  int64_t locked_bytes = 0;            ///< what it has locked (Windows: 0, it cannot be asked for)
  std::string limit_name;              ///< "RLIMIT_MEMLOCK", "working set"
  std::string how_to_raise;            ///< a sentence for users
};
/// Linux: the hard limit, because MemoryLock raises the soft one; none for a process with CAP_IPC_LOCK.
MemoryLockFacts memory_lock_facts();

}  // namespace deepscale
