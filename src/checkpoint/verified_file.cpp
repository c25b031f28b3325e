#include "checkpoint/verified_file.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "base/thread_team.h"
#include "config/json_text.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

constexpr int64_t kMostReaders = 4;
constexpr int64_t kRunBytes = 4 * kChunkBytes;  // read at once: fewer awakenings than by single blocks
// Runs that are read while one is checked. Together they keep the queue full, and stay below 100 MiB.
constexpr int64_t kAheadAlone = 8, kAheadOfEach = 4;
constexpr int64_t kPlacesOfOneOfSeveral = 3;

/// What is wrong with the file's presence and size; empty: nothing.
std::string size_problem(const std::string& folder, const ManifestFile& file) {
  const auto bytes = file_size(folder + "/" + file.name);
  if (!bytes) return fmt::format("checkpoint {}: the file {} is missing", folder, file.name);
  if (*bytes == file.checksums.bytes) return "";
  return fmt::format("checkpoint {}: the file {} has {} bytes, expected {}", folder, file.name, *bytes,
                     file.checksums.bytes);
}

void check_size(const std::string& folder, const ManifestFile& file) {
  const std::string problem = size_problem(folder, file);
  DS_CHECK_AS(CheckpointError, problem.empty(), "{}", problem);
}

/// Ascending blocks of a file.
struct FileBlocks {
  const ManifestFile* file = nullptr;
  std::vector<int64_t> blocks;
};

/// Blocks [first, first + count) of file number `file`, which are read at once.
struct BlockRun {
  size_t file = 0;
  int64_t first = 0;
  int64_t count = 0;
};

std::vector<BlockRun> runs_of(const std::vector<FileBlocks>& files) {
  std::vector<BlockRun> runs;
  for (size_t f = 0; f < files.size(); ++f) {
    const int64_t longest = kRunBytes / files[f].file->checksums.block_bytes;
    const size_t begin = runs.size();
    for (const int64_t block : files[f].blocks) {
      if (runs.size() == begin || runs.back().first + runs.back().count != block || runs.back().count == longest) {
        runs.push_back({f, block, 0});
      }
      ++runs.back().count;
    }
  }
  return runs;
}

/// How many threads read, and how many runs each has in memory.
struct ReadShape {
  int64_t readers = 1;
  int64_t places = 1;
};

ReadShape shape_for(int64_t runs, int threads) {
  if (threads == kOneOfSeveral) return {1, std::min<int64_t>(runs, kPlacesOfOneOfSeveral)};
  // The queue has a thread of its own: where it shares a processor with readers, the disk waits.
  const int64_t most = std::clamp<int64_t>(threads / 2, 1, kMostReaders);
  const int64_t readers = std::clamp<int64_t>(runs / kAheadAlone, 1, most);
  return {readers, std::min<int64_t>(runs, 1 + (readers == 1 ? kAheadAlone : kAheadOfEach))};
}

/// Called with a file's and a block's number, its bytes, and whether their checksum is right; from several threads at
/// once.
using BlockVisit = std::function<void(size_t file, int64_t block, const char* data, bool intact)>;

/// Reads blocks of files, one file after the other, in ascending order and without a pause between files. Each thread
/// has some of them read ahead while it sums and uses one.
class BlockReader {
 public:
  BlockReader(std::string folder, std::vector<FileBlocks> files, int threads,
              FileCaching caching = FileCaching::kDirect, KeptMemory* memory = nullptr)
      : folder_(std::move(folder)),
        files_(std::move(files)),
        caching_(caching),
        runs_(runs_of(files_)),
        shape_(shape_for(static_cast<int64_t>(runs_.size()), threads)),
        place_bytes_(bytes_of_longest()),
        memory_(memory, shape_.readers * shape_.places * place_bytes_),
        queue_({.depth = 32, .block_bytes = kChunkBytes}) {}

  /// Throws what reading or `visit` throws, after all threads have ended.
  void run(const BlockVisit& visit) {
    run_team(shape_.readers, [&](int64_t thread) {
      try {
        work(memory_.data() + thread * shape_.places * place_bytes_, visit);
      } catch (...) {
        failed_ = true;
        throw;
      }
    });
  }

 private:
  struct Reading {
    BlockRun run;
    char* place;
    FileTransfer transfer;
  };

  [[nodiscard]] const FileChecksums& sums_of(const BlockRun& run) const { return files_[run.file].file->checksums; }

  [[nodiscard]] int64_t bytes_of_longest() const {
    int64_t bytes = 1;
    for (const BlockRun& run : runs_) bytes = std::max(bytes, run.count * sums_of(run).block_bytes);
    return bytes;
  }

