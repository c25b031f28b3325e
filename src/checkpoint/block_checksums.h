// Checksums of a file by blocks, so that any part of it can be checked without reading the rest: XXH3 with 64 bits
// (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md), which finds damage, not malice. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// What files are written and read in; the largest block of files that are written now.
inline constexpr int64_t kChunkBytes = int64_t{1} << 20;

[[nodiscard]] uint64_t checksum_of(const void* data, int64_t bytes);
[[nodiscard]] inline uint64_t checksum_of(std::string_view text) {
  return checksum_of(text.data(), static_cast<int64_t>(text.size()));
}

/// The size of blocks for a file of `bytes` bytes: a power of two from 64 KiB to kChunkBytes. Who reads parts of a file
/// reads whole blocks: large ones cost ranks of another number a share of their reads, small ones room in the manifest.
/// Files below 16 GiB have at most 2^14 blocks; from 8 GiB on blocks have the largest size.
[[nodiscard]] constexpr int64_t block_bytes_for(int64_t bytes) {
  int64_t block = kChunkBytes / 16;
  while (block < kChunkBytes && bytes / block >= int64_t{1} << 14) block *= 2;
  return block;
}

/// Sizes that manifests may name: powers of two that any disk reads directly, and that readers have room for.
[[nodiscard]] constexpr bool is_block_size(int64_t bytes) {
  return bytes >= 4096 && bytes <= kChunkBytes && (bytes & (bytes - 1)) == 0;
}

struct FileChecksums {
  int64_t bytes = 0;
  int64_t block_bytes = kChunkBytes;  ///< the last block may be shorter
  std::vector<uint64_t> blocks;       ///< none for a file without bytes

  [[nodiscard]] int64_t count() const { return bytes / block_bytes + (bytes % block_bytes != 0 ? 1 : 0); }
  [[nodiscard]] int64_t bytes_of(int64_t block) const { return std::min(block_bytes, bytes - block * block_bytes); }
};

/// Of a file of `bytes` bytes: every checksum is 0 yet.
[[nodiscard]] FileChecksums new_checksums(int64_t bytes);
/// Enters those of the blocks in bytes [offset, offset + count) of the file, which begin with a block. Threads: several
/// at once for different blocks.
void set_checksums(FileChecksums& sums, int64_t offset, const char* data, int64_t count);

/// Reads the whole file. Throws IoError.
[[nodiscard]] FileChecksums checksums_of_file(const std::string& path);

/// 16 hexadecimal digits, and back; false when the text is not such.
[[nodiscard]] std::string checksum_text(uint64_t checksum);
[[nodiscard]] bool parse_checksum(std::string_view text, uint64_t& checksum);

}  // namespace deepscale
