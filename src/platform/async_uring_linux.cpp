// One thread per queue owns the ring: it fills the submission queue, submits and waits in one system call, and reports
// completions. Other threads only wake it, through an eventfd that the ring itself reads. So the kernel's completion
// work never interrupts a thread that computes, and no request dies with the thread that asked for it (the kernel
// cancels what an ending thread has submitted).
#include "platform/async_uring_linux.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <system_error>
#include <thread>

#include "base/error.h"

namespace deepscale::async_internal {
namespace {

constexpr int kFileSlots = 256;    // two per open file
constexpr int kBufferSlots = 256;  // the kernel takes at most 1 GiB per slot
constexpr int64_t kSlotBytes = int64_t{1} << 30;
constexpr auto kSubmitPatience =
    std::chrono::seconds(10);  // that the kernel may refuse submissions, one after the other

struct RegisteredRange {
  char* area = nullptr;  // that was registered as one, of which this is a part
  int64_t bytes = 0;
  int slot = 0;
};

class UringEngine final : public Engine {
 public:
  explicit UringEngine(QueueCore& core) : core_(core) {
    open_ring();
    wake_descriptor_ = eventfd(0, EFD_CLOEXEC);
    if (wake_descriptor_ < 0) {
      const int reason = errno;
      io_uring_queue_exit(&ring_);
      ds_throw<IoError>("cannot make an eventfd for a queue of asynchronous files: {}", std::strerror(reason));
    }
    // Old kernels have no empty tables; blocks then go without.
    files_usable_ = io_uring_register_files_sparse(&ring_, kFileSlots) == 0;
    buffers_status_ = io_uring_register_buffers_sparse(&ring_, kBufferSlots);
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {
      io_uring_queue_exit(&ring_);
      close(wake_descriptor_);
      ds_throw<IoError>("cannot start a thread for asynchronous files: {}", error.what());
    }
  }

  ~UringEngine() override {
    {
      const auto guard = core_.lock();
      stopping_ = true;
      wake();
    }
    thread_.join();
    io_uring_queue_exit(&ring_);
    close(wake_descriptor_);
  }

  void wake() override {
    if (!asleep_) return;
    asleep_ = false;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_descriptor_, &one, sizeof(one));
  }

  void attach(OpenFile& file) override {
    if (!files_usable_) return;
    const auto free = std::find(file_slots_.begin(), file_slots_.end(), false);
    if (free == file_slots_.end()) return;
    const int slot = static_cast<int>(free - file_slots_.begin());
    const int descriptors[] = {static_cast<int>(file.buffered), static_cast<int>(file.direct)};
    if (io_uring_register_files_update(&ring_, static_cast<unsigned>(slot * 2), descriptors, 2) != 2) return;
    *free = true;
    file.slot = slot;
  }

  void detach(OpenFile& file) override {
    if (file.slot < 0) return;
    const int none[] = {-1, -1};
    io_uring_register_files_update(&ring_, static_cast<unsigned>(file.slot * 2), none, 2);
    file_slots_[static_cast<size_t>(file.slot)] = false;
    file.slot = -1;
  }

  std::string register_buffer(char* data, int64_t bytes) override {
    if (buffers_status_ != 0)
      return fmt::format("the kernel has no table of buffers ({})", error_text(-buffers_status_));
    std::map<char*, RegisteredRange> added;
    for (int64_t begin = 0; begin < bytes; begin += kSlotBytes) {
      const RegisteredRange range = {data, std::min(kSlotBytes, bytes - begin), take_buffer_slot()};
      const int status = range.slot < 0 ? -ENOSPC : update_slot(range.slot, data + begin, range.bytes);
      if (status != 1) {
        if (range.slot >= 0) buffer_slots_[static_cast<size_t>(range.slot)] = false;
        for (const auto& [start, other] : added) release_slot(other.slot);
        if (range.slot < 0) return fmt::format("more than {} buffers, of 1 GiB at most, in one queue", kBufferSlots);
        return fmt::format("the kernel refuses ({}); the limit of locked memory (ulimit -l) may be too low",
                           error_text(-status));
      }
      added.emplace(data + begin, range);
    }
    const auto guard = core_.lock();
    ranges_.merge(added);
    return "";
  }

