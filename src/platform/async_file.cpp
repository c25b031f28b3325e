// The parts of asynchronous files that know no operating system: splitting, order, retries, errors, lifetimes.
#include "platform/async_file.h"

#include <algorithm>
#include <utility>

#include "base/environment.h"
#include "base/error.h"
#include "base/wait.h"
#include "platform/async_internal.h"
#include "platform/disk_space.h"

namespace deepscale {
namespace async_internal {
namespace {

// Failures of one block without a byte moved in between, after which "try again" is taken for "never".
constexpr int kMaxAttempts = 1000;

std::string where(const Transfer& transfer, const Block& block) {
  return fmt::format("cannot {} {} bytes at offset {} of {}", transfer.writing ? "write" : "read", block.bytes,
                     block.offset, transfer.file->path);
}

std::string failure(const Transfer& transfer, const Block& block, int64_t result) {
  if (result == 0 && !transfer.writing) {
    return fmt::format("{}: the file ends at byte {}, before the {} bytes at offset {} that were asked for",
                       where(transfer, block), block.offset, transfer.bytes, transfer.offset);
  }
  if (result == 0) return where(transfer, block) + ": the system takes no bytes and gives no reason";
  const int error = static_cast<int>(-result);
  if (!is_disk_full(error)) return fmt::format("{}: {}", where(transfer, block), error_text(error));
  const auto space = disk_space(transfer.file->path);
  return fmt::format("{}: {} ({} bytes are free there); free some space or choose a path on another disk",
                     where(transfer, block), error_text(error), space ? space->available_bytes : 0);
}

}  // namespace

Piece next_piece(const OpenFile& file, int64_t block_bytes, int64_t offset, uintptr_t address, int64_t bytes) {
  const int64_t block = std::min(block_bytes, bytes);
  if (file.direct == kNoFile) return {block, false};
  const int64_t past_boundary = offset % file.alignment;
  if (past_boundary != 0) return {std::min(bytes, file.alignment - past_boundary), false};
  if (address % static_cast<uintptr_t>(file.memory_alignment) != 0 || bytes < file.alignment) return {block, false};
  return {std::max(block / file.alignment, int64_t{1}) * file.alignment, true};
}

AskedEngine asked_engine(AsyncEngine wanted) {
  if (wanted != AsyncEngine::kAutomatic) return {wanted, "AsyncFileOptions::engine"};
  const std::string name = environment("DEEPSCALE_ASYNC_IO").value_or("automatic");
  const std::string source = "DEEPSCALE_ASYNC_IO=" + name;
  for (const AsyncEngine engine :
       {AsyncEngine::kAutomatic, AsyncEngine::kIoUring, AsyncEngine::kThreads, AsyncEngine::kCompletionPort}) {
    if (name == async_engine_name(engine)) return {engine, source};
  }
  ds_throw<ConfigError>("{}: must be automatic, io_uring, threads or completion_port; correct or unset it", source);
}

std::string temporary_file_label(const std::string& folder) {
  return folder + "/(temporary file)";
}

std::string Engine::register_buffer(char*, int64_t) {
  return "only io_uring knows registered buffers";
}

bool QueueCore::foreign() const {
  return process_ != this_process_id();
}

std::string QueueCore::foreign_error(const Transfer& transfer) {
  return fmt::format(
      "cannot {} {}: its queue was made by the process that this one was forked from; make a queue (aio_handle) "
      "after the fork",
      transfer.writing ? "write" : "read", transfer.file->path);
}

/// Without the lock, which another thread may have held in the moment of the fork: it is then locked for ever.
void QueueCore::abandon(Transfer& transfer) {
  if (transfer.done.load(std::memory_order_acquire)) return;
  transfer.error = foreign_error(transfer);
  transfer.done.store(true, std::memory_order_release);
}

void QueueCore::submit(Transfer& transfer) {
  DS_CHECK_AS(IoError, !foreign(), "{}", foreign_error(transfer));
  const std::unique_lock guard = lock();
  DS_CHECK_AS(IoError, !stopped_, "cannot {} {}: its queue was closed", transfer.writing ? "write" : "read",
              transfer.file->path);
  if (transfer.bytes == 0) {
    transfer.done.store(true, std::memory_order_release);
    return;
  }
  waiting_.push_back(&transfer);
  engine_->wake();
}

bool QueueCore::is_over(Transfer& transfer) {
  if (!transfer.done.load(std::memory_order_acquire) && foreign()) abandon(transfer);
  return transfer.done.load(std::memory_order_acquire);
}

void QueueCore::wait(Transfer& transfer) {
  if (is_over(transfer)) return;
  std::unique_lock guard = lock();
  wait_until_true(changed_, guard, [&] { return transfer.done.load(std::memory_order_relaxed); });
}

void QueueCore::cancel(Transfer& transfer) {
  if (is_over(transfer)) return;
  {
    const std::unique_lock guard = lock();
    if (transfer.done.load(std::memory_order_relaxed)) return;
    if (transfer.started < transfer.bytes) {
      drop_rest(transfer,
                fmt::format("the {} of {} bytes at offset {} of {} was cancelled", transfer.writing ? "write" : "read",
                            transfer.bytes, transfer.offset, transfer.file->path));
      settle(transfer);
    }
  }
  wait(transfer);
}

void QueueCore::drop_rest(Transfer& transfer, std::string error) {
  if (transfer.error.empty()) transfer.error = std::move(error);
  if (transfer.started == transfer.bytes) return;
  transfer.started = transfer.bytes;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &transfer));
}

