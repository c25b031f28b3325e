#include <thread>
#include <utility>

#include "platform/file_lock.h"
#include "platform/text_windows.h"

namespace deepscale {

std::optional<FileLock> FileLock::acquire(const std::string& path, std::chrono::milliseconds patience) {
  constexpr auto kPause = std::chrono::milliseconds(5);
  const auto end = std::chrono::steady_clock::now() + patience;
  const std::wstring wide = wide_path(path);
  for (;;) {
    // A file that is opened without sharing is nobody else's.
    const HANDLE file = CreateFileW(wide.c_str(), GENERIC_READ | GENERIC_WRITE, 0, nullptr, OPEN_ALWAYS,
                                    FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file != INVALID_HANDLE_VALUE) return FileLock(file);
    if (GetLastError() != ERROR_SHARING_VIOLATION || std::chrono::steady_clock::now() >= end) return std::nullopt;
    std::this_thread::sleep_for(kPause);
  }
}

FileLock::FileLock(FileLock&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

FileLock::~FileLock() {
  if (handle_ != nullptr) CloseHandle(handle_);
}

}  // namespace deepscale
