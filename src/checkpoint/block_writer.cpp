#include "checkpoint/block_writer.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/thread_team.h"
#include "platform/async_file.h"

namespace deepscale {
namespace {

constexpr int64_t kMostWriters = 4;
// Filled, summed and written at once: fewer awakenings than by single chunks.
constexpr int64_t kPieceBytes = 4 * kChunkBytes;
// On their way at once, and pieces in memory: each thread fills one or two more. 36 MiB for one thread, some 60 for
// more.
constexpr int64_t kDepth = 8, kPiecesAlone = 9, kPieces = 14, kFewestOfEach = 4;

int64_t pieces_of_each(int64_t threads, int64_t total) {
  const int64_t wanted = threads == 1 ? kPiecesAlone : std::max(kFewestOfEach, kPieces / threads);
  return std::min(wanted, total / kPieceBytes + 1);
}

class BlockWriter {
 public:
  BlockWriter(const std::string& path, int64_t total, int64_t threads, const BlockWriteOptions& options)
      : path_(path),
        options_(options),
        sums_(new_checksums(total)),
        buffers_(pieces_of_each(threads, total)),
        memory_(options.memory, threads * buffers_ * kPieceBytes),
        queue_({.depth = kDepth, .block_bytes = kPieceBytes}),
        file_(queue_.open(path, FileMode::kCreate, FileCaching::kDirect)) {
    file_.preallocate(total);
  }

  FileChecksums run(const std::vector<BlockSource>& sources) {
    run_team(static_cast<int64_t>(sources.size()), [&](int64_t thread) {
      try {
        work(sources[thread], memory_.data() + thread * buffers_ * kPieceBytes);
      } catch (...) {
        keep_first_error();
        if (options_.on_failure) options_.on_failure();
      }
    });
    if (error_) std::rethrow_exception(error_);
    file_.sync();
    return std::move(sums_);
  }

 private:
  /// What other threads throw afterwards follows from it.
  void keep_first_error() {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
    failed_ = true;
  }

  void work(const BlockSource& source, char* buffers) {
    std::vector<std::optional<FileTransfer>> transfers(buffers_);
    for (int64_t turn = 0; !failed_; turn = (turn + 1) % buffers_) {
      if (transfers[turn]) transfers[turn]->wait();
      const int64_t offset = next_++ * kPieceBytes;
      if (offset >= sums_.bytes) break;
      const int64_t bytes = std::min(kPieceBytes, sums_.bytes - offset);
      const char* const data = source(offset, bytes, buffers + turn * kPieceBytes);
      DS_CHECK_AS(IoError, options_.cancelled == nullptr || !*options_.cancelled, "writing {} was cancelled", path_);
      transfers[turn].emplace(file_.write(offset, data, bytes));
      set_checksums(sums_, offset, data, bytes);
    }
    for (std::optional<FileTransfer>& transfer : transfers) {
      if (transfer && !failed_) transfer->wait();
    }
  }

  const std::string& path_;
  const BlockWriteOptions& options_;
  FileChecksums sums_;
  int64_t buffers_;
  BorrowedMemory memory_;
  AsyncFileQueue queue_;
  AsyncFile file_;
  std::atomic<int64_t> next_ = 0;
  std::atomic<bool> failed_ = false;
  std::mutex mutex_;
  std::exception_ptr error_;
};

}  // namespace

FileChecksums write_blocks(const std::string& path, int64_t total, const std::function<BlockSource()>& make_source,
                           const BlockWriteOptions& options) {
  const int64_t threads =
      std::clamp<int64_t>(options.threads, 1, std::clamp<int64_t>(total / kPieceBytes, 1, kMostWriters));
  std::vector<BlockSource> sources;
  for (int64_t i = 0; i < threads; ++i) sources.push_back(make_source());
  return BlockWriter(path, total, threads, options).run(sources);
}

}  // namespace deepscale