void QueueCore::settle(Transfer& transfer) {
  if (transfer.under_way > 0 || transfer.started < transfer.bytes) return;
  transfer.done.store(true, std::memory_order_release);  // its owner may free it from here on
  changed_.notify_all();
}

Block* QueueCore::take() {
  if (!again_.empty()) {
    Block* const block = again_.front();
    again_.pop_front();
    return block;
  }
  if (free_.empty() || waiting_.empty()) return nullptr;
  Transfer& transfer = *waiting_.front();
  const int64_t offset = transfer.offset + transfer.started;
  char* const data = transfer.data + transfer.started;
  const Piece piece = next_piece(*transfer.file, block_bytes_, offset, reinterpret_cast<uintptr_t>(data),
                                 transfer.bytes - transfer.started);
  Block* const block = free_.back();
  free_.pop_back();
  *block = {&transfer, offset, data, piece.bytes, piece.direct, 0};
  transfer.started += piece.bytes;
  ++transfer.under_way;
  if (transfer.started == transfer.bytes) waiting_.pop_front();
  return block;
}

void QueueCore::finished(Block& block, int64_t result) {
  Transfer& transfer = *block.transfer;
  const bool wanted = transfer.error.empty();
  if (wanted && result > 0 && result < block.bytes) {
    block.offset += result;
    block.data += result;
    block.bytes -= result;
    block.attempts = 0;
    const OpenFile& file = *transfer.file;
    block.direct = block.direct && result % file.alignment == 0;
    again_.push_back(&block);
    return;
  }
  if (wanted && result < 0 && is_passing(static_cast<int>(-result)) && ++block.attempts < kMaxAttempts) {
    again_.push_back(&block);
    return;
  }
  if (result != block.bytes) drop_rest(transfer, failure(transfer, block, result));
  free_.push_back(&block);
  --transfer.under_way;
  settle(transfer);
}

void QueueCore::stop(const std::shared_ptr<QueueCore>& self) {
  if (foreign()) {
    self_ = self;
    return;
  }
  {
    std::unique_lock guard = lock();
    stopped_ = true;
    while (!waiting_.empty()) {
      Transfer& transfer = *waiting_.front();
      drop_rest(transfer, fmt::format("the queue was closed before {} bytes at offset {} of {} were {}", transfer.bytes,
                                      transfer.offset, transfer.file->path, transfer.writing ? "written" : "read"));
      settle(transfer);
    }
    wait_until_true(changed_, guard, [&] { return free_.size() == blocks_.size(); });
  }
  const std::lock_guard guard(engine_mutex_);
  engine_.reset();
}

