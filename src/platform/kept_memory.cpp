#include "platform/kept_memory.h"

namespace deepscale {

PrivateMemory KeptMemory::take(int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (kept_ && kept_->bytes() >= bytes) {
      PrivateMemory memory = std::move(*kept_);
      kept_.reset();
      return memory;
    }
    kept_.reset();  // gone before a larger one comes
  }
  return PrivateMemory(bytes);
}

void KeptMemory::give_back(PrivateMemory memory) {
  const std::lock_guard lock(mutex_);
  if (!kept_ || kept_->bytes() < memory.bytes()) kept_.emplace(std::move(memory));
}

}  // namespace deepscale
