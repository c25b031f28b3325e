// Writes one rank's tensors as one safetensors file, with checksums taken from the memory that was meant to be written.
// The bytes go through a few page-aligned buffers (block_writer.h), so that writing is as fast as the disk and takes
// little memory. Or through an image: a copy of the whole file in memory, made at once, from which the file is written
// while the tensors change again. Torch-free.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "checkpoint/block_writer.h"
#include "checkpoint/zip_stream.h"
#include "platform/private_memory.h"

namespace deepscale {

struct ShardItem {
  std::string key;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  /// The tensor's bytes, row-major; called when the writer gets there, which keeps what it returns until it has passed.
  /// Bytes that stand in memory anyway: a pointer without ownership.
  std::function<std::shared_ptr<const void>()> data;
  /// data() only says where the bytes stand, so that any thread may ask for any part of them.
  bool in_memory = false;
};

/// The bytes of a safetensors file.
class ShardStream {
 public:
  ShardStream(std::vector<ShardItem> items, const std::map<std::string, std::string>& metadata);

  [[nodiscard]] int64_t bytes() const { return bytes_; }
  /// Where item i begins in the file.
  [[nodiscard]] int64_t begin_of(int item) const { return begins_[item]; }
  /// Whether all items are, so that copies of this stream can be read at once.
  [[nodiscard]] bool in_memory() const;
  /// Bytes [offset, offset + bytes) to destination. Offsets in ascending order where items are loaded on demand: each
  /// is loaded once. Threads: one at a time.
  void copy(int64_t offset, int64_t bytes, char* destination);

 private:
  std::string header_;
  std::vector<ShardItem> items_;
  std::vector<int64_t> begins_;
  int64_t bytes_ = 0;
  int loaded_ = -1;
  std::shared_ptr<const void> data_;
};

/// Writes, brings it to the disk, and returns the checksums of what was meant: write_blocks(). One thread where items
/// are loaded on demand.
FileChecksums write_shard(const std::string& path, const ShardStream& stream, const BlockWriteOptions& options = {});

/// The same for bytes from anywhere: fill(offset, bytes, destination) gives a file's `total` bytes, in ascending order.
FileChecksums write_stream(const std::string& path, int64_t total,
                           const std::function<void(int64_t offset, int64_t bytes, char* destination)>& fill);

/// A copy of a stream, page-aligned, and of bytes that belong to other files. Its memory can be used again for the next
/// ones.
class ShardImage {
 public:
  /// Copies by `threads` threads; a stream or part that is loaded on demand by one, which loads each item once. Makes
  /// memory when there is none or too little. No items: no stream. Each of `parts` says afterwards where its copy
  /// stands, which is as long as this object lives and is not asked to take something else.
  void take(const std::vector<ShardItem>& items, const std::map<std::string, std::string>& metadata, int threads,
            const std::vector<BytePart*>& parts = {});
  [[nodiscard]] int64_t bytes() const { return bytes_; }  ///< of the stream
  [[nodiscard]] int64_t begin_of(int item) const { return begins_[item]; }
  [[nodiscard]] int64_t capacity() const { return memory_ ? memory_->bytes() : 0; }
  /// As write_shard().
  FileChecksums write(const std::string& path, const std::atomic<bool>* cancelled = nullptr) const;

 private:
  void reserve(int64_t bytes);
  void take_stream(const ShardStream& stream, int threads);
  void take_parts(char* place, const std::vector<BytePart*>& parts, int threads);

  std::unique_ptr<PrivateMemory> memory_;
  int64_t bytes_ = 0;
  std::vector<int64_t> begins_;
};

}  // namespace deepscale
