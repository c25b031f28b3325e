#include "memory/io_handle.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "memory/io_calibration.h"

namespace deepscale {
namespace {

constexpr int64_t kCompareBytes = 4 << 20;

AsyncFileOptions queue_options(const IoHandleOptions& options) {
  DS_CHECK_AS(ConfigError, options.block_bytes >= 1 && options.block_bytes <= int64_t{1} << 30,
              "block_size must be 1 to 2^30 bytes, found {}", options.block_bytes);
  DS_CHECK_AS(ConfigError, options.queue_depth >= 1, "queue_depth must be at least 1, found {}", options.queue_depth);
  DS_CHECK_AS(ConfigError, options.intra_op_parallelism >= 1, "intra_op_parallelism must be at least 1, found {}",
              options.intra_op_parallelism);
  constexpr int64_t kMost = 1 << 20;  // of each factor, lest the product overflow
  return queue_options_near(std::min(options.queue_depth, kMost) * std::min(options.intra_op_parallelism, kMost),
                            options.block_bytes);
}

/// Throws IoError when the file has other bytes than the buffer.
void compare(const AsyncFile& file, const IoBuffer& buffer, int64_t file_offset) {
  std::vector<char> bytes(static_cast<size_t>(std::min(kCompareBytes, buffer.bytes)));
  for (int64_t done = 0; done < buffer.bytes;) {
    const int64_t part = std::min(kCompareBytes, buffer.bytes - done);
    file.read(file_offset + done, bytes.data(), part).wait();
    const char* const expected = buffer.data + done;
    const auto difference = std::mismatch(bytes.begin(), bytes.begin() + part, expected).first - bytes.begin();
    DS_CHECK_AS(IoError, difference == part, "validate: {} and the buffer of {} bytes differ at byte {} of the file",
                file.path(), buffer.bytes, file_offset + done + difference);
    done += part;
  }
}

}  // namespace

struct IoHandle::Operation {
  AsyncFile file;
  IoBuffer buffer;
  int64_t file_offset = 0;
  bool validate = false;
  FileTransfer transfer;  // ends before the buffer does

  void finish() {
    transfer.wait();
    if (validate) compare(file, buffer, file_offset);
    if (buffer.arrived) buffer.arrived();
  }
};

IoHandle::IoHandle(const IoHandleOptions& options, std::shared_ptr<PinnedBuffers> buffers)
    : queue_(std::make_unique<AsyncFileQueue>(queue_options(options))),
      buffers_(buffers ? std::move(buffers) : std::make_shared<PinnedBuffers>()) {}

IoHandle::~IoHandle() {
  try {
    wait();
  } catch (const IoError& error) {
    Logger().error("nobody waited for this operation on a file: {}", error.what());
  }
}

AsyncFile IoHandle::open(const IoBuffer& buffer, const IoRequest& request, FileMode mode) const {
  DS_CHECK_AS(IoError, request.file_offset >= 0 && request.file_offset <= INT64_MAX - buffer.bytes,
              "file_offset must not be negative, found {} (buffer of {} bytes)", request.file_offset, buffer.bytes);
  if (const int* const descriptor = std::get_if<int>(&request.file)) {
    return queue_->open_descriptor(*descriptor, FileCaching::kDirect);
  }
  return queue_->open(std::get<std::string>(request.file), mode, FileCaching::kDirect);
}

IoHandle::Operation IoHandle::reading(IoBuffer buffer, const IoRequest& request, IoLength wanted) const {
  AsyncFile file = open(buffer, request, FileMode::kRead);
  const int64_t offset = request.file_offset;
  const int64_t length = file.bytes();
  const bool fits = wanted == IoLength::kWhole ? length == offset + buffer.bytes : length >= offset + buffer.bytes;
  DS_CHECK_AS(IoError, fits, "cannot read {} bytes at offset {} of {}: the file has {} bytes; give a buffer that {}",
              buffer.bytes, offset, file.path(), length,
              wanted == IoLength::kWhole ? "holds all of it (or use pread)" : "fits it");
  FileTransfer transfer = file.read(offset, buffer.data, buffer.bytes);
  return {std::move(file), std::move(buffer), offset, request.validate, std::move(transfer)};
}

IoHandle::Operation IoHandle::writing(IoBuffer buffer, const IoRequest& request) const {
  AsyncFile file = open(buffer, request, FileMode::kReadWrite);
  const int64_t end = request.file_offset + buffer.bytes;
  if (file.bytes() < end) file.preallocate(end, request.file_offset);
  FileTransfer transfer = file.write(request.file_offset, buffer.data, buffer.bytes);
  return {std::move(file), std::move(buffer), request.file_offset, request.validate, std::move(transfer)};
}

void IoHandle::add(Operation operation) {
  const std::lock_guard guard(mutex_);
  pending_.push_back(std::move(operation));
}

void IoHandle::start_read(IoBuffer buffer, const IoRequest& request) {
  add(reading(std::move(buffer), request, IoLength::kEnough));
}

void IoHandle::start_write(IoBuffer buffer, const IoRequest& request) {
  add(writing(std::move(buffer), request));
}

int64_t IoHandle::wait() {
  std::vector<Operation> operations;
  {
    const std::lock_guard guard(mutex_);
    operations.swap(pending_);
  }
  std::string first;
  int further = 0;
  for (Operation& operation : operations) {
    try {
      operation.finish();
    } catch (const std::exception& error) {
      if (first.empty()) {
        first = error.what();
      } else {
        ++further;
      }
    }
  }
  if (further > 0) first += fmt::format(" (and {} more of {} operations failed)", further, operations.size());
  DS_CHECK_AS(IoError, first.empty(), "{}", first);
  return std::ssize(operations);
}

void IoHandle::read(IoBuffer buffer, const IoRequest& request, IoLength length) {
  reading(std::move(buffer), request, length).finish();
}

void IoHandle::write(IoBuffer buffer, const IoRequest& request) {
  writing(std::move(buffer), request).finish();
}

}  // namespace deepscale
