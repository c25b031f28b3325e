#include "memory/file_tier.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/error.h"
#include "memory/file_shares.h"
#include "memory/io_calibration.h"
#include "platform/files.h"
#include "platform/private_memory.h"
#include "platform/resources.h"

namespace deepscale {
namespace memory_internal {
namespace {

constexpr int64_t kPage = 4096;
/// Buffers have few sizes, so that tensors of about the same size use each other's.
constexpr int64_t kBufferStep = 1 << 20;

int64_t rounded_up(int64_t bytes, int64_t step) {
  return (bytes + step - 1) / step * step;
}

/// What a tensor takes in the file and in memory: whole pages, because only those go past the page cache.
int64_t place_bytes(int64_t bytes) {
  return rounded_up(std::max<int64_t>(bytes, 1), kPage);
}

AsyncFileOptions queue_options(const FileTierOptions& options) {
  make_directories(options.folder);
  return options.queue ? *options.queue : tuned_io(options.folder).settings.queue_options();
}

}  // namespace

struct Buffer {
  explicit Buffer(int64_t capacity) : memory(capacity) {}

  PrivateMemory memory;
  std::optional<BufferRegistration> registration;  // ends before the memory
  bool pooled = true;
  bool stays = false;  // beside the pool, and not on its behalf
};

enum class Residence : uint8_t { kAbsent, kLoading, kLoaded, kStoring };

struct TensorCore {
  std::shared_ptr<TierCore> tier;
  at::Tensor tensor;
  int64_t bytes = 0;  // of the values
  int64_t offset = 0;
  std::string name;
  Residence residence = Residence::kAbsent;
  bool written = false;  // the file holds values; before that they are zeros
  bool kept = false;     // while storing: wanted again, so the buffer stays
  std::unique_ptr<Buffer> buffer;
  std::optional<FileTransfer> transfer;
  std::string failure;  // of a write: the values are lost

  ~TensorCore();
  void detach();
  void become_loaded();
  void end_store();
  void finish_store();
  void start_read(std::unique_ptr<Buffer> into);
  void finish_load();
  void check_usable() const;
};

struct TierCore {
  TierCore(const FileTierOptions& wanted, const AsyncFileOptions& transfers)
      : options(wanted), queue(transfers), file(queue.open_temporary(wanted.folder, FileCaching::kDirect)) {
    facts.depth = transfers.depth;
    facts.block_bytes = transfers.block_bytes;
    facts.direct = file.direct();
    facts.engine = queue.engine();
    const bool fell_back = facts.engine.engine == AsyncEngine::kThreads && !facts.engine.asked;
    if (options.log && fell_back) {
      options.log->warning("files in {} are read and written by threads, which is slower than io_uring: {}",
                           options.folder, facts.engine.reason);
    }
  }

  std::unique_ptr<Buffer> acquire(int64_t bytes, bool required);
  void give_back(std::unique_ptr<Buffer> buffer);
  void take_out_of_pool(Buffer& buffer);
  void set_pool_bytes(int64_t bytes);
  void reap();
  int64_t reserve(int64_t bytes, const std::string& name);
  void release(int64_t offset, int64_t bytes);
  void wait(FileTransfer& transfer);

  FileTierOptions options;
  AsyncFileQueue queue;
  AsyncFile file;
  std::vector<std::unique_ptr<Buffer>> spare;  // oldest first
  std::deque<TensorCore*> storing;             // in the order of start_store
  std::string failure;                         // of a write that nobody has been told of by flush()
  std::map<int64_t, int64_t> holes;            // offset -> bytes that nobody uses
  int64_t end = 0;                             // of what is reserved
  int64_t beyond_pool = 0;                     // now
  int64_t asked_pool = 0;                      // of set_pool_bytes
  FileTierFacts facts;

