#include "base/error.h"
#include "platform/disk_identity.h"
#include "platform/text_windows.h"

namespace deepscale {

std::string disk_identity(const std::string& path) {
  const std::wstring wide = wide_path(path);
  if (GetFileAttributesW(wide.c_str()) == INVALID_FILE_ATTRIBUTES) return "";
  std::wstring volume(wide.size() + MAX_PATH, L'\0');
  if (!GetVolumePathNameW(wide.c_str(), volume.data(), static_cast<DWORD>(volume.size()))) return "";
  volume.resize(volume.find(L'\0'));
  wchar_t file_system[MAX_PATH + 1] = {};
  DWORD serial = 0;
  if (!GetVolumeInformationW(volume.c_str(), nullptr, 0, &serial, nullptr, nullptr, file_system, MAX_PATH)) return "";
  return fmt::format("{} {} {:08x}", to_utf8(file_system), to_utf8(volume), static_cast<uint32_t>(serial));
}

FileSystemFacts file_system_of(const std::string& path) {
  for (std::string folder = path.empty() ? "." : path;;) {
    if (std::string key = disk_identity(folder); !key.empty()) return {std::move(key), false};
    const size_t slash = folder.find_last_of("/\\");
    std::string above = slash == std::string::npos ? "." : folder.substr(0, slash);
    if (above.empty() || above.back() == ':') above += '\\';
    if (above == folder || above.size() > folder.size()) return {};
    folder = std::move(above);
  }
}

}  // namespace deepscale
