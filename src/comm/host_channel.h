// HostChannels: the sends and receives of one rank in one group. Messages of one ordered pair of ranks arrive in the
// order in which they were sent; pairs do not wait for each other ([Note: host collectives]). Threads: every method is
// called under HostContext::mutex().
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "comm/host_control.h"

namespace deepscale {

class HostGroup;
class HostOperation;
enum class HostUntil : uint8_t;

class HostChannels {
 public:
  explicit HostChannels(HostGroup& group) : group_(group) {}

  void post(const std::shared_ptr<HostOperation>& operation);
  bool progress();
  [[nodiscard]] bool idle() const { return queued_ == 0; }
  void abandon();

  [[nodiscard]] bool reached(const HostOperation& operation, HostUntil until) const;
  [[nodiscard]] const HostOperation& blocking(const HostOperation& operation) const;
  [[nodiscard]] std::vector<int> late(const HostOperation& operation, HostUntil until) const;

  /// Offsets of the blocks that this rank's channels occupy in its segment.
  [[nodiscard]] std::vector<int64_t> offsets() const;

 private:
  /// One direction towards or from one peer.
  struct Line {
    std::deque<std::shared_ptr<HostOperation>> queue;
    uint64_t next_number = 0;
    uint64_t next_piece = 0;
    HostChannel* channel = nullptr;
  };

  [[nodiscard]] const Line& line_of(const HostOperation& operation) const;
  bool work_off(Line& line, int peer, bool sending);
  bool advance_send(Line& line, HostOperation& operation, int peer);
  bool advance_receive(Line& line, HostOperation& operation, int peer);
  HostChannel& open_channel(int peer);
  void publish(Line& line, HostOperation& operation);
  void accept(Line& line, HostOperation& operation, int peer);
  [[nodiscard]] int64_t piece_bytes() const;
  [[nodiscard]] char* piece(const HostChannel& channel, int owner, uint64_t ring_piece) const;
  void wake(int peer) const;

  HostGroup& group_;
  std::vector<Line> sends_;     // by peer; empty until the first use
  std::vector<Line> receives_;  // by peer
  int64_t queued_ = 0;
};

}  // namespace deepscale
