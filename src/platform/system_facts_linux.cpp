#include <features.h>
#ifdef __GLIBC__
#include <gnu/libc-version.h>
#endif

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/text.h"
#include "platform/system_facts.h"

namespace deepscale {
namespace fs = std::filesystem;

namespace {

/// What stands behind `key` and `separator` in the file; empty when nothing does.
std::string value_in(const fs::path& file, const std::string& key, char separator) {
  constexpr std::string_view kAround = " \t\r\"";
  std::ifstream text(file);
  for (std::string line; std::getline(text, line);) {
    const std::string_view view = line;
    const size_t at = view.find(separator);
    if (at == std::string_view::npos || trimmed(view.substr(0, at), kAround) != key) continue;
    return std::string(trimmed(view.substr(at + 1), kAround));
  }
  return "";
}

}  // namespace

std::string operating_system_name() {
  for (const char* file : {"/etc/os-release", "/usr/lib/os-release"}) {
    const std::string name = value_in(file, "PRETTY_NAME", '=');
    if (!name.empty()) return name;
  }
  return "";
}

std::string c_library() {
#ifdef __GLIBC__
  return std::string("glibc ") + gnu_get_libc_version();
#else
  return "not glibc";
#endif
}

std::vector<std::string> gpu_names() {
  std::vector<fs::path> folders;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc/driver/nvidia/gpus", ignored)) folders.push_back(entry.path());
  std::sort(folders.begin(), folders.end());  // by address on the bus, as the driver counts them
  std::vector<std::string> names;
  for (const fs::path& folder : folders) {
    const std::string name = value_in(folder / "information", "Model", ':');
    names.push_back(name.empty() ? "NVIDIA GPU" : name);
  }
  return names;
}

std::optional<std::string> gpu_driver_version() {
  std::ifstream file("/sys/module/nvidia/version");
  std::string version;
  if (file >> version) return version;
  // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat ...": containers may hide /sys.
  std::istringstream words(value_in("/proc/driver/nvidia/version", "NVRM version", ':'));
  for (std::string word; words >> word;) {
    if (word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos) return word;
  }
  return std::nullopt;
}

}  // namespace deepscale
