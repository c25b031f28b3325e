#include "memory/pinned_buffers.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace deepscale {

std::shared_ptr<char> PinnedBuffers::allocate(int64_t bytes, const AsyncFileQueue* queue) {
  DS_CHECK_AS(IoError, bytes >= 0, "cannot take {} bytes of memory: a number that is not negative is needed", bytes);
  const auto buffer = std::make_shared<Buffer>(std::max<int64_t>(bytes, 1));
  char* const data = buffer->memory.data();
  std::string problem;
  try {
    buffer->lock.emplace(data, buffer->memory.bytes());
    const int64_t taken = buffer->memory.bytes();
    const bool worth_it = queue != nullptr && taken >= kSmallestPinnedBytes;
    if (worth_it) buffer->registration.emplace(queue->register_buffer(data, taken));
  } catch (const IoError& error) {
    problem = error.what();
  }
  const std::lock_guard guard(mutex_);
  if (!problem.empty() && std::exchange(refusal_, problem).empty()) {
    Logger().warning("buffers for files work, but stay pageable: {}", problem);
  }
  std::erase_if(buffers_, [](const auto& entry) { return entry.second.expired(); });
  buffers_[data] = buffer;
  return {buffer, data};
}

bool PinnedBuffers::free(const void* data) {
  std::shared_ptr<Buffer> buffer;
  {
    const std::lock_guard guard(mutex_);
    const auto found = buffers_.find(static_cast<const char*>(data));
    if (found == buffers_.end()) return false;
    buffer = found->second.lock();
    buffers_.erase(found);
  }
  if (!buffer) return false;
  buffer->registration.reset();
  buffer->lock.reset();
  return true;
}

bool PinnedBuffers::is_pinned(const void* data, int64_t bytes) const {
  const auto* const begin = static_cast<const char*>(data);
  const std::lock_guard guard(mutex_);
  auto after = buffers_.upper_bound(begin);
  if (after == buffers_.begin()) return false;
  const auto buffer = (--after)->second.lock();
  return buffer && buffer->lock && begin + bytes <= after->first + buffer->memory.bytes();
}

std::string PinnedBuffers::refusal() const {
  const std::lock_guard guard(mutex_);
  return refusal_;
}

}  // namespace deepscale