  void unregister_buffer(char* area) override {
    for (char* part = area;;) {
      RegisteredRange range;
      {
        const auto guard = core_.lock();
        const auto found = ranges_.find(part);
        if (found == ranges_.end() || found->second.area != area) return;  // another area may begin right behind
        range = found->second;
        ranges_.erase(found);
      }
      release_slot(range.slot);
      part += range.bytes;
    }
  }

 private:
  void open_ring() {
    io_uring_params parameters = {};
    // The thread is always about to enter the kernel: completions need not interrupt it.
    parameters.flags = IORING_SETUP_COOP_TASKRUN;
    const auto entries = static_cast<unsigned>(core_.depth() + 1);
    int status = io_uring_queue_init_params(entries, &ring_, &parameters);
    if (status == -EINVAL) status = io_uring_queue_init(entries, &ring_, 0);
    DS_CHECK_AS(
        IoError, status == 0,
        "cannot make an io_uring of depth {} for asynchronous files: {}; DEEPSCALE_ASYNC_IO=threads does without",
        core_.depth(), error_text(-status));
    io_uring_ring_dontfork(&ring_);
  }

  int take_buffer_slot() {
    const auto free = std::find(buffer_slots_.begin(), buffer_slots_.end(), false);
    if (free == buffer_slots_.end()) return -1;
    *free = true;
    return static_cast<int>(free - buffer_slots_.begin());
  }

  int update_slot(int slot, char* data, int64_t bytes) {
    const iovec range = {data, static_cast<size_t>(bytes)};
    const __u64 tag = 0;
    return io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(slot), &range, &tag, 1);
  }

  void release_slot(int slot) {
    update_slot(slot, nullptr, 0);
    buffer_slots_[static_cast<size_t>(slot)] = false;
  }

  /// Slot of a registered range that holds the whole block, or -1.
  int buffer_slot(const Block& block) const {
    auto after = ranges_.upper_bound(block.data);
    if (after == ranges_.begin()) return -1;
    const auto& [start, range] = *--after;
    return block.data + block.bytes <= start + range.bytes ? range.slot : -1;
  }

