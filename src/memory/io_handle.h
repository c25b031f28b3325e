// Reading and writing buffers from and to files by name, many at a time: what deepspeed.ops.aio's handle does.
//
//   IoHandle handle({.queue_depth = 32});
//   handle.start_write({data, bytes, owner}, {.file = "/nvme/moments.swp"});
//   ...                                             // compute
//   handle.wait();                                  // all of them; throws the first failure
//
// A write makes the file where it is missing and leaves its other bytes as they are; disk space is reserved before the
// first byte, so that a full disk is an error at once. A read wants the file to have every byte asked for. Buffers on
// page boundaries (PinnedBuffers) go past the page cache, others through it.
// Threads: any; wait() returns when everything is done that was started before it, and that no other call waits for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <variant>
#include <vector>

#include "memory/pinned_buffers.h"
#include "platform/async_file.h"

namespace deepscale {

struct IoHandleOptions {
  int64_t block_bytes = 1 << 20;  ///< of one request, 1 and more; rounded up to pages
  int64_t queue_depth = 128;      ///< requests under way at once, per unit of parallelism
  int64_t intra_op_parallelism =
      1;  ///< multiplies queue_depth: requests of one operation are under way together anyhow
};

/// Bytes that an operation moves; `owner` is kept until it is over.
struct IoBuffer {
  char* data = nullptr;
  int64_t bytes = 0;
  std::shared_ptr<void> owner = nullptr;
  std::function<void()> arrived = nullptr;  ///< called by who waits, when all went well: to copy on what was read
};

struct IoRequest {
  std::variant<std::string, int> file;  ///< a name, or a descriptor of the C library that is open during the call
  int64_t file_offset = 0;
  bool validate = false;  ///< afterwards, compare buffer and file by an ordinary read
};

/// What a read wants of the file's length.
enum class IoLength : uint8_t {
  kEnough,  ///< all bytes asked for, and any number behind them
  kWhole,   ///< the bytes asked for are the rest of the file
};

class IoHandle {
 public:
  /// Throws ConfigError for numbers out of range, IoError as AsyncFileQueue.
  /// buffers: what allocate() keeps count with; several handles may share one. Null: the handle's own.
  explicit IoHandle(const IoHandleOptions& options, std::shared_ptr<PinnedBuffers> buffers = nullptr);
  IoHandle(const IoHandle&) = delete;
  IoHandle& operator=(const IoHandle&) = delete;
  /// Waits for everything; failures that nobody waited for are errors in the log.
  ~IoHandle();

  /// Throw IoError for a file that cannot be opened, is too short to read or has no room to write (both with file and
  /// sizes); what happens later is thrown by wait().
  void start_read(IoBuffer buffer, const IoRequest& request);
  void start_write(IoBuffer buffer, const IoRequest& request);
  /// The number of operations that were waiting to be waited for. Throws IoError with the first failure, and the number
  /// of further ones, after all of them are over; none is left then.
  int64_t wait();

  /// One operation from beginning to end; others are not waited for. Throws as start and wait.
  void read(IoBuffer buffer, const IoRequest& request, IoLength length = IoLength::kEnough);
  void write(IoBuffer buffer, const IoRequest& request);

  /// A pinned buffer, registered with this handle's queue.
  [[nodiscard]] std::shared_ptr<char> allocate(int64_t bytes) { return buffers_->allocate(bytes, queue_.get()); }
  [[nodiscard]] PinnedBuffers& buffers() { return *buffers_; }
  [[nodiscard]] const AsyncEngineChoice& engine() const { return queue_->engine(); }

 private:
  struct Operation;
  [[nodiscard]] Operation reading(IoBuffer buffer, const IoRequest& request, IoLength wanted) const;
  [[nodiscard]] Operation writing(IoBuffer buffer, const IoRequest& request) const;
  void add(Operation operation);
  [[nodiscard]] AsyncFile open(const IoBuffer& buffer, const IoRequest& request, FileMode mode) const;

  std::unique_ptr<AsyncFileQueue> queue_;
  std::shared_ptr<PinnedBuffers> buffers_;
  std::mutex mutex_;
  std::vector<Operation> pending_;  // belongs to the mutex
};

}  // namespace deepscale