std::shared_ptr<OpenFile> QueueCore::adopt(std::shared_ptr<OpenFile> file, const std::shared_ptr<QueueCore>& self) {
  OpenFile* const plain = file.get();
  const std::shared_ptr<OpenFile> adopted(plain, [self, owner = std::move(file)](OpenFile* leaving) {
    if (!self->foreign()) {  // what the engine has registered belongs to the process that made it
      const std::lock_guard guard(self->engine_mutex_);
      if (self->engine_) self->engine_->detach(*leaving);
    }
    close_file(*leaving);
  });
  if (foreign()) return adopted;
  const std::lock_guard guard(engine_mutex_);
  if (engine_) engine_->attach(*adopted);
  return adopted;
}

std::string QueueCore::register_buffer(char* data, int64_t bytes) {
  if (foreign()) return "the queue was made by the process that this one was forked from";
  const std::lock_guard guard(engine_mutex_);
  return engine_ ? engine_->register_buffer(data, bytes) : "the queue was closed";
}

void QueueCore::unregister_buffer(char* data) {
  if (foreign()) return;
  const std::lock_guard guard(engine_mutex_);
  if (engine_) engine_->unregister_buffer(data);
}

}  // namespace async_internal

const char* async_engine_name(AsyncEngine engine) {
  switch (engine) {
    case AsyncEngine::kAutomatic:
      return "automatic";
    case AsyncEngine::kIoUring:
      return "io_uring";
    case AsyncEngine::kThreads:
      return "threads";
    case AsyncEngine::kCompletionPort:
      return "completion_port";
  }
  return "unknown";
}

FileTransfer::FileTransfer(std::shared_ptr<async_internal::QueueCore> core,
                           std::unique_ptr<async_internal::Transfer> transfer)
    : core_(std::move(core)), transfer_(std::move(transfer)) {}

FileTransfer::FileTransfer(FileTransfer&&) noexcept = default;

FileTransfer& FileTransfer::operator=(FileTransfer&& other) noexcept {
  if (this != &other) {
    finish();
    core_ = std::move(other.core_);
    transfer_ = std::move(other.transfer_);
  }
  return *this;
}

FileTransfer::~FileTransfer() {
  finish();
}

void FileTransfer::finish() noexcept {
  if (transfer_) core_->cancel(*transfer_);
  transfer_.reset();
}

bool FileTransfer::done() const {
  return core_->is_over(*transfer_);
}

void FileTransfer::wait() {
  core_->wait(*transfer_);
  if (!transfer_->error.empty()) throw IoError(transfer_->error);
}

void FileTransfer::cancel() {
  core_->cancel(*transfer_);
}

AsyncFile::AsyncFile(std::shared_ptr<async_internal::QueueCore> core, std::shared_ptr<async_internal::OpenFile> file)
    : core_(std::move(core)), file_(std::move(file)) {}

FileTransfer AsyncFile::submit(bool writing, int64_t offset, char* data, int64_t bytes) const {
  DS_CHECK_AS(IoError, offset >= 0 && bytes >= 0 && offset <= INT64_MAX - bytes && (data != nullptr || bytes == 0),
              "cannot {} {} bytes at offset {} of {}: a buffer, and numbers that are not negative, are needed",
              writing ? "write" : "read", bytes, offset, file_->path);
  auto transfer = std::make_unique<async_internal::Transfer>();
  transfer->writing = writing;
  transfer->file = file_;
  transfer->offset = offset;
  transfer->data = data;
  transfer->bytes = bytes;
  core_->submit(*transfer);
  return {core_, std::move(transfer)};
}

FileTransfer AsyncFile::read(int64_t offset, void* data, int64_t bytes) const {
  return submit(/*writing=*/false, offset, static_cast<char*>(data), bytes);
}

FileTransfer AsyncFile::write(int64_t offset, const void* data, int64_t bytes) const {
  DS_CHECK_AS(IoError, file_->writable, "cannot write {}: it was opened for reading only", file_->path);
  return submit(/*writing=*/true, offset, const_cast<char*>(static_cast<const char*>(data)), bytes);
}

