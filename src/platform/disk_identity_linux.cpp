#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/text.h"
#include "platform/disk_identity.h"

namespace deepscale {
namespace {

/// Type and source of the mounted file system with this device number: the line of mountinfo (proc(5)) ends in
/// "- TYPE SOURCE OPTIONS", whatever stands before.
std::string mounted_as(const std::string& device) {
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string mount_id, parent_id, number;
    fields >> mount_id >> parent_id >> number;
    const size_t separator = line.find(" - ");
    if (number != device || separator == std::string::npos) continue;
    std::istringstream rest(line.substr(separator + 3));
    std::string type, source;
    rest >> type >> source;
    return type + " " + source;
  }
  return "";
}

/// What the device says about itself. A partition's disk is the folder above it.
std::string hardware_of(const std::string& device) {
  std::string found;
  for (const char* const above : {"", "/.."}) {
    for (const char* const fact : {"/wwid", "/device/wwid", "/device/model", "/device/serial", "/serial"}) {
      std::ifstream file("/sys/dev/block/" + device + above + fact);
      std::string text;
      if (std::getline(file, text)) found += " " + std::string(trimmed(text, " \t\r\n"));
    }
    if (!found.empty()) break;
  }
  return found;
}

}  // namespace

std::string disk_identity(const std::string& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) return "";
  const std::string device = fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev));
  const std::string mounted = mounted_as(device);
  // Some file systems (btrfs) show files another number than their mount.
  return (mounted.empty() ? "device " + device : mounted) + hardware_of(device);
}

FileSystemFacts file_system_of(const std::string& path) {
  struct stat status = {};
  std::string folder = path.empty() ? "." : path;
  while (::stat(folder.c_str(), &status) != 0) {
    if (errno != ENOENT || folder == "/" || folder == ".") return {};
    const size_t slash = folder.find_last_of('/', folder.find_last_not_of('/'));
    folder = slash == std::string::npos ? "." : folder.substr(0, std::max<size_t>(slash, 1));
  }
  FileSystemFacts facts;
  // Not the name of what is mounted: every tmpfs is "tmpfs".
  facts.key = fmt::format("{}:{}", major(status.st_dev), minor(status.st_dev));
  struct statfs kind = {};
  facts.in_memory = ::statfs(folder.c_str(), &kind) == 0 && (kind.f_type == TMPFS_MAGIC || kind.f_type == RAMFS_MAGIC);
  return facts;
}

}  // namespace deepscale
