#include "comm/host_context.h"

#include <algorithm>
#include <thread>

#include "base/error.h"
#include "comm/host_group.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A wait spins, then yields, then sleeps. One look costs about 100 ns, one yield less than 1 us when nobody else wants
// the core. A yield that takes longer has lent the core to somebody, perhaps to the peer for whom we wait: then
// spinning only keeps the peer from running, so the next waits leave it out, and a few such yields end in sleep.
constexpr int kSpins = 100;
constexpr microseconds kLinger{200};
constexpr microseconds kLentCore{4};
constexpr int kLentYields = 2;
constexpr int kLentYieldsWhenCrowded = 4;
constexpr int kContentionStep = 8;
constexpr int kContentionLimit = 64;
constexpr milliseconds kFirstSlice{10};
constexpr milliseconds kLongestSlice{50};

/// Counts a thread as a sleeper of its rank.
class Sleeper {
 public:
  explicit Sleeper(HostRankHeader& header) : header_(header) { header_.sleepers.fetch_add(1); }
  ~Sleeper() { header_.sleepers.fetch_sub(1); }
  Sleeper(const Sleeper&) = delete;
  Sleeper& operator=(const Sleeper&) = delete;

 private:
  HostRankHeader& header_;
};

}  // namespace

/// How long and how a wait has been without progress.
struct HostContext::Idle {
  int looks = 0;
  int lent_yields = 0;
  steady_clock::time_point lingering_since;
  bool sleepy = false;
  bool announced = false;
  milliseconds slice = kFirstSlice;
  steady_clock::time_point since;

  void reset() {
    const bool kept = announced;
    *this = {};
    announced = kept;
  }
};

HostContext::HostContext(std::shared_ptr<HostMemory> memory, const HostOptions& options)
    : memory_(std::move(memory)), options_(options), pid_(this_process_id()) {
  for (int rank = 0; rank < memory_->size(); ++rank) {
    headers_.push_back(static_cast<HostRankHeader*>(memory_->at({rank, 0})));
  }
  crowded_ = memory_->size() > usable_cpu_count();
}

bool HostContext::owns_process() const {
  return this_process_id() == pid_;
}

void HostContext::ring(std::span<const int> ranks) const {
  for (const int rank : ranks) {
    HostRankHeader& peer = header(rank);
    if (peer.sleepers.load() == 0) continue;
    peer.bell.fetch_add(1);
    wake_word_all(peer.bell);
  }
}

void HostContext::activate(HostGroup& group) {
  if (std::find(active_.begin(), active_.end(), &group) == active_.end()) active_.push_back(&group);
}

void HostContext::forget(HostGroup& group) {
  const std::lock_guard lock(mutex_);
  std::erase(active_, &group);
}

bool HostContext::progress() {
  bool moved = false;
  try {
    for (HostGroup* group : active_) moved |= group->progress();
  } catch (const std::exception& error) {
    give_up(error);
    throw;
  }
  if (moved) std::erase_if(active_, [](const HostGroup* group) { return group->idle(); });
  return moved;
}

void HostContext::give_up(const std::exception& error) {
  publish_failure(error.what());
  abandon_all();
}

void HostContext::abandon_all() {
  for (HostGroup* group : active_) group->abandon();
  active_.clear();
}

bool HostContext::poll(HostGroup& group, const HostOperation& operation, HostUntil until) {
  const std::lock_guard lock(mutex_);
  check_failed();
  while (progress()) continue;
  return group.reached(operation, until);
}

void HostContext::wait(HostGroup& group, const HostOperation& operation, HostUntil until) {
  std::unique_lock lock(mutex_);
  Idle idle;
  while (!group.reached(operation, until)) {
    if (failed()) {
      abandon_all();
      check_failed();
    }
    if (progress()) {
      idle.reset();
      continue;
    }
    if (group.reached(operation, until)) break;
    if (idle.sleepy) {
      sleep(lock, group, operation, until, idle);
    } else {
      linger(lock, idle);
    }
  }
  if (idle.announced) header(rank()).waiting.store({});
}

void HostContext::linger(std::unique_lock<std::mutex>& lock, Idle& idle) {
  if (!crowded_ && contention_ == 0 && idle.looks++ < kSpins) {
    lock.unlock();
    spin_pause();
    lock.lock();
    return;
  }
  const auto before = steady_clock::now();
  if (idle.lingering_since == steady_clock::time_point()) {
    idle.lingering_since = before;
    if (contention_ > 0) --contention_;
  }
  lock.unlock();
  yield_core();
  lock.lock();
  const auto after = steady_clock::now();
  if (after - before > kLentCore) {
    ++idle.lent_yields;
    contention_ = std::min(contention_ + kContentionStep, kContentionLimit);
  }
  idle.sleepy =
      idle.lent_yields >= (crowded_ ? kLentYieldsWhenCrowded : kLentYields) || after - idle.lingering_since > kLinger;
}

