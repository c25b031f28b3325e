// A file that one holder at a time has, among the processes and threads of a machine: for work that should be done
// once.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace deepscale {

/// Ends with its object, or with the process, however that ends. The file stays, empty.
class FileLock {
 public:
  /// Makes the file where it is missing, and waits until nobody else has it. Nothing when that takes longer than
  /// `patience`, or when the file cannot be made or its file system has no locks: for work that may also be done twice.
  [[nodiscard]] static std::optional<FileLock> acquire(const std::string& path, std::chrono::milliseconds patience);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(void* handle) : handle_(handle) {}
  void* handle_;  ///< the system's; nullptr: moved from
};

}  // namespace deepscale
