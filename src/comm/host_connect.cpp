// HostCommunicator::connect: ranks exchange where their segments are and map each other's.
#include <algorithm>
#include <charconv>
#include <cstring>
#include <sstream>

#include "base/error.h"
#include "comm/host_context.h"
#include "comm/host_group.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

/// Changes whenever the structures in shared memory do: ranks of different builds must not share them.
constexpr int kProtocol = 1;
/// All segments together, mapped into each process; user address spaces have 2^47 bytes.
constexpr int64_t kMappableBytes = int64_t{1} << 46;
/// Deeper when ranks share cores: each goes further before the next one must have the core.
constexpr int64_t kStagingBytes = 2 << 20;
constexpr int64_t kCrowdedStagingBytes = 4 << 20;
constexpr int64_t kSmallestSegment = 8 << 20;

/// What a rank tells its peers. Text lines, because a rendezvous may go through anything.
struct Introduction {
  std::string host;
  std::string token;
  std::string error;  // when the segment could not be made
  ProcessIdentity process;
  int64_t block_offset = 0;
  int64_t staging_bytes = 0;
  /// Address of the rank's shared_ptr to its segment: threads of one process share the mapping, too.
  uintptr_t local_segment = 0;

  [[nodiscard]] std::string pack() const {
    return fmt::format("{}\n{}\n{}\n{}\n{} {} {} {} {}\n", kProtocol, host, token, error, process.pid,
                       process.start_time, block_offset, staging_bytes, local_segment);
  }

  static Introduction unpack(const std::string& text, int rank) {
    Introduction result;
    std::istringstream stream(text);
    std::string protocol;
    std::getline(stream, protocol);
    std::getline(stream, result.host);
    std::getline(stream, result.token);
    std::getline(stream, result.error);
    stream >> result.process.pid >> result.process.start_time >> result.block_offset >> result.staging_bytes >>
        result.local_segment;
    DS_CHECK_AS(CommError, !stream.fail() && protocol == std::to_string(kProtocol),
                "rank {} runs another version of DeepScale: install the same one for all ranks", rank);
    return result;
  }
};

class Connector {
 public:
  Connector(int rank, int size, const HostRendezvous& rendezvous, const HostOptions& options)
      : rank_(rank), size_(size), rendezvous_(rendezvous), options_(options) {}

  /// Empty reason: segments() and introductions() are complete.
  std::string join(SharedMemory::Naming naming) {
    make_segment(naming);
    introductions_.clear();
    for (const std::string& text : exchange(own_.pack())) {
      introductions_.push_back(Introduction::unpack(text, static_cast<int>(introductions_.size())));
    }
    std::string reason = find_obstacle();
    if (!reason.empty()) return reason;  // the same on all ranks
    const std::string own_error = map_peers();
    const std::vector<std::string> errors = exchange(own_error);
    for (int rank = 0; rank < size_; ++rank) {
      const std::string& error = errors[static_cast<size_t>(rank)];
      if (!error.empty()) return fmt::format("rank {}: {}", rank, error);
    }
    segment_->unlink();
    return {};
  }

  [[nodiscard]] bool same_host() const {
    return std::all_of(introductions_.begin(), introductions_.end(),
                       [this](const Introduction& peer) { return peer.host == own_.host; });
  }

  HostConnection finish() {
    auto memory =
        std::make_shared<HostMemory>(rank_, std::move(segments_), HostRankHeader::kReservedBytes + block_bytes());
    std::vector<int> members;
    std::vector<int64_t> offsets;
    for (const Introduction& peer : introductions_) {
      members.push_back(static_cast<int>(members.size()));
      offsets.push_back(peer.block_offset);
    }
    auto context = std::make_shared<HostContext>(std::move(memory), options_);
    auto group =
        std::make_shared<HostGroup>(context, std::move(members), std::move(offsets), introductions_[0].staging_bytes);
    return {std::make_shared<HostCommunicator>(std::move(context), std::move(group)), {}};
  }

 private:
  [[nodiscard]] int64_t block_bytes() const {
    constexpr int64_t kPage = HostAllocator::kPage;
    return (HostBlock::bytes_for(size_) + kPage - 1) / kPage * kPage;
  }

