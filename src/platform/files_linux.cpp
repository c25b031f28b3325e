#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/environment.h"
#include "base/error.h"
#include "platform/files.h"

namespace deepscale {

NativePath native_path(const std::string& path) {
  return path;
}

void make_directories(const std::string& path) {
  for (size_t end = path.find('/', 1); !path.empty(); end = path.find('/', end + 1)) {
    const std::string part = path.substr(0, end);
    struct stat status {};
    const bool made = ::mkdir(part.c_str(), 0777) == 0;
    const int reason = errno;
    const bool there = !made && ::stat(part.c_str(), &status) == 0;
    DS_CHECK_AS(IoError, made || (there && S_ISDIR(status.st_mode)), "cannot make the folder {}: {}", part,
                there ? "it is a file; name a folder" : std::strerror(reason));
    if (end == std::string::npos) return;
  }
}

std::optional<int64_t> file_size(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return static_cast<int64_t>(status.st_size);
}

void rename_file(const std::string& from, const std::string& to) {
  DS_CHECK_AS(IoError, std::rename(from.c_str(), to.c_str()) == 0, "cannot rename {} to {}: {}", from, to,
              std::strerror(errno));
}

bool remove_file(const std::string& path) {
  return std::remove(path.c_str()) == 0;
}

std::optional<std::string> user_cache_folder() {
  if (const auto chosen = environment("DEEPSCALE_CACHE_DIR")) return chosen;
  if (const auto caches = environment("XDG_CACHE_HOME")) return *caches + "/deepscale";
  if (const auto home = environment("HOME")) return *home + "/.cache/deepscale";
  return std::nullopt;
}

std::string expanded_home(const std::string& path) {
  if (path != "~" && !path.starts_with("~/")) return path;
  const auto home = environment("HOME");
  return home ? *home + path.substr(1) : path;
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  const auto close = [](DIR* folder) { ::closedir(folder); };
  const std::unique_ptr<DIR, decltype(close)> folder(::opendir(path.c_str()), close);
  if (folder == nullptr) return names;
  while (const dirent* entry = ::readdir(folder.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool is_directory(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

void remove_directories(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return;
  if (S_ISDIR(status.st_mode)) {
    for (const std::string& name : list_directory(path)) remove_directories(path + "/" + name);
  }
  const bool removed = std::remove(path.c_str()) == 0;
  DS_CHECK_AS(IoError, removed || errno == ENOENT, "cannot remove {}: {}", path, std::strerror(errno));
}

namespace {

void sync_path(const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC);
  const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
  const int reason = errno;
  if (descriptor >= 0) ::close(descriptor);
  // Some file systems have nothing to synchronise for folders.
  DS_CHECK_AS(IoError, synced || reason == EINVAL || reason == ENOTSUP, "cannot bring {} to the disk: {}", path,
              std::strerror(reason));
}

}  // namespace

void sync_file(const std::string& path) {
  sync_path(path, O_RDONLY);
}

void sync_directory(const std::string& path) {
  sync_path(path, O_RDONLY | O_DIRECTORY);
}

bool exchange_names(const std::string& a, const std::string& b) {
  return ::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0;
}

std::optional<double> changed_at(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  return static_cast<double>(status.st_mtim.tv_sec) + static_cast<double>(status.st_mtim.tv_nsec) * 1e-9;
}

}  // namespace deepscale