void HostContext::sleep(std::unique_lock<std::mutex>& lock, HostGroup& group, const HostOperation& operation,
                        HostUntil until, Idle& idle) {
  const auto now = steady_clock::now();
  if (idle.since == steady_clock::time_point()) {
    idle.since = now;
  } else if (now - idle.since >= kFirstSlice) {
    if (!idle.announced) header(rank()).waiting.store(group.blocking(operation).describe());
    idle.announced = true;
    check_peers(group, operation, until, idle);
  }
  HostRankHeader& own = header(rank());
  const Sleeper sleeper(own);
  const uint32_t bell = own.bell.load();
  // One more look, after which whoever publishes something sees that we sleep.
  if (!failed() && !progress() && !group.reached(operation, until)) {
    const auto left = std::chrono::ceil<milliseconds>(options_.timeout - (now - idle.since));
    const milliseconds slice = std::clamp(left, milliseconds(1), idle.slice);
    lock.unlock();
    wait_word(own.bell, bell, slice);
    lock.lock();
    if (own.bell.load() == bell) idle.slice = std::min(2 * idle.slice, kLongestSlice);
  } else {
    idle.reset();
  }
}

void HostContext::check_peers(HostGroup& group, const HostOperation& operation, HostUntil until, const Idle& idle) {
  const auto still_late = [&](int index) {
    const std::vector<int> late = group.late(operation, until);
    return std::find(late.begin(), late.end(), index) != late.end();
  };
  const HostOperation& blocking = group.blocking(operation);
  const std::string who = fmt::format("rank {} waits in {}", rank(), blocking.describe());
  const auto fail = [&](const std::string& message) {
    const CommError error(message);
    give_up(error);
    throw error;
  };
  const std::vector<int> late = group.late(operation, until);
  for (const int index : late) {
    const int peer = group.members()[static_cast<size_t>(index)];
    // What a peer did last may have become visible after we looked: look again once it is known to be gone.
    if (group.block(index).left.load() != 0 && still_late(index)) {
      fail(fmt::format("{}; rank {} has left the group; {}", who, peer, group.position_of(index)));
    }
    if (has_exited(peer) && still_late(index)) {
      fail(fmt::format("{}; rank {} (pid {}) has exited; {}", who, peer, header(peer).pid.load(),
                       group.position_of(index)));
    }
  }
  const auto idle_ms = std::chrono::duration_cast<milliseconds>(steady_clock::now() - idle.since);
  if (idle_ms < options_.timeout) return;
  const std::string where = late.empty() ? "no rank is late" : group.position_of(late.front());
  fail(
      fmt::format("{}; {}; nothing has moved for {} ms: run the same operations in the same order on all ranks, or "
                  "raise the timeout if that rank is only slow",
                  who, where, idle_ms.count()));
}

bool HostContext::has_exited(int rank) const {
  const HostRankHeader& peer = header(rank);
  const ProcessIdentity process{static_cast<int64_t>(peer.pid.load()), peer.start_time.load()};
  return process.pid != pid_ && !is_alive(process);
}

bool HostContext::failed() const {
  return header(0).failure.load(std::memory_order_acquire) != 0;
}

void HostContext::check_failed() const {
  const HostRankHeader& record = header(0);
  if (record.failure.load() == 0) return;
  // The rank that failed is writing the cause; if it died over that, do without.
  for (int look = 0; look < 1000 && record.failure.load() == 1; ++look) std::this_thread::sleep_for(milliseconds(1));
  throw CommError(record.failure_text.load());
}

void HostContext::publish_failure(const std::string& cause) const {
  HostRankHeader& record = header(0);
  uint32_t none = 0;
  if (!record.failure.compare_exchange_strong(none, 1)) return;
  record.failure_text.store(fmt::format("rank {} failed: {}", rank(), cause));
  record.failure.store(2);
  for (int peer = 0; peer < memory_->size(); ++peer) {
    if (peer == rank()) continue;
    header(peer).bell.fetch_add(1);
    wake_word_all(header(peer).bell);
  }
}

}  // namespace deepscale
