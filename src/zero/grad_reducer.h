// From autograd's gradients to each rank's averaged shard: the rules "reduce" and "settle" of the plan.
//
// [Note: gradient buffers]
//  - plan.grads of one rank, unless it is a sharded gradient that lives in a file: the gradient is whole on every rank
//    until the boundary. Each unit has a flat gradient buffer; param.grad is a view of it, so later micro-batches
//    accumulate in place. settle() reduces it once per boundary.
//  - otherwise: gradients of a micro-batch are gathered in a bucket that peers can read; when the last one of the unit
//    has arrived, the bucket is reduce-scattered and its result is stored in (or added to) the unit's gradient shard.
//    Buckets come from a pool of few, so their memory does not grow with the model. In a group of one the shard itself
//    is the bucket, unless it must be added to or has another dtype.
//
// [Note: launch order] Reductions start in one fixed order on all ranks, whichever order gradients arrive in, because
// collectives must match: a finished unit waits for the ones before it, and keeps its bucket meanwhile. The first
// backward takes the reverse of the order of registration; from then on the order is the one in which units were
// complete on rank 0 in that backward. A group of one need not wait for anybody. finish_backward() sends what is left,
// gradients that never came as zeros: parameters that one rank did not use cannot stall the others.
//
// [Note: late gradients] A gradient may arrive after its unit was sent in the same backward (a parameter used by
// several reentrant checkpoint segments). It waits in a buffer of its own until the boundary, where the ranks agree
// which units have such gradients anywhere and reduce those once more.
//
// [Note: what counts as the gradient] Gradients are taken over as they arrive; setting param.grad to None afterwards
// takes nothing back, in no stage (but for passes with create_graph in the first kind). clear() does.
//
// Threads: called by autograd's thread and by the engine's, never at the same time.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "zero/param_unit.h"

namespace deepscale {

class GradReducer {
 public:
  struct Options {
    /// Dtype in which gradients of one micro-batch travel; nothing: the unit's dtype.
    std::optional<at::ScalarType> communication_dtype;
    /// Dtype in which micro-batches are summed; nothing: the unit's dtype.
    std::optional<at::ScalarType> accumulation_dtype;
    bool average = true;            ///< false: gradients are summed over ranks
    bool prescale = false;          ///< divide by the number of ranks before the sum instead of after it
    double predivide_factor = 1.0;  ///< divide by it before the sum and multiply after
    bool overlap = false;           ///< let one reduction be in flight while backward goes on
    /// Where the averaged shards live of plans that reduce each micro-batch, until the step; null: in memory.
    const FileTier* file = nullptr;
    /// Smaller shards stay in memory: a file would cost more time than it saves memory.
    int64_t smallest_in_file_bytes = 1 << 16;
  };

  /// Units in the order in which backward is expected to finish them. trainable[u][i]: whether tensor i has a gradient.
  GradReducer(std::vector<ParamUnit*> units, std::vector<std::vector<bool>> trainable, Options options);

  void begin_backward() { open_ = has_gradients_ = true; }
  /// Takes over the gradient that autograd just left in the parameter's .grad.
  void take(int unit, int index);
  /// Ends a backward: sends what is incomplete (reducing plans). Collective.
  void finish_backward();
  /// Whether a backward has begun and not ended: an exception may have cut it off.
  [[nodiscard]] bool open() const { return open_; }

  /// Boundary: reduces what is still whole. All units, in order; wait_settled() must follow. Collective. Does nothing
  /// when it was done already and no backward came since.
  void settle();
  void wait_settled(int unit);
  /// This rank's averaged gradient, [shard_numel], in the accumulation dtype; after wait_settled(). What lives in a
  /// file is loaded, until release_settled().
  [[nodiscard]] at::Tensor settled(int unit);
  /// Begins to read what settled() will need; false when the file's buffers have no room for it now.
  bool read_ahead(int unit);
  /// `changed`: somebody wrote it.
  void release_settled(int unit, bool changed = false);
  /// Whether the shard lives in a file; it was then shown to the listener.
  [[nodiscard]] bool in_file(int unit) const { return units_[unit].stored.defined(); }
  /// Called with a unit's shard whenever it has a new value that goes to a file: what needs to be computed from it can
  /// be computed without reading it again.
  void set_shard_listener(std::function<void(int unit, const at::Tensor& shard)> listener);
  /// The window goes on after settle(): the result is set aside, and the next settle() adds it.
  void reopen();

