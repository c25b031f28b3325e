#include "checkpoint/shard_writer.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/shape.h"
#include "checkpoint/safetensors.h"
#include "platform/async_file.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kBuffers = 4;  // of a block each: two being filled or waiting while others are on their way

int64_t bytes_of(const ShardItem& item) {
  return numel_of(item.shape) * size_of(item.dtype);
}

std::string header_of(const std::vector<ShardItem>& items, const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsItem> listed;
  for (const ShardItem& item : items) listed.push_back({item.key, item.dtype, item.shape, nullptr});
  return safetensors_header_text(listed, metadata);
}

/// Writes a file block by block. block_at(offset, bytes) returns a block's memory, which must stay until kBuffers - 1
/// more blocks were asked for.
template <typename BlockAt>
FileChecksums write_blocks(const std::string& path, int64_t total, const std::atomic<bool>* cancelled,
                           const BlockAt& block_at) {
  FileChecksums sums{total, {}};
  AsyncFileQueue queue({.depth = 8, .block_bytes = int64_t{1} << 20});
  const AsyncFile file = queue.open(path, FileMode::kCreate, FileCaching::kDirect);
  file.preallocate(total);
  std::deque<FileTransfer> transfers;
  const auto wait_until = [&](size_t left) {
    while (transfers.size() > left) {
      transfers.front().wait();
      transfers.pop_front();
    }
  };
  for (int64_t offset = 0; offset < total; offset += kChecksumBlock) {
    const int64_t bytes = std::min(kChecksumBlock, total - offset);
    wait_until(kBuffers - 1);
    const char* const data = block_at(offset, bytes);
    DS_CHECK_AS(IoError, cancelled == nullptr || !*cancelled, "writing {} was cancelled", path);
    transfers.push_back(file.write(offset, data, bytes));
    sums.blocks.push_back(checksum_of(data, bytes));
  }
  wait_until(0);
  file.sync();
  return sums;
}

}  // namespace

ShardStream::ShardStream(std::vector<ShardItem> items, const std::map<std::string, std::string>& metadata)
    : header_(header_of(items, metadata)), items_(std::move(items)) {
  bytes_ = static_cast<int64_t>(header_.size());
  for (const ShardItem& item : items_) {
    begins_.push_back(bytes_);
    bytes_ += bytes_of(item);
  }
}

void ShardStream::copy(int64_t offset, int64_t bytes, char* destination) {
  const int64_t end = offset + bytes;
  const auto header_bytes = static_cast<int64_t>(header_.size());
  if (offset < header_bytes) {
    const int64_t part = std::min(end, header_bytes) - offset;
    std::memcpy(destination, header_.data() + offset, static_cast<size_t>(part));
    destination += part;
    offset += part;
  }
  int item = static_cast<int>(std::upper_bound(begins_.begin(), begins_.end(), offset) - begins_.begin()) - 1;
  for (; offset < end; ++item) {
    const int64_t part = std::min(end, begins_[item] + bytes_of(items_[item])) - offset;
    if (part <= 0) continue;
    if (loaded_ != item) {
      data_.reset();
      data_ = items_[item].data();
      loaded_ = item;
    }
    std::memcpy(destination, static_cast<const char*>(data_.get()) + (offset - begins_[item]),
                static_cast<size_t>(part));
    destination += part;
    offset += part;
  }
  if (offset == bytes_) data_.reset();
}

namespace {

FileChecksums write_filled(const std::string& path, int64_t total, const std::atomic<bool>* cancelled,
                           const std::function<void(int64_t offset, int64_t bytes, char* destination)>& fill) {
  const PrivateMemory memory(kBuffers * kChecksumBlock);
  return write_blocks(path, total, cancelled, [&](int64_t offset, int64_t bytes) {
    char* const buffer = memory.data() + offset / kChecksumBlock % kBuffers * kChecksumBlock;
    fill(offset, bytes, buffer);
    return buffer;
  });
}

}  // namespace

FileChecksums write_shard(const std::string& path, ShardStream& stream, const std::atomic<bool>* cancelled) {
  return write_filled(path, stream.bytes(), cancelled, [&](int64_t offset, int64_t bytes, char* destination) {
    stream.copy(offset, bytes, destination);
  });
}

FileChecksums write_stream(const std::string& path, int64_t total,
                           const std::function<void(int64_t offset, int64_t bytes, char* destination)>& fill) {
  return write_filled(path, total, nullptr, fill);
}

void ShardImage::take(const std::vector<ShardItem>& items, const std::map<std::string, std::string>& metadata,
                      int threads) {
  ShardStream stream(items, metadata);
  bytes_ = stream.bytes();
  const int64_t needed = (bytes_ + kPage - 1) / kPage * kPage;
  if (capacity() < needed) {
    memory_.reset();
    memory_ = std::make_unique<PrivateMemory>(needed);
  }
  begins_.clear();
  for (size_t i = 0; i < items.size(); ++i) begins_.push_back(stream.begin_of(static_cast<int>(i)));
  const int64_t pieces = std::clamp<int64_t>(threads, 1, 64);
  const int64_t each = (needed / pieces + kPage - 1) / kPage * kPage;
  std::vector<std::exception_ptr> errors(pieces);
  std::vector<std::thread> team;
  const auto copy = [&](int64_t piece) {
    const int64_t begin = std::min(bytes_, piece * each), end = std::min(bytes_, begin + each);
    try {
      ShardStream source(items, metadata);
      if (begin < end) source.copy(begin, end - begin, memory_->data() + begin);
    } catch (...) {
      errors[piece] = std::current_exception();
    }
  };
  team.reserve(pieces);
  for (int64_t piece = 1; piece < pieces; ++piece) {
    try {
      team.emplace_back(copy, piece);
    } catch (const std::system_error&) {  // no more threads; those that run must not be left alone
      copy(piece);
    }
  }
  copy(0);
  for (std::thread& thread : team) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

FileChecksums ShardImage::write(const std::string& path, const std::atomic<bool>* cancelled) const {
  return write_blocks(path, bytes_, cancelled, [this](int64_t offset, int64_t) { return memory_->data() + offset; });
}

}  // namespace deepscale
