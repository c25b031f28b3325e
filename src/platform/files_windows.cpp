#include <algorithm>
#include <thread>

#include "base/environment.h"
#include "base/error.h"
#include "platform/files.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

bool is_folder(const std::wstring& path) {
  const DWORD kind = GetFileAttributesW(path.c_str());
  return kind != INVALID_FILE_ATTRIBUTES && (kind & FILE_ATTRIBUTE_DIRECTORY) != 0;
}

/// Where the path's first separator that ends a folder's name may stand: behind "C:\", "\\server\share\" or "\".
size_t after_root(std::string_view path) {
  if (path.size() >= 2 && path[1] == ':') return 3;
  if (path.starts_with("//") || path.starts_with("\\\\")) {
    const size_t server = path.find_first_of("/\\", 2);
    const size_t share = server == std::string_view::npos ? server : path.find_first_of("/\\", server + 1);
    return share == std::string_view::npos ? path.size() : share + 1;
  }
  return 1;
}

/// Virus scanners and indexers open files for a moment; what they hold becomes free again soon.
template <typename Action>
bool with_retries(const Action& action) {
  constexpr int kAttempts = 20;
  for (int attempt = 1;; ++attempt) {
    if (action()) return true;
    const DWORD error = GetLastError();
    const bool held = error == ERROR_SHARING_VIOLATION || error == ERROR_LOCK_VIOLATION || error == ERROR_ACCESS_DENIED;
    if (!held || attempt == kAttempts) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(attempt));
    SetLastError(error);
  }
}

}  // namespace

NativePath native_path(const std::string& path) {
  return wide_path(path);
}

void make_directories(const std::string& path) {
  for (size_t end = path.find_first_of("/\\", after_root(path)); !path.empty();
       end = path.find_first_of("/\\", end + 1)) {
    const std::string part = path.substr(0, end);
    const std::wstring wide = wide_path(part);
    const bool made = CreateDirectoryW(wide.c_str(), nullptr) != 0;
    const DWORD reason = GetLastError();
    DS_CHECK_AS(IoError, made || is_folder(wide), "cannot make the folder {}: {}", part, error_text(reason));
    if (end == std::string::npos) return;
  }
}

std::optional<int64_t> file_size(const std::string& path) {
  WIN32_FILE_ATTRIBUTE_DATA facts = {};
  if (!GetFileAttributesExW(wide_path(path).c_str(), GetFileExInfoStandard, &facts) ||
      (facts.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY) != 0) {
    return std::nullopt;
  }
  return static_cast<int64_t>(uint64_t{facts.nFileSizeHigh} << 32 | facts.nFileSizeLow);
}

void rename_file(const std::string& from, const std::string& to) {
  const std::wstring old_name = wide_path(from);
  const std::wstring new_name = wide_path(to);
  const bool renamed = with_retries([&] {
    return MoveFileExW(old_name.c_str(), new_name.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH) != 0;
  });
  DS_CHECK_AS(IoError, renamed, "cannot rename {} to {}: {}", from, to, error_text());
}

bool remove_file(const std::string& path) {
  const std::wstring wide = wide_path(path);
  if (is_folder(wide)) return RemoveDirectoryW(wide.c_str()) != 0;
  return with_retries([&] { return DeleteFileW(wide.c_str()) != 0; });
}

std::optional<std::string> user_cache_folder() {
  if (const auto chosen = environment("DEEPSCALE_CACHE_DIR")) return chosen;
  // Not the C library's view of the environment: its letters are those of the code page.
  std::wstring value(GetEnvironmentVariableW(L"LOCALAPPDATA", nullptr, 0), L'\0');
  if (value.empty()) return std::nullopt;
  value.resize(GetEnvironmentVariableW(L"LOCALAPPDATA", value.data(), static_cast<DWORD>(value.size())));
  return to_utf8(value) + "\\deepscale";
}

std::string expanded_home(const std::string& path) {
  if (path != "~" && !path.starts_with("~/") && !path.starts_with("~\\")) return path;
  const auto home = environment("USERPROFILE");
  return home ? *home + path.substr(1) : path;
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  WIN32_FIND_DATAW entry = {};
  HANDLE const search = FindFirstFileW(wide_path(path + "/*").c_str(), &entry);
  if (search == INVALID_HANDLE_VALUE) return names;
  do {
    std::string name = to_utf8(entry.cFileName);
    if (name != "." && name != "..") names.push_back(std::move(name));
  } while (FindNextFileW(search, &entry));
  FindClose(search);
  std::sort(names.begin(), names.end());
  return names;
}

bool is_directory(const std::string& path) {
  return is_folder(wide_path(path));
}

void remove_directories(const std::string& path) {
  const std::wstring wide = wide_path(path);
  const DWORD kind = GetFileAttributesW(wide.c_str());
  if (kind == INVALID_FILE_ATTRIBUTES) return;
  const bool folder = (kind & FILE_ATTRIBUTE_DIRECTORY) != 0;
  if (folder && (kind & FILE_ATTRIBUTE_REPARSE_POINT) == 0) {
    for (const std::string& name : list_directory(path)) remove_directories(path + "/" + name);
  }
  const bool removed =
      with_retries([&] { return (folder ? RemoveDirectoryW(wide.c_str()) : DeleteFileW(wide.c_str())) != 0; });
  DS_CHECK_AS(IoError, removed, "cannot remove {}: {}", path, error_text());
}

void sync_file(const std::string& path) {
  HANDLE const file = CreateFileW(wide_path(path).c_str(), GENERIC_WRITE, FILE_SHARE_READ | FILE_SHARE_WRITE, nullptr,
                                  OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  const bool synced = file != INVALID_HANDLE_VALUE && FlushFileBuffers(file) != 0;
  const std::string reason = synced ? "" : error_text();
  if (file != INVALID_HANDLE_VALUE) CloseHandle(file);
  DS_CHECK_AS(IoError, synced, "cannot bring {} to the disk: {}", path, reason);
}

void sync_directory(const std::string&) {}

bool exchange_names(const std::string&, const std::string&) {
  return false;
}

std::optional<double> changed_at(const std::string& path) {
  WIN32_FILE_ATTRIBUTE_DATA facts = {};
  if (!GetFileAttributesExW(wide_path(path).c_str(), GetFileExInfoStandard, &facts)) return std::nullopt;
  const uint64_t ticks = uint64_t{facts.ftLastWriteTime.dwHighDateTime} << 32 | facts.ftLastWriteTime.dwLowDateTime;
  return static_cast<double>(ticks) * 1e-7 - 11644473600.0;  // ticks of 100 ns since 1601
}

}  // namespace deepscale