  void prepare(Block& block) {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);  // there is one: the ring has more than `depth`
    const OpenFile& file = *block.transfer->file;
    const int descriptor = file.slot >= 0 ? file.slot * 2 + (block.direct ? 1 : 0)
                                          : static_cast<int>(block.direct ? file.direct : file.buffered);
    const auto bytes = static_cast<unsigned>(block.bytes);
    const auto offset = static_cast<__u64>(block.offset);
    const int slot = buffer_slot(block);
    if (block.transfer->writing) {
      slot < 0 ? io_uring_prep_write(entry, descriptor, block.data, bytes, offset)
               : io_uring_prep_write_fixed(entry, descriptor, block.data, bytes, offset, slot);
    } else {
      slot < 0 ? io_uring_prep_read(entry, descriptor, block.data, bytes, offset)
               : io_uring_prep_read_fixed(entry, descriptor, block.data, bytes, offset, slot);
    }
    if (file.slot >= 0) entry->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data(entry, &block);
    unsubmitted_.push_back(&block);
  }

  void listen_for_wake() {
    if (listening_ || broken_ != 0) return;
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    io_uring_prep_read(entry, wake_descriptor_, &wake_count_, sizeof(wake_count_), 0);
    io_uring_sqe_set_data(entry, nullptr);
    unsubmitted_.push_back(nullptr);
    listening_ = true;
  }

  /// Submits and waits for at least one completion.
  void submit_and_wait() {
    const int status = broken_ == 0 ? io_uring_submit_and_wait(&ring_, 1) : -broken_;
    if (status >= 0) {
      unsubmitted_.erase(unsubmitted_.begin(),
                         unsubmitted_.begin() + std::min<std::ptrdiff_t>(status, std::ssize(unsubmitted_)));
      refused_since_.reset();
      return;
    }
    if (status == -EINTR) return;
    // EAGAIN and EBUSY: the kernel is short of memory. What is under way goes on meanwhile.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto now = std::chrono::steady_clock::now();
    if (!refused_since_) refused_since_ = now;
    if (now - *refused_since_ > kSubmitPatience) broken_ = -status;
  }

  void report_completions() {
    std::array<io_uring_cqe*, 64> completions;
    for (;;) {
      const unsigned count = io_uring_peek_batch_cqe(&ring_, completions.data(), completions.size());
      if (count == 0) return;
      for (unsigned i = 0; i < count; ++i) {
        auto* const block = static_cast<Block*>(io_uring_cqe_get_data(completions[i]));
        if (block == nullptr) {
          listening_ = false;
        } else {
          core_.finished(*block, completions[i]->res);
        }
      }
      io_uring_cq_advance(&ring_, count);
    }
  }

  void run() {
    auto guard = core_.lock();
    while (!stopping_) {
      while (Block* const block = core_.take()) {
        broken_ == 0 ? prepare(*block) : core_.finished(*block, -broken_);
      }
      listen_for_wake();
      asleep_ = true;
      guard.unlock();
      submit_and_wait();
      guard.lock();
      asleep_ = false;
      report_completions();
      if (broken_ == 0) continue;
      // Nothing is submitted any more, so the kernel never sees the buffers of these.
      for (Block* const block : unsubmitted_) {
        if (block != nullptr) core_.finished(*block, -broken_);
      }
      unsubmitted_.clear();
    }
  }

  QueueCore& core_;
  io_uring ring_ = {};
  int wake_descriptor_ = -1;
  uint64_t wake_count_ = 0;
  bool files_usable_ = false;
  int buffers_status_ = 0;
  std::array<bool, kFileSlots / 2> file_slots_ = {};  // these two belong to the queue's engine_mutex_
  std::array<bool, kBufferSlots> buffer_slots_ = {};
  std::map<char*, RegisteredRange> ranges_;  // these belong to the queue's lock
  bool asleep_ = false;
  bool stopping_ = false;
  std::deque<Block*> unsubmitted_;  // these belong to the thread
  bool listening_ = false;
  int broken_ = 0;
  std::optional<std::chrono::steady_clock::time_point> refused_since_;
  std::thread thread_;
};

}  // namespace

std::string why_not_io_uring() {
  io_uring ring = {};
  const int status = io_uring_queue_init(2, &ring, 0);
  if (status == 0) {
    io_uring_probe* const probe = io_uring_get_probe_ring(&ring);
    const bool known = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ) != 0 &&
                       io_uring_opcode_supported(probe, IORING_OP_WRITE) != 0;
    io_uring_free_probe(probe);
    io_uring_queue_exit(&ring);
    return known ? "" : "the kernel's io_uring is too old: Linux 5.6 or newer is needed";
  }
  switch (-status) {
    case ENOSYS:
      return "the kernel has no io_uring, or a sandbox hides it (ENOSYS)";
    case EPERM:
    case EACCES: {
      std::ifstream file("/proc/sys/kernel/io_uring_disabled");
      int disabled = 0;
      if (file >> disabled && disabled != 0) {
        return fmt::format("the administrator has switched it off (kernel.io_uring_disabled={})", disabled);
      }
      return "the kernel forbids it to this process, as containers often do with a seccomp filter (EPERM)";
    }
    case ENOMEM:
      return "the limit of locked memory (ulimit -l) is too low for a ring (ENOMEM)";
    default:
      return error_text(-status);
  }
}

std::unique_ptr<Engine> make_uring_engine(QueueCore& core) {
  return std::make_unique<UringEngine>(core);
}

}  // namespace deepscale::async_internal
