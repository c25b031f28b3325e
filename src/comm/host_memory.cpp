#include "comm/host_memory.h"

#include <cstring>

#include "base/error.h"
#include "platform/resources.h"

namespace deepscale {

HostMemory::HostMemory(int rank, std::vector<std::shared_ptr<SharedMemory>> segments, int64_t reserved_bytes)
    : rank_(rank),
      reserved_bytes_(reserved_bytes),
      pid_(this_process_id()),
      segments_(std::move(segments)),
      allocator_(reserved_bytes, segments_[static_cast<size_t>(rank)]->bytes()) {}

std::shared_ptr<void> HostMemory::allocate(int64_t bytes) {
  const int64_t offset = allocate_offset(bytes);
  auto self = shared_from_this();
  return {segments_[static_cast<size_t>(rank_)]->data() + offset, [self, offset](void*) {
            const std::lock_guard lock(self->mutex_);
            self->free_locked(offset);
          }};
}

int64_t HostMemory::allocate_offset(int64_t bytes) {
  DS_CHECK_AS(IoError, bytes >= 0, "cannot allocate {} bytes of shared memory: the size must not be negative", bytes);
  DS_CHECK_AS(IoError, this_process_id() == pid_,
              "process {} cannot allocate shared memory: it is a fork of rank {} (process {}); connect again there",
              this_process_id(), rank_, pid_);
  SharedMemory& segment = *segments_[static_cast<size_t>(rank_)];
  HostAllocator::Block block;
  {
    const std::lock_guard lock(mutex_);
    reclaim_locked();
    auto taken = allocator_.take(bytes);
    if (!taken) {
      for (const HostRange& pages : allocator_.trim()) segment.decommit(pages.offset, pages.bytes);
      taken = allocator_.take(bytes);
    }
    DS_CHECK_AS(IoError, taken.has_value(),
                "rank {} cannot allocate {} bytes of shared memory: {} of its segment's {} bytes are in use; raise the "
                "communicator's segment size",
                rank_, bytes, allocator_.used_bytes(), segment.bytes());
    block = *taken;
    if (block.commit) {
      try {
        segment.commit(block.commit->offset, block.commit->bytes);
      } catch (...) {
        allocator_.cancel(block);
        throw;
      }
    }
  }
  if (block.dirty) std::memset(segment.data() + block.offset, 0, static_cast<size_t>(block.bytes));
  return block.offset;
}

std::optional<SharedAddress> HostMemory::locate(const void* pointer, int64_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto in_segment = [&](int rank) {
    const SharedMemory& segment = *segments_[static_cast<size_t>(rank)];
    const auto begin = reinterpret_cast<uintptr_t>(segment.data());
    return address >= begin &&
           address + static_cast<uintptr_t>(bytes) <= begin + static_cast<uintptr_t>(segment.bytes());
  };
  const auto named = [&](int rank) {
    const auto begin = reinterpret_cast<uintptr_t>(segments_[static_cast<size_t>(rank)]->data());
    return SharedAddress{rank, static_cast<int64_t>(address - begin)};
  };
  if (in_segment(rank_)) return named(rank_);
  for (int rank = 0; rank < size(); ++rank) {
    if (in_segment(rank)) return named(rank);
  }
  return std::nullopt;
}

void* HostMemory::at(SharedAddress address) const {
  const SharedMemory& segment = *segments_[static_cast<size_t>(address.rank)];
  DS_CHECK_AS(CommError, address.offset >= 0 && address.offset <= segment.bytes(),
              "offset {} lies outside the shared memory of rank {} ({} bytes)", address.offset, address.rank,
              segment.bytes());
  return segment.data() + address.offset;
}

int64_t HostMemory::allocated_bytes() const {
  const std::lock_guard lock(mutex_);
  return allocator_.used_bytes();
}

void HostMemory::free_when(std::vector<int64_t> offsets, std::function<bool()> ready) {
  const std::lock_guard lock(mutex_);
  deferred_.push_back({std::move(offsets), std::move(ready)});
  reclaim_locked();
}

void HostMemory::free_locked(int64_t offset) {
  if (offset < reserved_bytes_ || this_process_id() != pid_) return;  // not ours to reuse
  if (const auto pages = allocator_.give(offset)) {
    segments_[static_cast<size_t>(rank_)]->decommit(pages->offset, pages->bytes);
  }
}

void HostMemory::reclaim_locked() {
  std::erase_if(deferred_, [this](const Deferred& entry) {
    if (!entry.ready()) return false;
    for (const int64_t offset : entry.offsets) free_locked(offset);
    return true;
  });
}

}  // namespace deepscale
