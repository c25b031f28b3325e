// How much room a disk has. Threads: any.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace deepscale {

struct DiskSpace {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;  ///< to this user: without what is reserved for the administrator or beyond a quota
};

/// Of the file system that holds `path` (a file or folder; one that does not exist yet: the nearest folder above it).
/// Linux also: disk_space("/dev/shm") is the room for POSIX shared memory. Nothing when it cannot be found out.
[[nodiscard]] std::optional<DiskSpace> disk_space(const std::string& path);

}  // namespace deepscale