 private:
  std::unique_ptr<Buffer> take_spare(int64_t least, int64_t most);
  std::unique_ptr<Buffer> make_buffer(int64_t capacity, bool pooled);
  void drop_spare(size_t index);
};

std::unique_ptr<Buffer> TierCore::take_spare(int64_t least, int64_t most) {
  auto best = spare.end();
  for (auto at = spare.begin(); at != spare.end(); ++at) {
    const int64_t capacity = (*at)->memory.bytes();
    if (capacity < least || capacity > most) continue;
    if (best == spare.end() || capacity < (*best)->memory.bytes()) best = at;
  }
  if (best == spare.end()) return nullptr;
  std::unique_ptr<Buffer> found = std::move(*best);
  spare.erase(best);
  return found;
}

std::unique_ptr<Buffer> TierCore::make_buffer(int64_t capacity, bool pooled) {
  auto buffer = std::make_unique<Buffer>(capacity);
  buffer->pooled = pooled;
  if (!pooled) {
    beyond_pool += capacity;
    facts.beyond_pool_bytes = std::max(facts.beyond_pool_bytes, beyond_pool);
    return buffer;
  }
  facts.pool_bytes += capacity;
  facts.peak_pool_bytes = std::max(facts.peak_pool_bytes, facts.pool_bytes);
  if (!options.pin || !facts.pin_refusal.empty() || capacity < kSmallestPinnedBytes) return buffer;
  buffer->registration = queue.register_buffer(buffer->memory.data(), capacity);
  if (buffer->registration->active()) {
    facts.pinned_bytes += capacity;
  } else {
    facts.pin_refusal = buffer->registration->reason();
    buffer->registration.reset();
    if (options.log) {
      options.log->warning("buffers for files in {} work, but are not pinned: {}", options.folder, facts.pin_refusal);
    }
  }
  return buffer;
}

void TierCore::drop_spare(size_t index) {
  Buffer& buffer = *spare[index];
  facts.pool_bytes -= buffer.memory.bytes();
  if (buffer.registration) facts.pinned_bytes -= buffer.memory.bytes();
  spare.erase(spare.begin() + static_cast<std::ptrdiff_t>(index));
}

/// Takes back the buffers of writes that are over.
void TierCore::reap() {
  while (!storing.empty() && storing.front()->transfer->done()) storing.front()->finish_store();
}

std::unique_ptr<Buffer> TierCore::acquire(int64_t bytes, bool required) {
  bytes = std::max<int64_t>(bytes, 1);  // shards of empty parameters have none
  const int64_t capacity = rounded_up(bytes, bytes < kBufferStep ? kPage : kBufferStep);
  reap();
  for (;;) {
    // Its own size first: a pool with room for a buffer of each tensor then never has more than these.
    if (auto found = take_spare(capacity, capacity)) return found;
    if (facts.pool_bytes + capacity <= options.pool_bytes) return make_buffer(capacity, true);
    if (auto found = take_spare(capacity, 2 * rounded_up(bytes, kBufferStep))) return found;
    while (!spare.empty() && facts.pool_bytes + capacity > options.pool_bytes) drop_spare(0);
    if (facts.pool_bytes + capacity <= options.pool_bytes) return make_buffer(capacity, true);
    if (!required) return nullptr;
    if (storing.empty()) return make_buffer(capacity, false);
    storing.front()->finish_store();
  }
}

void TierCore::give_back(std::unique_ptr<Buffer> buffer) {
  if (buffer->stays) {
    facts.resident_bytes -= buffer->memory.bytes();
  } else if (buffer->pooled) {
    spare.push_back(std::move(buffer));
    if (facts.pool_bytes > options.pool_bytes) drop_spare(spare.size() - 1);  // since set_pool_bytes()
  } else {
    beyond_pool -= buffer->memory.bytes();
  }
}

void TierCore::take_out_of_pool(Buffer& buffer) {
  if (buffer.stays) return;
  const int64_t bytes = buffer.memory.bytes();
  if (buffer.pooled) {
    facts.pool_bytes -= bytes;
    if (buffer.registration) facts.pinned_bytes -= bytes;
    buffer.registration.reset();
  } else {
    beyond_pool -= bytes;
  }
  buffer.pooled = false;
  buffer.stays = true;
  facts.resident_bytes += bytes;
}

void TierCore::set_pool_bytes(int64_t bytes) {
  reap();
  while (!spare.empty()) drop_spare(spare.size() - 1);
  asked_pool = std::max(asked_pool, bytes);
  options.pool_bytes = asked_pool;
  facts.peak_pool_bytes = facts.pool_bytes;
}

int64_t TierCore::reserve(int64_t bytes, const std::string& name) {
  const int64_t wanted = place_bytes(bytes);
  const auto hole = std::find_if(holes.begin(), holes.end(), [&](const auto& entry) { return entry.second >= wanted; });
  if (hole != holes.end()) {
    const auto [offset, size] = *hole;
    holes.erase(hole);
    if (size > wanted) holes.emplace(offset + wanted, size - wanted);
    return offset;
  }
  try {
    file.preallocate(end + wanted, end);
  } catch (const IoError& error) {
    ds_throw<IoError>(
        "no room for {} ({:.1f} MiB) beside {:.1f} MiB that are reserved in {}: {}; free disk space there or "
        "choose another nvme_path",
        name, static_cast<double>(bytes) / (1 << 20), static_cast<double>(end) / (1 << 20), options.folder,
        error.what());
  }
  const int64_t offset = end;
  end += wanted;
  facts.file_bytes = end;
  return offset;
}

void TierCore::release(int64_t offset, int64_t bytes) {
  auto [entry, fresh] = holes.emplace(offset, place_bytes(bytes));
  const auto next = std::next(entry);
  if (next != holes.end() && entry->first + entry->second == next->first) {
    entry->second += next->second;
    holes.erase(next);
  }
  if (entry == holes.begin()) return;
  const auto before = std::prev(entry);
  if (before->first + before->second != entry->first) return;
  before->second += entry->second;
  holes.erase(entry);
}

/// Returns or throws as the transfer; the time counts.
void TierCore::wait(FileTransfer& transfer) {
  struct Watch {
    double& seconds;
    std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
    ~Watch() { seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); }
  };
  const Watch watch{facts.wait_seconds};
  transfer.wait();
}

void TensorCore::become_loaded() {
  at::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr(buffer->memory.data(), at::Device(at::kCPU)));
  storage->set_nbytes(static_cast<size_t>(bytes));
  residence = Residence::kLoaded;
}

