#include "platform/disk_space.h"
#include "platform/text_windows.h"

namespace deepscale {

std::optional<DiskSpace> disk_space(const std::string& path) {
  for (std::string folder = path.empty() ? "." : path;;) {
    const std::wstring wide = wide_path(folder);
    ULARGE_INTEGER available = {};
    ULARGE_INTEGER total = {};
    const DWORD kind = GetFileAttributesW(wide.c_str());
    const bool is_folder = kind != INVALID_FILE_ATTRIBUTES && (kind & FILE_ATTRIBUTE_DIRECTORY) != 0;
    if (is_folder && GetDiskFreeSpaceExW(wide.c_str(), &available, &total, nullptr)) {
      return DiskSpace{static_cast<int64_t>(total.QuadPart), static_cast<int64_t>(available.QuadPart)};
    }
    const size_t slash = folder.find_last_of("/\\");
    std::string above = slash == std::string::npos ? "." : folder.substr(0, slash);
    if (above.empty() || above.back() == ':') above += '\\';
    if (above == folder || above.size() > folder.size()) return std::nullopt;
    folder = std::move(above);
  }
}

}  // namespace deepscale
