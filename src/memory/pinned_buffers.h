// Memory for transfers: page-aligned, so that files move it without a copy; in huge pages where the system has them,
// which direct access reads and writes two to three times as fast as single pages on virtual disks; locked into main
// memory and registered with a queue of asynchronous files as far as the limits allow.
// Threads: any.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "platform/async_file.h"
#include "platform/memory_lock.h"
#include "platform/private_memory.h"

namespace deepscale {

class PinnedBuffers {
 public:
  /// Zeroed memory of `bytes` >= 0 bytes that lives as long as its last user, whatever becomes of this object. It is
  /// usable also where the system refuses to lock it: is_pinned() tells, and the first refusal is a warning in the log.
  /// queue: registers the memory with it as well. Throws IoError when there is no memory.
  [[nodiscard]] std::shared_ptr<char> allocate(int64_t bytes, const AsyncFileQueue* queue = nullptr);
  /// Unlocks the buffer that begins at `data` (its memory stays as long as it has users). False when allocate() has not
  /// made it, or it was freed or has no users any more.
  bool free(const void* data);
  /// Whether [data, data + bytes) lies in a buffer of this object that is locked.
  [[nodiscard]] bool is_pinned(const void* data, int64_t bytes) const;
  /// Why the system refused to lock a buffer; empty when it never did.
  [[nodiscard]] std::string refusal() const;

 private:
  struct Buffer {
    explicit Buffer(int64_t bytes) : memory(bytes) {}
    PrivateMemory memory;
    std::optional<MemoryLock> lock;                  // these two end before the memory,
    std::optional<BufferRegistration> registration;  // and belong to the mutex
  };

  mutable std::mutex mutex_;
  std::map<const char*, std::weak_ptr<Buffer>> buffers_;
  std::string refusal_;
};

}  // namespace deepscale
