// HostCommunicator: collectives among ranks of one machine over shared memory. Torch-free: bytes, counts and DTypes;
// communicator.h puts tensors on top. Ranks are processes or threads of one process, mixed as one likes.
//
// Every operation is posted (a descriptor becomes visible to the peers; posting never blocks) and waited for; a rank's
// share of the work is done inside waits, its own or any other wait of the same rank, so there are no helper threads.
// All ranks of a group post the same operations in the same order; they may wait in any order. Sends and receives are
// ordered per pair of ranks only. Buffers that lie in shared memory (is_shared) are read and written in place by peers;
// others travel through a staging area in pieces. Sums are made in rank order, so bits depend on neither.
// How it works: [Note: host collectives] in host_control.h.
//
// Errors: CommError when a peer is at another operation, has exited, or is missing for longer than the timeout; the
// text names both ranks' positions. After an error the communicator and all its subgroups are out of use on every rank,
// and every wait under way ends with the first cause. Threads: one thread at a time per communicator; different groups
// of one rank may be used by different threads.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/reduce_op.h"
#include "comm/host_memory.h"
#include "comm/host_rendezvous.h"

namespace deepscale {

class HostContext;
class HostGroup;
class HostOperation;

struct HostOptions {
  /// How long a wait lets a live peer be late.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  /// Address space of this rank's segment; memory is taken only for what is allocated. 0: the machine's memory.
  int64_t segment_bytes = 0;
  /// Staging memory of a group for buffers outside shared memory, taken at the first use. 0: chosen by the group's
  /// size.
  int64_t staging_bytes = 0;
};

/// An operation under way. Move-only. The destructor waits until the buffers are out of use and swallows errors.
class HostPending {
 public:
  HostPending() = default;
  HostPending(std::shared_ptr<HostGroup> group, std::shared_ptr<HostOperation> operation);
  HostPending(HostPending&&) noexcept;
  HostPending& operator=(HostPending&&) noexcept;
  ~HostPending();

  /// Returns when this rank's outputs are complete. Throws CommError. A second call does nothing.
  void wait();
  /// wait(), then returns when this rank's inputs may be overwritten or freed: no peer reads them any more.
  void wait_released();
  /// Does what can be done without blocking; true when wait() would return at once. Throws CommError. Does not look for
  /// peers that have died: only waits do.
  [[nodiscard]] bool test();
  [[nodiscard]] bool empty() const { return operation_ == nullptr; }

 private:
  std::shared_ptr<HostGroup> group_;
  std::shared_ptr<HostOperation> operation_;
};

struct HostConnection;

class HostCommunicator {
 public:
  /// Collective over `size` ranks that `rendezvous` joins. When they are not all on one host (or cannot map each
  /// other's memory), every rank gets an empty communicator and the reason. Throws IoError, CommError.
  static HostConnection connect(int rank, int size, const HostRendezvous& rendezvous, const HostOptions& options = {});

  /// Made by connect() and subgroup().
  HostCommunicator(std::shared_ptr<HostContext> context, std::shared_ptr<HostGroup> group);
  /// Tells the peers that this rank has left: an operation they still wait for becomes an error at once.
  ~HostCommunicator();
  HostCommunicator(const HostCommunicator&) = delete;
  HostCommunicator& operator=(const HostCommunicator&) = delete;

  [[nodiscard]] int rank() const;
  [[nodiscard]] int size() const;
  [[nodiscard]] std::chrono::milliseconds timeout() const;

  /// This rank's memory; allocate() from it gives buffers that need no copying.
  [[nodiscard]] const std::shared_ptr<HostMemory>& memory() const;
  [[nodiscard]] bool is_shared(const void* pointer, int64_t bytes) const;
  /// Offset of a shared buffer of this rank, for peer_address() on a peer (send it there by any means).
  /// Throws CommError when the pointer is not in this rank's own segment.
  [[nodiscard]] int64_t offset_of(const void* pointer) const;
  /// One-sided access: the byte at `offset` of the segment of `rank` (a rank of this group).
  [[nodiscard]] void* peer_address(int rank, int64_t offset) const;
  /// Collective: one zero-filled region, page aligned, that all ranks of the group share. Freed when all have dropped
  /// it.
  [[nodiscard]] std::shared_ptr<void> allocate_common(int64_t bytes);

  // Operations. `tag` names the operation in errors; it is cut after 47 bytes. Counts are elements and may be 0.
  // Buffers stay valid and unchanged until wait_released(). All ranks pass the same count, dtype, op and root.

  /// data: count elements, in place.
  [[nodiscard]] HostPending all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view tag = {});
  /// input: size() slices of count elements; output: slice rank() of the reduction, possibly slice rank() of input.
  [[nodiscard]] HostPending reduce_scatter(const void* input, void* output, int64_t count, DType dtype, ReduceOp op,
                                           std::string_view tag = {});
  /// input: count elements; output: size() slices. input may be slice rank() of output.
  [[nodiscard]] HostPending all_gather(const void* input, void* output, int64_t count, DType dtype,
                                       std::string_view tag = {});
  [[nodiscard]] HostPending broadcast(void* data, int64_t count, DType dtype, int root, std::string_view tag = {});
  /// input, output: size() slices of count elements; slice p of input goes to rank p. No overlap.
  [[nodiscard]] HostPending all_to_all(const void* input, void* output, int64_t count, DType dtype,
                                       std::string_view tag = {});
  /// wait() returns when the message is under way; wait_released() when the data may be overwritten.
  [[nodiscard]] HostPending send(const void* data, int64_t count, DType dtype, int peer, std::string_view tag = {});
  [[nodiscard]] HostPending recv(void* data, int64_t count, DType dtype, int peer, std::string_view tag = {});
  [[nodiscard]] HostPending barrier(std::string_view tag = {});

  /// The group of `ranks` (ascending, ranks of this one, containing this rank). Collective over this communicator:
  /// every rank calls once, with the subset that it belongs to. The parent may be destroyed before the subgroup.
  [[nodiscard]] std::shared_ptr<HostCommunicator> subgroup(std::span<const int> ranks);

  /// What this rank is doing outside operations ("step()", "forward of layers.7"), for peers' errors; cut after 63
  /// bytes.
  void set_position(std::string_view text);

  /// Bytes that this rank's operations have exchanged with peers, by the published volume formulas: for n bytes of full
  /// data and N ranks reduce_scatter, all_gather and all_to_all count n(N-1)/N, all_reduce twice that, broadcast n on
  /// the ranks that receive, send n, recv 0.
  [[nodiscard]] int64_t bytes_moved() const;
  /// Adds one-sided reads, which the communicator does not see.
  void add_bytes_moved(int64_t bytes);

 private:
  std::shared_ptr<HostContext> context_;
  std::shared_ptr<HostGroup> group_;
};

/// What connect() found.
struct HostConnection {
  std::shared_ptr<HostCommunicator> communicator;  ///< empty: use another transport
  std::string reason;                              ///< why it is empty
};

}  // namespace deepscale