  void work(char* memory, const BlockVisit& visit) {
    std::vector<char*> free;
    for (int64_t place = shape_.places; place-- > 0;) free.push_back(memory + place * place_bytes_);
    std::deque<Reading> readings;
    while (!failed_) {
      while (!free.empty()) {
        std::optional<Reading> reading = start_next(free.back());
        if (!reading) break;
        readings.push_back(std::move(*reading));
        free.pop_back();
      }
      if (readings.empty()) return;
      // One that is there already, else the oldest: so that as many as possible are always under way.
      auto next = std::find_if(readings.begin(), readings.end(), [](const Reading& r) { return r.transfer.done(); });
      if (next == readings.end()) next = readings.begin();
      next->transfer.wait();
      for (int64_t i = 0; i < next->run.count; ++i) {
        const int64_t block = next->run.first + i;
        const FileChecksums& sums = sums_of(next->run);
        const char* const data = next->place + i * sums.block_bytes;
        visit(next->run.file, block, data,
              checksum_of(data, sums.bytes_of(block)) == sums.blocks[static_cast<size_t>(block)]);
      }
      free.push_back(next->place);
      readings.erase(next);
    }
  }

  /// In order, so that one file is opened after the other.
  std::optional<Reading> start_next(char* place) {
    const std::lock_guard lock(mutex_);
    if (next_ == runs_.size()) return std::nullopt;
    const BlockRun& run = runs_[next_];
    if (next_ == 0 || runs_[next_ - 1].file != run.file) {
      open_ = queue_.open(folder_ + "/" + files_[run.file].file->name, FileMode::kRead,
                          caching_);  // the last of its transfers closes the one before
    }
    ++next_;
    const FileChecksums& sums = sums_of(run);
    const int64_t begin = run.first * sums.block_bytes;
    const int64_t bytes = std::min(run.count * sums.block_bytes, sums.bytes - begin);
    return Reading{run, place, open_->read(begin, place, bytes)};
  }

  const std::string folder_;
  const std::vector<FileBlocks> files_;
  const FileCaching caching_;
  const std::vector<BlockRun> runs_;
  ReadShape shape_;
  int64_t place_bytes_;
  BorrowedMemory memory_;
  AsyncFileQueue queue_;
  std::mutex mutex_;
  size_t next_ = 0;                ///< run; under the mutex
  std::optional<AsyncFile> open_;  ///< of the last run that was begun; under the mutex
  std::atomic<bool> failed_ = false;
};

std::string damage_text(const std::string& folder, const ManifestFile& file, int64_t first, int64_t last) {
  const FileChecksums& sums = file.checksums;
  return fmt::format("checkpoint {}: the file {} is damaged between byte {} and {}: its checksum is another one",
                     folder, file.name, first * sums.block_bytes, std::min(sums.bytes, (last + 1) * sums.block_bytes));
}

/// Sorts the parts of a file, and says which blocks they touch.
FileBlocks blocks_of_parts(const std::string& folder, const ManifestFile& file, std::vector<FilePart>& parts) {
  check_size(folder, file);
  const FileChecksums& sums = file.checksums;
  std::sort(parts.begin(), parts.end(), [](const FilePart& a, const FilePart& b) { return a.begin < b.begin; });
  FileBlocks touched{&file, {}};
  for (const FilePart& part : parts) {
    DS_CHECK_AS(CheckpointError, part.begin >= 0 && part.bytes <= sums.bytes - part.begin,
                "checkpoint {}: bytes {} to {} of {} were asked for, which has {}", folder, part.begin,
                part.begin + part.bytes, file.name, sums.bytes);
    const int64_t last = (part.begin + part.bytes - 1) / sums.block_bytes;
    for (int64_t b = part.begin / sums.block_bytes; b <= last; ++b) {
      if (touched.blocks.empty() || touched.blocks.back() < b) touched.blocks.push_back(b);
    }
  }
  return touched;
}

/// Bytes [begin, end) of a file, which `data` points to, to where the parts want them. parts: sorted. longest: of them.
void copy_to_parts(const std::vector<FilePart>& parts, int64_t longest, const char* data, int64_t begin, int64_t end) {
  // None that begins before this reaches the bytes.
  auto part = std::lower_bound(parts.begin(), parts.end(), begin - longest + 1,
                               [](const FilePart& p, int64_t value) { return p.begin < value; });
  for (; part != parts.end() && part->begin < end; ++part) {
    const int64_t from = std::max(begin, part->begin), to = std::min(end, part->begin + part->bytes);
    if (from >= to) continue;
    std::memcpy(static_cast<char*>(part->destination) + (from - part->begin), data + (from - begin),
                static_cast<size_t>(to - from));
  }
}

}  // namespace

void read_verified(const std::string& folder, std::vector<FileParts> files, int threads, KeptMemory* memory) {
  std::vector<FileBlocks> touched;
  std::vector<int64_t> longest;
  for (FileParts& wanted : files) std::erase_if(wanted.parts, [](const FilePart& part) { return part.bytes == 0; });
  std::erase_if(files, [](const FileParts& wanted) { return wanted.parts.empty(); });
  for (FileParts& wanted : files) {
    touched.push_back(blocks_of_parts(folder, *wanted.file, wanted.parts));
    longest.push_back(std::max_element(wanted.parts.begin(), wanted.parts.end(), [](const auto& a, const auto& b) {
                        return a.bytes < b.bytes;
                      })->bytes);
  }
  if (files.empty()) return;
  BlockReader reader(folder, std::move(touched), threads, FileCaching::kDirect, memory);
  reader.run([&](size_t number, int64_t block, const char* data, bool intact) {
    const ManifestFile& file = *files[number].file;
    DS_CHECK_AS(CheckpointError, intact, "{}", damage_text(folder, file, block, block));
    const int64_t begin = block * file.checksums.block_bytes;
    copy_to_parts(files[number].parts, longest[number], data, begin, begin + file.checksums.bytes_of(block));
  });
}

