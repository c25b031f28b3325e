// HostMemory: one rank's memory that its peers on the machine can address. Each rank owns one segment (sparse: only
// what is allocated takes memory), and has every peer's segment mapped, so that (rank, offset) names the same byte
// everywhere. Blocks come from the rank's own segment; nobody else takes part. Running out of memory is an IoError at
// allocation, never a signal at first touch. After fork() the child sees the parent's bytes, not copies of them, and
// must not use the communicator. Threads: every method may be called from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "comm/host_allocator.h"
#include "platform/shared_memory.h"

namespace deepscale {

/// Names one byte in the memory of the ranks of one host. Rank: in the communicator that connect() made.
struct SharedAddress {
  int rank = -1;
  int64_t offset = 0;
};

class HostMemory : public std::enable_shared_from_this<HostMemory> {
 public:
  /// segments[r] is rank r's segment, mapped here; segments[rank] is this rank's own, in which offset 0..reserved_bytes
  /// belongs to the caller.
  HostMemory(int rank, std::vector<std::shared_ptr<SharedMemory>> segments, int64_t reserved_bytes);

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return static_cast<int>(segments_.size()); }

  /// A zero-filled block of this rank's segment, 64-byte aligned (page aligned from 64 KiB on), returned to the segment
  /// when the last copy of the pointer dies. The pointer keeps the memory (not the communicator) alive. Blocks of 1 MiB
  /// and more go back to the system when they are freed: keep buffers that are needed again and again.
  /// Throws IoError when the machine or the segment has not enough left.
  [[nodiscard]] std::shared_ptr<void> allocate(int64_t bytes);

  /// Where [pointer, pointer + bytes) lies, when it lies in one segment.
  [[nodiscard]] std::optional<SharedAddress> locate(const void* pointer, int64_t bytes) const;
  /// The byte of that name, in this process. Reading is allowed at any time; what is there is the owner's business.
  [[nodiscard]] void* at(SharedAddress address) const;

  /// Bytes of this rank's segment that are allocated now.
  [[nodiscard]] int64_t allocated_bytes() const;

  /// Frees the blocks, all at once, when `ready()` holds; looked at now and at every later allocation. For blocks that
  /// peers still use. `ready` is called under this object's lock and only while the blocks are there.
  void free_when(std::vector<int64_t> offsets, std::function<bool()> ready);
  /// Like allocate(), but freed only by free_when(). Returns the offset.
  [[nodiscard]] int64_t allocate_offset(int64_t bytes);

 private:
  struct Deferred {
    std::vector<int64_t> offsets;
    std::function<bool()> ready;
  };

  void free_locked(int64_t offset);
  void reclaim_locked();

  const int rank_;
  const int64_t reserved_bytes_;
  const int64_t pid_;  // a child after fork() has a copy of the books, but not of the memory
  const std::vector<std::shared_ptr<SharedMemory>> segments_;
  mutable std::mutex mutex_;
  HostAllocator allocator_;         // guarded by mutex_
  std::vector<Deferred> deferred_;  // guarded by mutex_
};

}  // namespace deepscale
