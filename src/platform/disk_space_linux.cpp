#include <sys/statvfs.h>

#include <cerrno>

#include "platform/disk_space.h"

namespace deepscale {

std::optional<DiskSpace> disk_space(const std::string& path) {
  for (std::string folder = path;;) {
    struct statvfs info = {};
    if (statvfs(folder.empty() ? "." : folder.c_str(), &info) == 0) {
      const auto unit = static_cast<int64_t>(info.f_frsize);
      return DiskSpace{static_cast<int64_t>(info.f_blocks) * unit, static_cast<int64_t>(info.f_bavail) * unit};
    }
    if (errno != ENOENT || folder.empty() || folder == "/") return std::nullopt;
    const size_t slash = folder.find_last_of('/', folder.find_last_not_of('/'));
    folder = slash == std::string::npos ? "" : folder.substr(0, slash == 0 ? 1 : slash);
  }
}

}  // namespace deepscale
