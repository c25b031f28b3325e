#include "platform/kept_memory.h"

#include <algorithm>
#include <system_error>

namespace deepscale {
namespace {

constexpr int64_t kAtOnce = int64_t{2} << 20;  // one huge page; between two of them the filler can be stopped

}  // namespace

KeptMemory::~KeptMemory() {
  stop_filling();
}

void KeptMemory::stop_filling() noexcept {
  stop_ = true;
  if (filler_.joinable()) filler_.join();
  stop_ = false;
}

void KeptMemory::prepare(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  if (kept_ && kept_->bytes() >= bytes) return;
  stop_filling();
  kept_.reset();  // gone before a larger one comes
  kept_.emplace(bytes);
  try {
    filler_ = std::thread([this, data = kept_->data(), bytes] {
      for (int64_t done = 0; done < bytes && !stop_; done += kAtOnce) {
        populate_pages(data + done, std::min(kAtOnce, bytes - done));
      }
    });
  } catch (const std::system_error&) {
    // No thread to be had: whoever uses the memory gets the pages.
  }
}

PrivateMemory KeptMemory::take(int64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    if (kept_ && kept_->bytes() >= bytes) {
      PrivateMemory memory = std::move(*kept_);
      kept_.reset();
      return memory;
    }
    stop_filling();
    kept_.reset();
  }
  return PrivateMemory(bytes);
}

void KeptMemory::give_back(PrivateMemory memory) {
  const std::lock_guard lock(mutex_);
  stop_filling();
  if (!kept_ || kept_->bytes() < memory.bytes()) kept_.emplace(std::move(memory));
}

}  // namespace deepscale
