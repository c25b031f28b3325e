#include "checkpoint/verified_file.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>

#include "base/error.h"
#include "platform/async_file.h"
#include "platform/files.h"
#include "platform/private_memory.h"

namespace deepscale {
namespace {

constexpr int64_t kAhead = 6;  // blocks that are read while one is checked

void check_size(const std::string& folder, const ManifestFile& file) {
  const auto bytes = file_size(folder + "/" + file.name);
  DS_CHECK_AS(CheckpointError, bytes.has_value(), "checkpoint {}: the file {} is missing", folder, file.name);
  DS_CHECK_AS(CheckpointError, *bytes == file.checksums.bytes, "checkpoint {}: the file {} has {} bytes, expected {}",
              folder, file.name, *bytes, file.checksums.bytes);
}

/// Blocks of a file in ascending order, read ahead.
class BlockReader {
 public:
  BlockReader(const std::string& folder, const ManifestFile& file, std::vector<int64_t> blocks)
      : source_(file),
        blocks_(std::move(blocks)),
        memory_(std::clamp<int64_t>(static_cast<int64_t>(blocks_.size()), 1, kAhead + 1) * kChecksumBlock),
        queue_({.depth = 16, .block_bytes = int64_t{1} << 20}),
        file_(queue_.open(folder + "/" + file.name, FileMode::kRead, FileCaching::kDirect)) {}

  [[nodiscard]] int64_t bytes_of(int64_t block) const {
    return std::min(kChecksumBlock, source_.checksums.bytes - block * kChecksumBlock);
  }
  /// The block's bytes, until the next call. `intact` says whether its checksum is right.
  const char* next(int64_t block, bool& intact) {
    const int64_t places = memory_.bytes() / kChecksumBlock;
    for (; started_ < static_cast<int64_t>(blocks_.size()) && started_ - taken_ < places; ++started_) {
      char* const place = memory_.data() + started_ % places * kChecksumBlock;
      reads_.push_back(file_.read(blocks_[started_] * kChecksumBlock, place, bytes_of(blocks_[started_])));
    }
    reads_.front().wait();
    reads_.pop_front();
    const char* const data = memory_.data() + taken_++ % places * kChecksumBlock;
    intact = checksum_of(data, bytes_of(block)) == source_.checksums.blocks[block];
    return data;
  }

