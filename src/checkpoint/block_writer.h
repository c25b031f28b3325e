// Writes one file of known length past the page cache (platform/async_file.h), chunk by chunk, with the checksum of
// each of its blocks taken from the memory that was meant to be written. Several threads fill chunks and sum them while
// others are on their way to the disk: one core alone copies slower than a fast disk writes. Torch-free.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "checkpoint/block_checksums.h"
#include "platform/kept_memory.h"

namespace deepscale {

/// Bytes [offset, offset + bytes) of the file: written into `buffer` and that returned, or a pointer to where they
/// stand, which must stay until the file is written. Some chunks at a time, in ascending order for one source.
using BlockSource = std::function<const char*(int64_t offset, int64_t bytes, char* buffer)>;

struct BlockWriteOptions {
  int threads = 1;                               ///< the caller's among them; some four are used at most
  std::function<void()> on_failure = {};         ///< called when a thread has ended with an error, while others go on
  const std::atomic<bool>* cancelled = nullptr;  ///< when it becomes true, writing ends with an IoError
  KeptMemory* memory = nullptr;                  ///< what is filled; null: memory that goes with the call
};

/// Makes or replaces the file, brings it to the disk, and returns the checksums. make_source is called once for each
/// thread, in the caller's; the sources are then used by a thread each. Throws IoError naming the file and what the
/// system says, and what a source throws; a file that was begun stays.
FileChecksums write_blocks(const std::string& path, int64_t total, const std::function<BlockSource()>& make_source,
                           const BlockWriteOptions& options);

}  // namespace deepscale
