// HostGroup: one rank's side of one group: its queue of collectives, its channels, and the work on both
// ([Note: host collectives]). Threads: every method is called under HostContext::mutex() unless it says otherwise.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/host_context.h"
#include "comm/host_control.h"

namespace deepscale {

class HostChannels;

/// What a caller asks for.
struct HostCall {
  HostKind kind = HostKind::kBarrier;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;  ///< broadcast: the root; send, recv: the peer
  int64_t count = 0;
  const void* input = nullptr;
  void* output = nullptr;
  std::string_view tag;
};

/// How an operation's data travels ([Note: host collectives]).
enum class HostPath : uint8_t { kInline, kDirect, kStaged };

/// An operation and how far it has got. `finished` and `*_with_peers` are read by waits of the thread that posted it.
class HostOperation {
 public:
  explicit HostOperation(const HostCall& call);

  /// all_gather "layers.7" (#412, 65536 x bfloat16)
  [[nodiscard]] std::string describe() const;
  [[nodiscard]] std::string_view tag() const { return tag_.data(); }

  HostDescriptor descriptor;
  const char* input;
  char* output;
  uint64_t number = 0;  // in its group, or in its channel

  bool published = false;
  bool routed = false;
  bool finished = false;  // this rank's share is done
  bool outputs_with_peers = false;
  bool inputs_with_peers = false;
  HostPath path = HostPath::kInline;
  int matched = 0;  // members whose descriptors have been seen and agree: 0..matched-1

  // Staged: piece k of this operation is piece first_piece + k of the ring.
  uint64_t first_piece = 0;
  uint64_t pieces = 0;
  uint64_t staged = 0;
  uint64_t consumed = 0;
  int64_t piece_bytes = 0;  // of each slice

 private:
  std::array<char, 48> tag_ = {};
};

class HostGroup {
 public:
  /// members: ranks of connect(), ascending. block_offsets[i]: where member i's HostBlock is in its segment.
  HostGroup(std::shared_ptr<HostContext> context, std::vector<int> members, std::vector<int64_t> block_offsets,
            int64_t staging_bytes);
  /// Leaves the group; nothing may be queued. Not under the mutex.
  ~HostGroup();

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return static_cast<int>(members_.size()); }
  [[nodiscard]] const std::vector<int>& members() const { return members_; }
  [[nodiscard]] const std::shared_ptr<HostContext>& context() const { return context_; }
  [[nodiscard]] const StagingShape& staging() const { return staging_; }
  [[nodiscard]] std::atomic<int64_t>& bytes_moved() { return bytes_moved_; }
  [[nodiscard]] HostBlock& block(int index) const { return *blocks_[static_cast<size_t>(index)]; }
  /// Wakes the other members.
  void ring() const { context_->ring(others_); }

  /// Takes the mutex itself.
  std::shared_ptr<HostOperation> post(const HostCall& call);
  /// Works off what can be done without blocking. True when anything moved.
  bool progress();
  [[nodiscard]] bool idle() const;
  void abandon();

  [[nodiscard]] bool reached(const HostOperation& operation, HostUntil until);
  /// The operation that keeps `operation` from going on: itself or an earlier one.
  [[nodiscard]] const HostOperation& blocking(const HostOperation& operation) const;
  /// Indices of the members for which this rank waits, read from shared memory.
  [[nodiscard]] std::vector<int> late(const HostOperation& operation, HostUntil until) const;
  /// 'rank 1 is at reduce_scatter "x" (#431, ...)'
  [[nodiscard]] std::string position_of(int index) const;

 private:
  [[nodiscard]] bool takes_part(const HostOperation& operation, int index) const;
  [[nodiscard]] bool all_done(uint64_t number);
  bool advance(HostOperation& operation);
  bool publish(HostOperation& operation);
  bool match(HostOperation& operation);
  void check_agreement(const HostOperation& operation, int index) const;
  void route(HostOperation& operation);
  void finish(HostOperation& operation);
  void count_bytes(const HostOperation& operation);

  // host_collectives.cpp
  void run_alone(const HostOperation& operation) const;
  void run_read(const HostOperation& operation, std::span<const char* const> sources) const;
  void run_inline(const HostOperation& operation);
  void run_direct(const HostOperation& operation);
  void push_all_reduce(const HostOperation& operation);
  void plan_pieces(HostOperation& operation);
  bool run_staged(HostOperation& operation);
  [[nodiscard]] bool can_write(const HostOperation& operation);
  [[nodiscard]] bool can_consume(const HostOperation& operation);
  void write_piece(const HostOperation& operation, uint64_t piece);
  void consume_piece(const HostOperation& operation, uint64_t piece);
  [[nodiscard]] char* staging_piece(int index, uint64_t ring_piece) const;
  void ensure_staging();

  const std::shared_ptr<HostContext> context_;
  const std::vector<int> members_;
  std::vector<int> others_;
  int rank_ = 0;  // index in members_
  const StagingShape staging_;
  const int64_t own_block_offset_;
  std::vector<HostBlock*> blocks_;
  std::unique_ptr<HostChannels> channels_;

  std::deque<std::shared_ptr<HostOperation>> queue_;
  uint64_t next_number_ = 0;
  uint64_t next_piece_ = 0;
  std::vector<uint64_t> seen_done_;  // last value read of each member's counters, which only grow
  std::vector<uint64_t> seen_staged_;
  std::vector<uint64_t> seen_consumed_;
  std::vector<HostDescriptor> peers_;  // of the operation at the head
  std::vector<const void*> inputs_;    // scratch for the kernels
  std::vector<void*> outputs_;
  std::atomic<int64_t> bytes_moved_ = 0;
};

}  // namespace deepscale
