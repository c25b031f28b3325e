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

FileChecksums checksums_of_file(const std::string& path) {
  FileChecksums found;
  AsyncFileQueue queue({.depth = 4, .block_bytes = kChecksumBlock});
  const AsyncFile file = queue.open(path, FileMode::kRead, FileCaching::kBuffered);
  found.bytes = file.bytes();
  constexpr int64_t kAhead = 8;
  const PrivateMemory memory(kAhead * kChecksumBlock);
  std::vector<FileTransfer> reads;
  const int64_t blocks = block_count(found.bytes);
  const auto size_of_block = [&](int64_t b) { return std::min(kChecksumBlock, found.bytes - b * kChecksumBlock); };
  const auto start = [&](int64_t b) {
    reads.push_back(file.read(b * kChecksumBlock, memory.data() + b % kAhead * kChecksumBlock, size_of_block(b)));
  };
  for (int64_t b = 0; b < std::min(kAhead, blocks); ++b) start(b);
  for (int64_t b = 0; b < blocks; ++b) {
    reads[b].wait();
    found.blocks.push_back(checksum_of(memory.data() + b % kAhead * kChecksumBlock, size_of_block(b)));
    if (b + kAhead < blocks) start(b + kAhead);
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
