// Checksums of a file by blocks, so that any part of it can be checked without reading the rest: XXH3 with 64 bits
// (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), which finds damage, not malice. Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

inline constexpr int64_t kChecksumBlock = int64_t{1} << 20;

[[nodiscard]] uint64_t checksum_of(const void* data, int64_t bytes);
[[nodiscard]] inline uint64_t checksum_of(std::string_view text) {
  return checksum_of(text.data(), static_cast<int64_t>(text.size()));
}

/// Blocks of a file of `bytes` bytes: the last one may be shorter, and a file without bytes has none.
[[nodiscard]] constexpr int64_t block_count(int64_t bytes) {
  return bytes / kChecksumBlock + (bytes % kChecksumBlock != 0 ? 1 : 0);
}

struct FileChecksums {
  int64_t bytes = 0;
  std::vector<uint64_t> blocks;
};

/// Reads the whole file. Throws IoError.
[[nodiscard]] FileChecksums checksums_of_file(const std::string& path);

/// 16 hexadecimal digits, and back; false when the text is not such.
[[nodiscard]] std::string checksum_text(uint64_t checksum);
[[nodiscard]] bool parse_checksum(std::string_view text, uint64_t& checksum);

}  // namespace deepscale