void TensorCore::detach() {
  at::StorageImpl* const storage = tensor.storage().unsafeGetStorageImpl();
  storage->set_data_ptr_noswap(at::DataPtr(nullptr, at::Device(at::kCPU)));
  storage->set_nbytes(size_t{0});
}

void TensorCore::check_usable() const {
  if (!failure.empty()) throw IoError(failure);
}

/// Afterwards the tensor is absent, but its buffer still holds the values.
void TensorCore::end_store() {
  try {
    tier->wait(*transfer);
    written = true;
  } catch (const IoError& error) {
    failure = fmt::format(
        "{} could not be written to its file and is lost: {}; continue from a checkpoint, with a nvme_path on a "
        "disk that is sound and has room (now: {})",
        name, error.what(), tier->options.folder);
    if (tier->failure.empty()) tier->failure = failure;
  }
  transfer.reset();
  residence = Residence::kAbsent;
  tier->storing.erase(std::find(tier->storing.begin(), tier->storing.end(), this));
}

void TensorCore::finish_store() {
  end_store();
  if (std::exchange(kept, false) && failure.empty()) {
    residence = Residence::kLoading;  // and there already
  } else {
    tier->give_back(std::move(buffer));
  }
}

void TensorCore::start_read(std::unique_ptr<Buffer> into) {
  buffer = std::move(into);
  transfer = tier->file.read(offset, buffer->memory.data(), place_bytes(bytes));
  tier->facts.read_bytes += bytes;
  residence = Residence::kLoading;
}

void TensorCore::finish_load() {
  residence = Residence::kAbsent;
  try {
    if (transfer) tier->wait(*transfer);
  } catch (const IoError& error) {
    transfer.reset();
    tier->give_back(std::move(buffer));
    ds_throw<IoError>("{} could not be read from its file: {}", name, error.what());
  }
  transfer.reset();
  become_loaded();
}

TensorCore::~TensorCore() {
  detach();
  if (residence == Residence::kStoring)
    tier->storing.erase(std::find(tier->storing.begin(), tier->storing.end(), this));
  transfer.reset();  // waits
  if (buffer) tier->give_back(std::move(buffer));
  tier->release(offset, bytes);
}

}  // namespace memory_internal

using memory_internal::Residence;

int64_t usual_pool_bytes() {
  return pool_share_bytes(process_memory_facts().total_bytes);
}

FileTier::FileTier(const FileTierOptions& options)
    : core_(std::make_shared<memory_internal::TierCore>(options, memory_internal::queue_options(options))) {}

void FileTier::flush() {
  while (!core_->storing.empty()) core_->storing.front()->finish_store();
  if (!core_->failure.empty()) throw IoError(std::exchange(core_->failure, ""));
}

void FileTier::set_pool_bytes(int64_t bytes) {
  core_->set_pool_bytes(bytes);
}

FileTierFacts FileTier::facts() const {
  return core_->facts;
}

FileTierFacts& FileTierFacts::operator+=(const FileTierFacts& other) {
  file_bytes += other.file_bytes;
  pool_bytes += other.pool_bytes;
  peak_pool_bytes += other.peak_pool_bytes;
  beyond_pool_bytes += other.beyond_pool_bytes;
  resident_bytes += other.resident_bytes;
  pinned_bytes += other.pinned_bytes;
  read_bytes += other.read_bytes;
  written_bytes += other.written_bytes;
  wait_seconds += other.wait_seconds;
  return *this;
}