 private:
  const ManifestFile& source_;
  std::vector<int64_t> blocks_;
  PrivateMemory memory_;
  AsyncFileQueue queue_;
  AsyncFile file_;
  std::deque<FileTransfer> reads_;
  int64_t started_ = 0, taken_ = 0;
};

std::string damage_text(const std::string& folder, const ManifestFile& file, int64_t first, int64_t last) {
  return fmt::format("checkpoint {}: the file {} is damaged between byte {} and {}: its checksum is another one",
                     folder, file.name, first * kChecksumBlock,
                     std::min(file.checksums.bytes, (last + 1) * kChecksumBlock));
}

}  // namespace

void read_verified(const std::string& folder, const ManifestFile& file, std::vector<FilePart> parts) {
  std::erase_if(parts, [](const FilePart& part) { return part.bytes == 0; });
  check_size(folder, file);
  std::sort(parts.begin(), parts.end(), [](const FilePart& a, const FilePart& b) { return a.begin < b.begin; });
  std::vector<int64_t> blocks;
  for (const FilePart& part : parts) {
    DS_CHECK_AS(CheckpointError, part.begin >= 0 && part.bytes <= file.checksums.bytes - part.begin,
                "checkpoint {}: bytes {} to {} of {} were asked for, which has {}", folder, part.begin,
                part.begin + part.bytes, file.name, file.checksums.bytes);
    const int64_t last = (part.begin + part.bytes - 1) / kChecksumBlock;
    for (int64_t b = part.begin / kChecksumBlock; b <= last; ++b) {
      if (blocks.empty() || blocks.back() < b) blocks.push_back(b);
    }
  }
  if (blocks.empty()) return;
  BlockReader reader(folder, file, blocks);
  size_t first = 0;
  for (const int64_t block : blocks) {
    bool intact = false;
    const char* const data = reader.next(block, intact);
    DS_CHECK_AS(CheckpointError, intact, "{}", damage_text(folder, file, block, block));
    const int64_t begin = block * kChecksumBlock, end = begin + reader.bytes_of(block);
    while (first < parts.size() && parts[first].begin + parts[first].bytes <= begin) ++first;
    for (size_t i = first; i < parts.size() && parts[i].begin < end; ++i) {
      const int64_t from = std::max(begin, parts[i].begin), to = std::min(end, parts[i].begin + parts[i].bytes);
      if (from >= to) continue;
      std::memcpy(static_cast<char*>(parts[i].destination) + (from - parts[i].begin), data + (from - begin),
                  static_cast<size_t>(to - from));
    }
  }
}

std::vector<int64_t> damaged_blocks(const std::string& folder, const ManifestFile& file, int64_t first, int64_t count,
                                    const std::function<void(int64_t bytes)>& read) {
  check_size(folder, file);
  std::vector<int64_t> blocks(count), damaged;
  std::iota(blocks.begin(), blocks.end(), first);
  if (blocks.empty()) return damaged;
  BlockReader reader(folder, file, blocks);
  for (const int64_t block : blocks) {
    bool intact = false;
    (void)reader.next(block, intact);
    if (!intact) damaged.push_back(block);
    if (read) read(reader.bytes_of(block));
  }
  return damaged;
}

std::vector<std::string> damage_lines(const std::string& folder, const ManifestFile& file,
                                      const std::vector<int64_t>& blocks) {
  std::vector<std::string> lines;
  for (size_t i = 0; i < blocks.size();) {
    size_t end = i + 1;
    while (end < blocks.size() && blocks[end] == blocks[end - 1] + 1) ++end;
    lines.push_back(damage_text(folder, file, blocks[i], blocks[end - 1]));
    i = end;
  }
  return lines;
}

std::vector<std::string> verify_file(const std::string& folder, const ManifestFile& file) {
  try {
    return damage_lines(folder, file, damaged_blocks(folder, file, 0, block_count(file.checksums.bytes)));
  } catch (const Error& error) {
    return {error.what()};
  }
}

CheckpointTensors::CheckpointTensors(std::string folder)
    : folder_(std::move(folder)), manifest_(read_manifest(folder_)) {
  for (const ManifestFile& file : manifest_.files) check_size(folder_, file);
  for (size_t i = 0; i < manifest_.tensors.size(); ++i) places_[manifest_.tensors[i].name] = static_cast<int>(i);
}

const ManifestTensor* CheckpointTensors::find(const std::string& name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : &manifest_.tensors[found->second];
}

void CheckpointTensors::read(const std::vector<Request>& requests) const {
  std::vector<std::vector<FilePart>> parts(manifest_.files.size());
  for (const Request& request : requests) {
    const ManifestTensor* tensor = find(request.name);
    DS_CHECK_AS(CheckpointError, tensor != nullptr, "checkpoint {} has no tensor {}", folder_, request.name);
    DS_CHECK_AS(CheckpointError,
                request.offset >= 0 && request.numel >= 0 && request.numel <= tensor->numel() - request.offset,
                "checkpoint {}: elements {} to {} of tensor {} were asked for, which has {}", folder_, request.offset,
                request.offset + request.numel, request.name, tensor->numel());
    const int64_t element = size_of(tensor->dtype), end = request.offset + request.numel;
    for (const ManifestSlice& slice : tensor->slices) {
      const int64_t from = std::max(slice.offset, request.offset), to = std::min(slice.offset + slice.numel, end);
      if (from >= to) continue;
      parts[slice.file].push_back({slice.begin + (from - slice.offset) * element, (to - from) * element,
                                   static_cast<char*>(request.destination) + (from - request.offset) * element});
    }
  }
  for (size_t f = 0; f < parts.size(); ++f) {
    if (!parts[f].empty()) read_verified(folder_, manifest_.files[f], std::move(parts[f]));
  }
}

void CheckpointTensors::check_file(const std::string& name) const {
  const auto file = std::find_if(manifest_.files.begin(), manifest_.files.end(),
                                 [&](const ManifestFile& entry) { return entry.name == name; });
  DS_CHECK_AS(CheckpointError, file != manifest_.files.end(), "checkpoint {} has no file {}", folder_, name);
  const std::vector<std::string> problems = verify_file(folder_, *file);
  DS_CHECK_AS(CheckpointError, problems.empty(), "{}", problems.front());
}

}  // namespace deepscale
