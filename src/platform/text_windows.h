// Small pieces that the Windows side of this folder shares: UTF-8 inside, UTF-16 at the system's functions; handles
// that close themselves. Not for use outside src/platform.
#pragma once

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN
#endif
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace deepscale {

/// Text that is not valid gets replacement characters.
std::wstring to_wide(std::string_view text);
std::string to_utf8(std::wstring_view text);

/// A file's name for the system: backslashes, and beyond 240 characters as an absolute path without the length limit.
std::wstring wide_path(std::string_view path);

/// The system's sentence for an error number, by default the last one of this thread; without line end and full stop.
std::string error_text(DWORD error = GetLastError());

/// Owns a kernel handle; null and INVALID_HANDLE_VALUE are none.
class Handle {
 public:
  Handle() = default;
  explicit Handle(HANDLE handle) : handle_(handle == INVALID_HANDLE_VALUE ? nullptr : handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() { reset(); }

  void reset() {
    if (handle_ != nullptr) CloseHandle(std::exchange(handle_, nullptr));
  }
  [[nodiscard]] HANDLE get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  HANDLE handle_ = nullptr;
};

/// The identifier of this process's user as text, "S-1-5-...". Throws IoError.
std::wstring user_sid();

/// A security descriptor under which only this user (and the system) may use an object; for names that others could
/// open. Null when it cannot be made: then the default applies, which excludes other users too.
std::shared_ptr<void> user_only_descriptor();

}  // namespace deepscale
