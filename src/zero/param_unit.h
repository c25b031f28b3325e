// A unit: parameters that are gathered and released together, in one flat buffer.
//
// Ways to exist, decided by the plan, the group and move_to_file(), invisible to callers:
//  - replicated (plan.params of one rank): the flat buffer is always there; shard() is a slice of it.
//  - mapped (plan.params shares memory): the flat buffer is one region that all ranks map; a shard is a slice of it,
//    and to gather is to point param.data at it. No byte moves, no peer takes part, and the host holds the model once.
//  - gathered (otherwise): shards are separate; gather() gives the flat buffer its memory and all-gathers into it.
//  - in a file (after move_to_file): as gathered, but the shard is in memory only while it is gathered from, stepped or
//    written; a group of one reads it straight into the flat buffer.
//
// [Note: second shards] With a node group (hpZ; Wang et al. 2023, "ZeRO++", arXiv 2306.10209) a gathered unit leaves,
// at its first release after new weights, a second shard cut over the node's ranks only; until the next weights gathers
// take that one and stay inside the node. A mapped unit needs none.
//
// [Note: released parameters] While a sharded unit is released, param.data is an empty tensor of shape [0], which is
// what frameworks test for. An internal full-shape tensor stays; its storage is resized in place, so views that
// autograd saved (weight.t(), for instance) are valid again once the unit is gathered for backward.
//
// [Note: lives of parameters] Parameters own their unit (in Python through ParamSlot), the unit knows them weakly: a
// model that is dropped takes its units, their memory and files along. A parameter that is gone while others of its
// unit live is skipped.
//
// [Note: who writes shards] Shards change only between step boundaries, by their owner, after every rank has finished
// its backward (the norm's all-reduce is that point) and before a barrier that ends publish(). One-sided reads are safe
// so. Threads: one thread at a time (the autograd thread included).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "memory/file_tier.h"
#include "zero/shard_layout.h"
#include "zero/sharding_plan.h"

namespace deepscale {

struct NamedParam {
  std::string name;  ///< dotted name in the model
  at::Tensor tensor;
};

class ParamUnit {
 public:
  /// What becomes of the values that the tensors have when a unit is made over them.
  enum class Values : uint8_t { kKeep, kUndefined };

  /// Collective over plan.data: values of its rank 0 are cast to `dtype` and sharded; every tensor's data is replaced.
  /// With `tier` the unit starts in a file where move_to_file() would put it, and never takes memory for more than its
  /// shard and, in a group of several ranks, one full copy. kUndefined: nobody needs the values (somebody is about to
  /// load others); they become zeros, and with `tier` nothing is written.
  /// Requires: floating tensors on one device. Throws ConfigError naming a parameter that is not.
  ParamUnit(std::string name, std::vector<NamedParam> params, ShardingPlan plan, at::ScalarType dtype,
            const FileTier* tier = nullptr, Values values = Values::kKeep);
  ParamUnit(const ParamUnit&) = delete;
  ParamUnit& operator=(const ParamUnit&) = delete;

  [[nodiscard]] const std::string& name() const { return name_; }
  [[nodiscard]] const ShardLayout& layout() const { return layout_; }
  [[nodiscard]] const ShardingPlan& plan() const { return plan_; }
  [[nodiscard]] int size() const { return static_cast<int>(params_.size()); }
  /// Undefined when the parameter is gone.
  [[nodiscard]] at::Tensor param(int index) const;
  [[nodiscard]] const std::string& param_name(int index) const { return params_[index].name; }
  [[nodiscard]] const std::vector<int64_t>& shape(int index) const { return shapes_[index]; }
  [[nodiscard]] at::ScalarType dtype() const { return dtype_; }
  [[nodiscard]] at::Device device() const { return flat_.device(); }
  [[nodiscard]] bool sharded() const { return plan_.shards_params(); }
  [[nodiscard]] bool mapped() const { return mapped_; }
  [[nodiscard]] bool in_file() const { return stored_.defined(); }

  /// Keeps this rank's shard in a file of the tier from now on, and in memory only for a visit. For units that are
  /// sharded and not gathered, on the CPU, before anybody has taken shard(); nothing happens to others. Throws
  /// ConfigError with a node group (hpZ), which would keep a second shard in memory.
  void move_to_file(const FileTier& tier);
  /// Requires: in_file().
  [[nodiscard]] FileTier tier() const { return stored_.tier(); }

  /// This rank's slice of the optimizer group's layout, in the model's dtype: [layout().shard_numel()]. In a file:
  /// without memory outside of a visit.
  [[nodiscard]] const at::Tensor& shard() const { return shard_; }
  /// Elements [offset, offset + length) of it; may be made at any time.
  [[nodiscard]] at::Tensor shard_part(int64_t offset, int64_t length) const;
  /// Gives the shard memory until end_visit(). Does nothing where it has memory anyway. With `overwrite` the caller
  /// writes every element; what stood there need not be read.
  void visit(bool overwrite = false);
  /// `changed`: the shard was written; publish() must follow before the next use of the parameters.
  void end_visit(bool changed);
  /// Gathered from now on until end_stay(), without counting as one of its gathers. Only where the whole unit is this
  /// rank's and in a file, and only while it is gathered: can_stay(). Dropped by weights that change.
  [[nodiscard]] bool can_stay() const { return alone_in_file() && gathered_; }
  void stay();
  void end_stay();
  [[nodiscard]] bool stays() const { return stays_; }
  /// The pieces of this rank's slice.
  [[nodiscard]] const std::vector<ShardLayout::Piece>& pieces() const { return pieces_; }
  /// The piece of tensor `index` in this rank's slice; null when it has none.
  [[nodiscard]] const ShardLayout::Piece* piece_of(int index) const;

