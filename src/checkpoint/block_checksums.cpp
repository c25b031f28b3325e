#include "checkpoint/block_checksums.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "base/error.h"
#include "platform/async_file.h"
#include "platform/files.h"
#include "platform/private_memory.h"

namespace deepscale {

uint64_t checksum_of(const void* data, int64_t bytes) {
  return XXH3_64bits(data, static_cast<size_t>(bytes));
}

FileChecksums new_checksums(int64_t bytes) {
  FileChecksums sums{.bytes = bytes, .block_bytes = block_bytes_for(bytes), .blocks = {}};
  sums.blocks.resize(static_cast<size_t>(sums.count()));
  return sums;
}

void set_checksums(FileChecksums& sums, int64_t offset, const char* data, int64_t count) {
  for (int64_t done = 0; done < count; done += sums.block_bytes) {
    const int64_t block = (offset + done) / sums.block_bytes;
    sums.blocks[static_cast<size_t>(block)] = checksum_of(data + done, sums.bytes_of(block));
  }
}

FileChecksums checksums_of_file(const std::string& path) {
  AsyncFileQueue queue({.depth = 4, .block_bytes = kChunkBytes});
  const AsyncFile file = queue.open(path, FileMode::kRead, FileCaching::kBuffered);
  FileChecksums found = new_checksums(file.bytes());
  constexpr int64_t kAhead = 8;
  const PrivateMemory memory(kAhead * kChunkBytes);
  std::vector<FileTransfer> reads;
  const int64_t chunks = found.bytes / kChunkBytes + (found.bytes % kChunkBytes != 0 ? 1 : 0);
  const auto size_of_chunk = [&](int64_t c) { return std::min(kChunkBytes, found.bytes - c * kChunkBytes); };
  const auto start = [&](int64_t c) {
    reads.push_back(file.read(c * kChunkBytes, memory.data() + c % kAhead * kChunkBytes, size_of_chunk(c)));
  };
  for (int64_t c = 0; c < std::min(kAhead, chunks); ++c) start(c);
  for (int64_t c = 0; c < chunks; ++c) {
    reads[c].wait();
    set_checksums(found, c * kChunkBytes, memory.data() + c % kAhead * kChunkBytes, size_of_chunk(c));
    if (c + kAhead < chunks) start(c + kAhead);
  }
  return found;
}

std::string checksum_text(uint64_t checksum) {
  return fmt::format("{:016x}", checksum);
}

bool parse_checksum(std::string_view text, uint64_t& checksum) {
  if (text.size() != 16) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), checksum, 16);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace deepscale
