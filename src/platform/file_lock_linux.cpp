#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <thread>
#include <utility>

#include "platform/file_lock.h"

namespace deepscale {
namespace {

constexpr auto kPause = std::chrono::milliseconds(5);

// Descriptors begin at 0, pointers to something behind it.
void* as_handle(int descriptor) {
  return reinterpret_cast<void*>(static_cast<intptr_t>(descriptor) + 1);
}

int as_descriptor(void* handle) {
  return static_cast<int>(reinterpret_cast<intptr_t>(handle) - 1);
}

}  // namespace

std::optional<FileLock> FileLock::acquire(const std::string& path, std::chrono::milliseconds patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor < 0) return std::nullopt;
  FileLock lock(as_handle(descriptor));
  // Asked again and again: a call that waits could not give up, and network file systems may never answer it.
  while (flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    const bool held = errno == EWOULDBLOCK || errno == EINTR;
    if (!held || std::chrono::steady_clock::now() >= end) return std::nullopt;
    std::this_thread::sleep_for(kPause);
  }
  return lock;
}

FileLock::FileLock(FileLock&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

FileLock::~FileLock() {
  if (handle_ != nullptr) close(as_descriptor(handle_));
}

}  // namespace deepscale