void AsyncFile::preallocate(int64_t end, int64_t begin) const {
  if (0 <= begin && begin < end) async_internal::preallocate_file(*file_, begin, end);
}

void AsyncFile::truncate(int64_t bytes) const {
  async_internal::truncate_file(*file_, bytes);
}

void AsyncFile::sync() const {
  async_internal::sync_file(*file_);
}

int64_t AsyncFile::bytes() const {
  return async_internal::length_of_file(*file_);
}

const std::string& AsyncFile::path() const {
  return file_->path;
}

bool AsyncFile::direct() const {
  return file_->direct != async_internal::kNoFile;
}

int64_t AsyncFile::alignment() const {
  return file_->alignment;
}

int64_t AsyncFile::memory_alignment() const {
  return file_->memory_alignment;
}

BufferRegistration::BufferRegistration(std::shared_ptr<async_internal::QueueCore> core, char* data, std::string reason)
    : core_(std::move(core)), data_(data), reason_(std::move(reason)) {}

BufferRegistration::BufferRegistration(BufferRegistration&&) noexcept = default;

BufferRegistration& BufferRegistration::operator=(BufferRegistration&& other) noexcept {
  if (this != &other) {
    end();
    core_ = std::move(other.core_);
    data_ = other.data_;
    reason_ = std::move(other.reason_);
  }
  return *this;
}

BufferRegistration::~BufferRegistration() {
  end();
}

void BufferRegistration::end() noexcept {
  if (core_ && active()) core_->unregister_buffer(data_);
  core_.reset();
}

AsyncFileQueue::AsyncFileQueue(const AsyncFileOptions& options) : engine_(choose_async_engine(options.engine)) {
  constexpr int64_t kLargestBlock = int64_t{1} << 30;
  DS_CHECK_AS(ConfigError, options.depth >= 1 && options.depth <= 4096,
              "queue depth of asynchronous files must be 1..4096, found {}", options.depth);
  DS_CHECK_AS(ConfigError,
              options.block_bytes >= 4096 && options.block_bytes <= kLargestBlock && options.block_bytes % 4096 == 0,
              "block size of asynchronous files must be a multiple of 4096 up to 1 GiB, found {}", options.block_bytes);
  core_ = std::make_shared<async_internal::QueueCore>(options.depth, options.block_bytes);
  try {
    core_->use(async_internal::make_engine(engine_.engine, *core_));
  } catch (const IoError& error) {
    // A ring of this depth may fail where a small one works (locked memory on older kernels).
    const bool free_to_choose = async_internal::asked_engine(options.engine).engine == AsyncEngine::kAutomatic;
    if (engine_.engine != AsyncEngine::kIoUring || !free_to_choose) throw;
    engine_ = {AsyncEngine::kThreads, error.what()};
    core_->use(async_internal::make_engine(engine_.engine, *core_));
  }
}

AsyncFileQueue::~AsyncFileQueue() {
  core_->stop(core_);
}

AsyncFile AsyncFileQueue::open(const std::string& path, FileMode mode, FileCaching caching) const {
  auto file = std::make_shared<async_internal::OpenFile>(async_internal::open_file(path, mode, caching));
  return {core_, core_->adopt(std::move(file), core_)};
}

AsyncFile AsyncFileQueue::open_temporary(const std::string& folder, FileCaching caching) const {
  auto file = std::make_shared<async_internal::OpenFile>(async_internal::open_temporary_file(folder, caching));
  return {core_, core_->adopt(std::move(file), core_)};
}

AsyncFile AsyncFileQueue::open_descriptor(int descriptor, FileCaching caching) const {
  auto file = std::make_shared<async_internal::OpenFile>(async_internal::open_descriptor_again(descriptor, caching));
  return {core_, core_->adopt(std::move(file), core_)};
}

BufferRegistration AsyncFileQueue::register_buffer(void* data, int64_t bytes) const {
  auto* const start = static_cast<char*>(data);
  return {core_, start, core_->register_buffer(start, bytes)};
}

}  // namespace deepscale