  /// Starts what gather() will need; costs nothing when mapped or replicated.
  void prefetch();
  /// param.data is the full tensor. Nests: each gather() needs its release().
  void gather();
  void release();
  /// The same for code outside the engine: release_all() respects it. An unhold() without hold() does nothing.
  void hold();
  void unhold();
  /// Full shapes without values, for code that only asks for metadata (autograd nodes); hide_shapes() ends it.
  void show_shapes();
  void hide_shapes();
  /// Drops a prefetch and all gathers but those of hold().
  void release_all();
  [[nodiscard]] bool gathered() const { return gathered_; }
  /// Whether the unit takes memory for its full parameters, or is about to.
  [[nodiscard]] bool occupied() const { return gathered_ || prefetched_; }
  /// Bytes of the second shard, 0 without one.
  [[nodiscard]] int64_t second_shard_bytes() const {
    return second_shard_.defined() ? static_cast<int64_t>(second_shard_.nbytes()) : 0;
  }
  /// Elements that gathering this unit adds to this rank's memory.
  [[nodiscard]] int64_t gather_cost_numel() const { return sharded() && !mapped_ ? layout_.total_numel() : 0; }

  /// After shard() changed on every rank: makes full parameters current. Collective. For replicated units the returned
  /// operation must be waited for; a mapped unit is current after the caller's barrier (needs_publish_barrier()).
  [[nodiscard]] Pending publish();
  [[nodiscard]] bool needs_publish_barrier() const { return mapped_ && plan_.params.size() > 1; }

  /// Private full copy, in the model's dtype. Collective unless mapped or replicated.
  at::Tensor read_full(int index);
  /// Stores `value` (full shape, any float dtype). root >= 0: that rank's value, on all ranks; -1: each rank's own.
  /// Collective over plan.data. Then calls the listener.
  void write_full(int index, const at::Tensor& value, int root);
  /// Whether the gathered values may be written where they are and stored by store_gathered(): nobody else has a copy.
  [[nodiscard]] bool writable_in_place() const {
    return gathered_ && plan_.params.is_self() && plan_.data.is_self() && (mapped_ || in_file());
  }
  /// Stores what the gathered parameters hold now, in the background. Requires: writable_in_place(). Calls the listener
  /// for each. The caller's release() must follow: until then parameters from a file have no memory, unless others hold
  /// them.
  void store_gathered();
  /// One listener at a time; the owner's name is what drop_write_listener() goes by, since another may have followed.
  void set_write_listener(const void* owner, std::function<void(int index)> listener);
  void drop_write_listener(const void* owner);

  /// Replicated units: takes over values when somebody replaced a parameter's data by a tensor of the same shape;
  /// throws Error naming the parameter when its shape changed. Returns whether anything was taken over.
  bool check_in_place();

 private:
  void allocate(const FileTier* tier, at::Device device);
  void fill(Values values, const std::vector<NamedParam>& params);
  void make_views();
  void store_in(FileTensor stored);
  void check_node_group() const;
  [[nodiscard]] bool alone_in_file() const { return stored_.defined() && plan_.params.is_self(); }
  void take_values(const at::Tensor& values);
  void keep_second_shard();
  void drop_prefetch();
  void gather_from_file();
  void show_full();
  void point_at_full();
  void point_at_nothing();
  [[nodiscard]] at::Tensor slot(int index) const;

  struct Member {
    std::string name;
    c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl> tensor;
  };

  std::string name_;
  std::vector<Member> params_;
  ShardingPlan plan_;
  at::ScalarType dtype_;
  std::vector<std::vector<int64_t>> shapes_;
  ShardLayout layout_;
  std::vector<ShardLayout::Piece> pieces_;
  at::Tensor flat_;
  at::Tensor shard_;
  FileTensor stored_;             ///< what shard_ lives in, when that is a file
  std::vector<at::Tensor> full_;  ///< full-shape views of flat_
  at::Tensor empty_;
  at::Tensor second_shard_;  ///< [total_numel / node.size()], in slices of the flat buffer
  bool second_shard_valid_ = false;
  Pending pending_;
  bool mapped_ = false;
  bool prefetched_ = false;
  bool gathered_ = false;
  bool stays_ = false;
  int gather_count_ = 0;
  int held_ = 0;  ///< of gather_count_, those of hold()
  const void* listener_owner_ = nullptr;
  std::function<void(int)> write_listener_;
};

}  // namespace deepscale