  std::vector<std::string> exchange(const std::string& text) {
    if (size_ == 1) return {text};
    std::vector<std::string> all = rendezvous_(text);
    DS_CHECK_AS(CommError, static_cast<int>(all.size()) == size_, "the rendezvous gave {} answers for {} ranks",
                all.size(), size_);
    return all;
  }

  void make_segment(SharedMemory::Naming naming) {
    own_ = {};
    own_.host = host_identity();
    own_.process = this_process();
    own_.staging_bytes = options_.staging_bytes > 0   ? options_.staging_bytes
                         : size_ > usable_cpu_count() ? kCrowdedStagingBytes
                                                      : kStagingBytes;
    own_.block_offset = HostRankHeader::kReservedBytes;
    int64_t bytes = options_.segment_bytes > 0 ? options_.segment_bytes : memory_facts().total_bytes;
    bytes = std::clamp(bytes, kSmallestSegment + block_bytes(), kMappableBytes / size_);
    try {
      segment_ = std::make_shared<SharedMemory>(SharedMemory::create(bytes, naming));
      segment_->commit(0, HostRankHeader::kReservedBytes + block_bytes());
      auto* const header = reinterpret_cast<HostRankHeader*>(segment_->data());
      header->pid.store(static_cast<uint64_t>(own_.process.pid));
      header->start_time.store(own_.process.start_time);
      own_.token = segment_->token();
      own_.local_segment = reinterpret_cast<uintptr_t>(&segment_);
    } catch (const IoError& error) {
      own_.error = error.what();
    }
  }

  std::string find_obstacle() const {
    for (int rank = 0; rank < size_; ++rank) {
      const Introduction& peer = introductions_[static_cast<size_t>(rank)];
      if (peer.host != introductions_[0].host) {
        return fmt::format("ranks 0 and {} are on different hosts or in different containers", rank);
      }
      if (!peer.error.empty()) return fmt::format("rank {}: {}", rank, peer.error);
    }
    return {};
  }

  std::string map_peers() {
    segments_.clear();
    try {
      for (int rank = 0; rank < size_; ++rank) {
        const Introduction& peer = introductions_[static_cast<size_t>(rank)];
        if (rank == rank_) {
          segments_.push_back(segment_);
        } else if (peer.process == own_.process && peer.process.start_time != 0) {
          // The peer is another thread of this process; it stays in join() until the exchange that follows.
          segments_.push_back(*reinterpret_cast<const std::shared_ptr<SharedMemory>*>(peer.local_segment));
        } else {
          segments_.push_back(std::make_shared<SharedMemory>(SharedMemory::open(peer.token)));
        }
      }
    } catch (const IoError& error) {
      return error.what();
    }
    return {};
  }

  const int rank_;
  const int size_;
  const HostRendezvous& rendezvous_;
  const HostOptions& options_;
  Introduction own_;
  std::shared_ptr<SharedMemory> segment_;
  std::vector<Introduction> introductions_;
  std::vector<std::shared_ptr<SharedMemory>> segments_;
};

}  // namespace

HostConnection HostCommunicator::connect(int rank, int size, const HostRendezvous& rendezvous,
                                         const HostOptions& options) {
  DS_CHECK_AS(CommError, size >= 1 && rank >= 0 && rank < size, "connect: rank must be 0..{}, found {}", size - 1,
              rank);
  DS_CHECK_AS(CommError, options.timeout.count() > 0, "connect: the timeout must be positive, found {} ms",
              options.timeout.count());
  DS_CHECK_AS(CommError, options.staging_bytes >= 0 && options.segment_bytes >= 0,
              "connect: segment_bytes and staging_bytes must not be negative");
  Connector connector(rank, size, rendezvous, options);
  std::string reason = connector.join(SharedMemory::Naming::kAnonymous);
  if (reason.empty()) return connector.finish();
  if (!connector.same_host()) return {nullptr, reason};
  // The same on all ranks again: /proc is hidden, or something else is in the way that names may get around.
  const std::string second_reason = connector.join(SharedMemory::Naming::kNamed);
  if (second_reason.empty()) return connector.finish();
  return {nullptr, fmt::format("{}; by name: {}", reason, second_reason)};
}

}  // namespace deepscale