std::vector<int64_t> damaged_blocks(const std::string& folder, const ManifestFile& file, int64_t first, int64_t count,
                                    const std::function<void(int64_t bytes)>& read, int threads, FileCaching caching) {
  check_size(folder, file);
  std::vector<int64_t> blocks(count), damaged;
  std::iota(blocks.begin(), blocks.end(), first);
  if (blocks.empty()) return damaged;
  BlockReader reader(folder, {{&file, blocks}}, threads, caching);
  std::mutex mutex;
  reader.run([&](size_t, int64_t block, const char*, bool intact) {
    const std::lock_guard lock(mutex);
    if (!intact) damaged.push_back(block);
    if (read) read(file.checksums.bytes_of(block));
  });
  std::sort(damaged.begin(), damaged.end());
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

FileCaching caching_before_loading(const Manifest& manifest) {
  return manifest.bytes() < process_memory_facts().available_bytes / 2 ? FileCaching::kBuffered : FileCaching::kDirect;
}

std::vector<std::string> verify_file(const std::string& folder, const ManifestFile& file, int threads,
                                     FileCaching caching) {
  try {
    const int64_t count = file.checksums.count();
    return damage_lines(folder, file, damaged_blocks(folder, file, 0, count, {}, threads, caching));
  } catch (const Error& error) {
    return {error.what()};
  }
}

std::vector<std::string> missing_files(const std::string& folder, const Manifest& manifest) {
  const config::Json info = config::parse_json_text(manifest.info);
  const bool apart = info.is_object() && info.contains("own_folders") && info["own_folders"] == true;
  std::vector<std::string> problems;
  for (const ManifestFile& file : manifest.files) {
    std::string problem = size_problem(folder, file);
    if (problem.empty()) continue;
    if (apart) problem += ": the ranks saved into folders of their own, whose files must be brought together in one";
    problems.push_back(std::move(problem));
  }
  return problems;
}

CheckpointTensors::CheckpointTensors(std::string folder, int threads)
    : folder_(std::move(folder)), manifest_(read_manifest(folder_)), memory_(std::make_unique<KeptMemory>()) {
  const std::vector<std::string> missing = missing_files(folder_, manifest_);
  DS_CHECK_AS(CheckpointError, missing.empty(), "{}", missing.front());
  int64_t runs = 0;
  for (const ManifestFile& file : manifest_.files) runs += file.checksums.bytes / kRunBytes;
  if (threads > 0 && runs > kAheadAlone) {
    const ReadShape shape = shape_for(runs, threads);
    memory_->prepare(shape.readers * shape.places * kRunBytes);
  }
  for (size_t i = 0; i < manifest_.tensors.size(); ++i) places_[manifest_.tensors[i].name] = static_cast<int>(i);
}

const ManifestTensor* CheckpointTensors::find(const std::string& name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : &manifest_.tensors[found->second];
}

std::vector<FileParts> CheckpointTensors::no_parts() const {
  std::vector<FileParts> files;
  for (const ManifestFile& file : manifest_.files) files.push_back({&file, {}});
  return files;
}

void CheckpointTensors::read(const std::vector<Request>& requests, int threads) const {
  std::vector<FileParts> wanted = no_parts();
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
      wanted[slice.file].parts.push_back({slice.begin + (from - slice.offset) * element, (to - from) * element,
                                          static_cast<char*>(request.destination) + (from - request.offset) * element});
    }
  }
  read_verified(folder_, std::move(wanted), threads, memory_.get());
}

size_t CheckpointTensors::index_of(const std::string& file) const {
  const auto found = std::find_if(manifest_.files.begin(), manifest_.files.end(),
                                  [&](const ManifestFile& entry) { return entry.name == file; });
  DS_CHECK_AS(CheckpointError, found != manifest_.files.end(), "checkpoint {} has no file {}", folder_, file);
  return static_cast<size_t>(found - manifest_.files.begin());
}

void CheckpointTensors::read_files(const std::vector<FileRequest>& requests, int threads) const {
  std::vector<FileParts> wanted = no_parts();
  for (const FileRequest& request : requests) {
    wanted[index_of(request.file)].parts.push_back({request.begin, request.bytes, request.destination});
  }
  read_verified(folder_, std::move(wanted), threads, memory_.get());
}

void CheckpointTensors::check_file(const std::string& name) const {
  const std::vector<std::string> problems = verify_file(folder_, manifest_.files[index_of(name)]);
  DS_CHECK_AS(CheckpointError, problems.empty(), "{}", problems.front());
}

}  // namespace deepscale