  /// Forgets gradients; the next backward starts a new accumulation window. Ends an open backward first (collective
  /// then): peers may be waiting for its reductions.
  void clear();
  /// Whether any gradient has arrived in this accumulation window on this rank.
  [[nodiscard]] bool has_gradients() const { return has_gradients_; }
  [[nodiscard]] int64_t gradient_bytes() const;
  /// Buckets and scratch memory.
  [[nodiscard]] int64_t bucket_bytes() const;

 private:
  struct UnitState {
    ParamUnit* unit = nullptr;
    std::vector<bool> trainable;
    std::vector<bool> written;  ///< slots that hold a gradient of the window (whole) or of the micro-batch (bucket)
    int trainable_count = 0;
    int arrived = 0;
    bool sent = false;      ///< in this backward
    at::Tensor whole;       ///< [total_numel], plans that reduce at the boundary
    at::Tensor bucket;      ///< [total_numel], plans that reduce each micro-batch, while gradients arrive
    bool in_place = false;  ///< the bucket is the shard; otherwise it lies in
    at::Tensor bucket_memory;
    at::Tensor late;     ///< [total_numel], what arrived after the bucket was sent
    at::Tensor scratch;  ///< result of a reduction that must still be added or converted
    at::Tensor shard;    ///< [shard_numel], plans that reduce each micro-batch
    FileTensor stored;   ///< what shard lives in, when that is a file
    at::Tensor carry;    ///< [shard_numel], settled before the window went on
    bool shard_valid = false;
    Pending pending;
  };
  struct Spare {
    at::Tensor buffer;
    Pending reader;  ///< the reduction that may still be reading it on other ranks
  };

  void take_whole(UnitState& state, int index, const at::Tensor& param);
  void take_in_bucket(UnitState& state, int index, const at::Tensor& param);
  void take_late(UnitState& state, int index, const at::Tensor& param);
  void open_bucket(UnitState& state);
  void send_ready();
  void send(UnitState& state);
  void complete(UnitState& state);
  void complete_all_but(size_t in_flight);
  void store(UnitState& state);
  void open_shard(UnitState& state, bool keep_values);
  void close_shard(UnitState& state);
  [[nodiscard]] std::vector<int> units_with_late_gradients() const;
  void reduce_late();
  void settle_unit(UnitState& state);
  void settle_whole(UnitState& state);
  void receive_settled(UnitState& state);
  [[nodiscard]] bool reduces(const UnitState& state) const;
  [[nodiscard]] bool lives_in_file(const UnitState& state) const;
  void place_in_file(UnitState& state) const;
  [[nodiscard]] bool aliases(const UnitState& state) const;
  void adopt_order();
  /// At least [total_numel].
  at::Tensor acquire(const UnitState& state);
  at::Tensor acquire_scratch(const UnitState& state);
  [[nodiscard]] at::Tensor slot(const UnitState& state, const at::Tensor& buffer, int index) const;
  [[nodiscard]] at::ScalarType bucket_dtype(const UnitState& state) const;
  [[nodiscard]] at::ScalarType sum_dtype(const UnitState& state) const;
  [[nodiscard]] ReduceOp op() const;
  [[nodiscard]] double scale_before(const UnitState& state) const;
  [[nodiscard]] double scale_after(const UnitState& state) const;

  std::vector<UnitState> units_;
  Options options_;
  std::function<void(int, const at::Tensor&)> listener_;
  std::vector<int> order_;      ///< fixed order of sending, indices of reducing units
  std::vector<int> completed_;  ///< order seen in the first backward
  bool order_observed_ = false;
  size_t next_ = 0;  ///< position in order_ of the next unit to send
  std::deque<int> in_flight_;
  std::vector<Spare> spares_;
  std::vector<at::Tensor> scratches_;  ///< free ones, to be used again
  bool open_ = false;
  bool settled_ = false;
  bool has_gradients_ = false;
};

}  // namespace deepscale
