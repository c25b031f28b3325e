// Files and folders by name. Not std::filesystem: libtorch exports that library's functions as they were in an older
// compiler, they take precedence in programs that link torch, and some of them crash on today's objects.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

/// A file's name as std::ifstream and std::ofstream take it (through c_str()); the names here are UTF-8.
#ifdef _WIN32
using NativePath = std::wstring;
#else
using NativePath = std::string;
#endif
[[nodiscard]] NativePath native_path(const std::string& path);

/// Makes a folder and those above it. Throws IoError naming the one that cannot be made.
void make_directories(const std::string& path);
/// Bytes of a regular file; nothing when there is none.
[[nodiscard]] std::optional<int64_t> file_size(const std::string& path);
/// Renames a file, replacing `to`. Throws IoError.
void rename_file(const std::string& from, const std::string& to);
/// Removes a file or an empty folder; false when there is none or it cannot be removed.
bool remove_file(const std::string& path);
/// Where this user's programs keep what they can do without: DEEPSCALE_CACHE_DIR, else "deepscale" in XDG_CACHE_HOME or
/// ~/.cache (Windows: in the folder of local application data). Nothing when the system names no such place; it need
/// not exist.
[[nodiscard]] std::optional<std::string> user_cache_folder();
/// Names inside a folder, sorted, without "." and ".."; empty when there is no such folder.
[[nodiscard]] std::vector<std::string> list_directory(const std::string& path);

[[nodiscard]] bool is_directory(const std::string& path);
/// The path with a "~" that stands at its beginning, alone or before a separator, replaced by this user's folder (HOME;
/// Windows: USERPROFILE). As it is where the system names no such folder.
[[nodiscard]] std::string expanded_home(const std::string& path);
/// Removes a folder with all that is in it, without following links; does nothing when there is none. Throws IoError
/// naming what cannot be removed.
void remove_directories(const std::string& path);
/// Returns when a file's bytes are on the disk. Throws IoError.
void sync_file(const std::string& path);
/// The same for the names in a folder: files made, renamed and removed. Nothing on systems where renaming is durable by
/// itself (Windows).
void sync_directory(const std::string& path);
/// Exchanges the names of two files or folders at once, so that at every moment both names exist. False, and nothing
/// changed, where the file system cannot do that.
[[nodiscard]] bool exchange_names(const std::string& a, const std::string& b);
/// Seconds since 1970 of a file's or folder's last change; nothing when there is none.
[[nodiscard]] std::optional<double> changed_at(const std::string& path);

}  // namespace deepscale