FileTensor::FileTensor(const FileTier& tier, int64_t numel, at::ScalarType dtype, std::string name) {
  const auto bytes = numel * static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t offset = tier.core_->reserve(bytes, name);
  auto core = std::make_shared<memory_internal::TensorCore>();
  core->offset = offset;
  core->bytes = bytes;
  core->name = std::move(name);
  core->tier = tier.core_;
  // A tensor of this size on a storage of none: views of it are made once and follow whatever memory it gets.
  core->tensor = at::empty({0}, at::TensorOptions().dtype(dtype).device(at::kCPU));
  core->tensor.unsafeGetTensorImpl()->set_sizes_contiguous({numel});
  core->detach();
  core_ = std::move(core);
}

FileTensor::FileTensor(FileTensor&&) noexcept = default;
FileTensor& FileTensor::operator=(FileTensor&&) noexcept = default;
FileTensor::~FileTensor() = default;

FileTier FileTensor::tier() const {
  return FileTier(core_->tier);
}

const at::Tensor& FileTensor::tensor() const {
  return core_->tensor;
}

at::Tensor FileTensor::view(int64_t offset, int64_t length) const {
  const at::AutoDispatchBelowADInplaceOrView guard;
  at::StorageImpl* const storage = core_->tensor.storage().unsafeGetStorageImpl();
  const size_t bytes = storage->nbytes();
  storage->set_nbytes(static_cast<size_t>(core_->bytes));
  at::Tensor part = core_->tensor.narrow(0, offset, length);
  storage->set_nbytes(bytes);
  return part;
}

int64_t FileTensor::nbytes() const {
  return core_->bytes;
}

bool FileTensor::loaded() const {
  return core_->residence == Residence::kLoaded;
}

bool FileTensor::start_load() {
  memory_internal::TensorCore& core = *core_;
  core.check_usable();
  // What is still in memory, or was never written, needs no reading.
  core.kept = core.residence == Residence::kStoring;
  if (core.residence != Residence::kAbsent || !core.written) return true;
  auto buffer = core.tier->acquire(core.bytes, /*required=*/false);
  if (buffer == nullptr) return false;
  core.start_read(std::move(buffer));
  return true;
}

void FileTensor::load() {
  memory_internal::TensorCore& core = *core_;
  core.check_usable();
  if (core.residence == Residence::kAbsent && core.written) {
    core.start_read(core.tier->acquire(core.bytes, /*required=*/true));
  }
  if (core.residence == Residence::kLoading) {
    core.finish_load();
    return;
  }
  const bool fresh = core.residence == Residence::kAbsent;
  load_for_overwrite();
  if (fresh) std::memset(core.buffer->memory.data(), 0, static_cast<size_t>(core.bytes));
}

void FileTensor::load_for_overwrite() {
  memory_internal::TensorCore& core = *core_;
  core.check_usable();
  switch (core.residence) {
    case Residence::kLoaded:
      return;
    case Residence::kLoading:
      core.finish_load();
      return;
    case Residence::kStoring:
      core.kept = false;
      core.end_store();  // its buffer still holds the values
      if (!core.failure.empty()) core.tier->give_back(std::move(core.buffer));
      core.check_usable();
      break;
    case Residence::kAbsent:
      core.buffer = core.tier->acquire(core.bytes, /*required=*/true);
      break;
  }
  core.become_loaded();
}

void FileTensor::start_store() {
  memory_internal::TensorCore& core = *core_;
  core.check_usable();
  DS_CHECK(core.residence == Residence::kLoaded, "{} is to be written, but is not in memory", core.name);
  core.detach();
  core.transfer =
      core.tier->file.write(core.offset, core.buffer->memory.data(), memory_internal::place_bytes(core.bytes));
  core.tier->facts.written_bytes += core.bytes;
  core.residence = Residence::kStoring;
  core.tier->storing.push_back(&core);
}

void FileTensor::stay_loaded() {
  DS_CHECK(loaded(), "{} is to stay in memory, but is not there", core_->name);
  core_->tier->take_out_of_pool(*core_->buffer);
}

void FileTensor::drop() {
  memory_internal::TensorCore& core = *core_;
  core.kept = false;
  if (core.residence == Residence::kStoring || core.residence == Residence::kAbsent) return;
  core.detach();
  core.transfer.reset();  // waits for blocks under way
  core.residence = Residence::kAbsent;
  core.tier->give_back(std::move(core.buffer));
}

}  // namespace deepscale
