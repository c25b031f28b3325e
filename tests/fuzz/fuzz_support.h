// What the fuzz targets share: hostile bytes as a file, and claims that end the program when they do not hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale::fuzz {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Not assert: it also holds in optimized builds. libFuzzer keeps the input that ends the program.
inline void claim(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "this does not hold: %s\n", what);
  std::abort();
}

/// A message that a user can read: it says something, and not megabytes of what the file holds.
inline void claim_readable(std::string_view message) {
  claim(!message.empty() && message.size() < 4096, "an error's message has 1 to 4096 bytes");
}

/// Writes `bytes` to this process's one file, in memory where the system has such a place, and returns its name.
inline std::string as_file(std::string_view bytes) {
  const char* const chosen = std::getenv("FUZZ_FOLDER");
  const std::string name =
      std::string(chosen != nullptr ? chosen : "/dev/shm") + "/deepscale_fuzz_" + std::to_string(this_process_id());
  std::ofstream out(native_path(name).c_str(), std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  claim(out.good(), "the input can be written to a file (FUZZ_FOLDER names a folder for it)");
  return name;
}

/// Removes the file when the program ends.
struct FileRemover {
  ~FileRemover() { remove_file(as_file({})); }
};

}  // namespace deepscale::fuzz
