#include "checkpoint/shard_writer.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/shape.h"
#include "base/thread_team.h"
#include "checkpoint/safetensors.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

constexpr int64_t kPage = 4096, kLine = 64;
constexpr int64_t kPiece = int64_t{4} << 20;  // of a part, copied by one thread
constexpr int64_t kRun = int64_t{16} << 20;   // of a stream, like
constexpr int64_t kMostThreads = 64;

constexpr int64_t round_up(int64_t bytes, int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

int64_t bytes_of(const ShardItem& item) {
  return numel_of(item.shape) * size_of(item.dtype);
}

std::string header_of(const std::vector<ShardItem>& items, const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsItem> listed;
  for (const ShardItem& item : items) listed.push_back({item.key, item.dtype, item.shape, nullptr});
  return safetensors_header_text(listed, metadata);
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
    kernels::copy_bytes(static_cast<const char*>(data_.get()) + (offset - begins_[item]), destination, part);
    destination += part;
    offset += part;
  }
  if (offset == bytes_) data_.reset();
}

bool ShardStream::in_memory() const {
  return std::all_of(items_.begin(), items_.end(), [](const ShardItem& item) { return item.in_memory; });
}

FileChecksums write_shard(const std::string& path, const ShardStream& stream, const BlockWriteOptions& options) {
  // What is loaded for the writer is loaded once, in order.
  const BlockWriteOptions own = {
      .threads = stream.in_memory() ? options.threads : 1, .cancelled = options.cancelled, .memory = options.memory};
  const auto make_source = [&stream]() -> BlockSource {
    return [own_stream = std::make_shared<ShardStream>(stream)](int64_t offset, int64_t bytes, char* buffer) {
      own_stream->copy(offset, bytes, buffer);
      return buffer;
    };
  };
  return write_blocks(path, stream.bytes(), make_source, own);
}

FileChecksums write_stream(const std::string& path, int64_t total,
                           const std::function<void(int64_t offset, int64_t bytes, char* destination)>& fill) {
  const auto make_source = [&fill]() -> BlockSource {
    return [&fill](int64_t offset, int64_t bytes, char* buffer) {
      fill(offset, bytes, buffer);
      return buffer;
    };
  };
  return write_blocks(path, total, make_source, {});
}

void ShardImage::reserve(int64_t bytes) {
  if (capacity() >= bytes || bytes == 0) return;
  memory_.reset();
  memory_ = std::make_unique<PrivateMemory>(bytes);
}

void ShardImage::take(const std::vector<ShardItem>& items, const std::map<std::string, std::string>& metadata,
                      int threads, const std::vector<BytePart*>& parts) {
  const ShardStream stream(items, metadata);
  bytes_ = items.empty() ? 0 : stream.bytes();
  begins_.clear();
  for (size_t i = 0; i < items.size(); ++i) begins_.push_back(stream.begin_of(static_cast<int>(i)));
  const int64_t behind = round_up(bytes_, kPage);
  int64_t needed = behind;
  for (const BytePart* part : parts) needed += round_up(part->bytes, kLine);
  reserve(needed);
  if (bytes_ > 0) take_stream(stream, threads);
  if (!parts.empty()) take_parts(memory_ ? memory_->data() + behind : nullptr, parts, threads);
}

void ShardImage::take_stream(const ShardStream& stream, int threads) {
  // What is loaded on demand is loaded once.
  std::atomic<int64_t> next = 0;
  run_team(stream.in_memory() ? std::clamp<int64_t>(threads, 1, kMostThreads) : 1, [&](int64_t) {
    ShardStream source(stream);
    for (int64_t begin = next++ * kRun; begin < bytes_; begin = next++ * kRun) {
      source.copy(begin, std::min(kRun, bytes_ - begin), memory_->data() + begin);
    }
  });
}

void ShardImage::take_parts(char* place, const std::vector<BytePart*>& parts, int threads) {
  struct Copy {
    const char* from;
    char* to;
    int64_t bytes;
  };
  std::vector<Copy> copies;
  std::vector<std::shared_ptr<const void>> kept;
  for (BytePart* part : parts) {
    char* const to = place;
    place += round_up(part->bytes, kLine);
    if (part->bytes == 0) continue;
    std::shared_ptr<const void> data = part->data();
    if (part->in_memory) {
      for (int64_t done = 0; done < part->bytes; done += kPiece) {
        copies.push_back(
            {static_cast<const char*>(data.get()) + done, to + done, std::min(kPiece, part->bytes - done)});
      }
      kept.push_back(std::move(data));
    } else {
      std::memcpy(to, data.get(), static_cast<size_t>(part->bytes));  // one at a time: they take memory
    }
    *part = part_of(to, part->bytes);
  }
  std::atomic<size_t> next = 0;
  run_team(std::clamp<int64_t>(threads, 1, kMostThreads), [&](int64_t) {
    for (size_t i = next++; i < copies.size(); i = next++) {
      kernels::copy_bytes(copies[i].from, copies[i].to, copies[i].bytes);
    }
  });
}

FileChecksums ShardImage::write(const std::string& path, const std::atomic<bool>* cancelled) const {
  const auto make_source = [this]() -> BlockSource {
    return [this](int64_t offset, int64_t, char*) { return memory_->data() + offset; };
  };
  return write_blocks(path, bytes_, make_source, {.threads = 1, .cancelled = cancelled});  // the others train
}

}  // namespace deepscale
