#include "engine/plan_units.h"

#include <algorithm>
#include <map>

#include "engine/plan_sizes.h"

namespace deepscale {
namespace {

bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

class UnitPlanner {
 public:
  UnitPlanner(const Options& options, const ModelShapes& shapes, int ranks, bool trains)
      : options_(options), shapes_(shapes), ranks_(ranks), trains_(trains), in_unit_(shapes.params.size(), false) {}

  PlannedUnits run() {
    shard();
    bucket();
    PlannedUnits result;
    for (size_t p = 0; p < shapes_.params.size(); ++p) {
      if (!in_unit_[p]) result.loose.push_back(static_cast<int>(p));
    }
    std::stable_sort(units_.begin(), units_.end(),
                     [](const PlannedUnit& a, const PlannedUnit& b) { return a.position > b.position; });
    result.units = std::move(units_);
    return result;
  }

 private:
  /// Modules whose parameters are sharded; small ones stay whole, up to a total.
  void shard() {
    const ShardingSizes sizes = sizes_for_units(options_.zero, ranks_);
    if (!sizes.shards_params) return;
    int64_t left = options_.zero.stage3_model_persistence_threshold;
    std::map<std::pair<std::string, DType>, std::vector<int>> parts;
    std::vector<std::pair<std::string, DType>> order;
    for (size_t p = 0; p < shapes_.params.size(); ++p) {
      const ParamShape& param = shapes_.params[p];
      const int64_t numel = param.numel();
      const bool small = numel <= options_.zero.stage3_param_persistence_threshold && numel <= left;
      if (small) left -= numel;
      if (small || numel == 0 || param.unit.empty() || !is_float(param.dtype)) continue;
      const std::pair key(param.unit, training_dtype(param, options_));
      if (!parts.contains(key)) order.push_back(key);
      parts[key].push_back(static_cast<int>(p));
    }
    for (const auto& key : order) add(std::move(parts[key]), sizes);
  }

  /// The others that train, from the end of the model.
  void bucket() {
    if (!trains_) return;
    const ShardingSizes sizes = sizes_for_buckets(options_.zero, ranks_);
    const int64_t limit = bucket_limit_numel(options_.zero.reduce_bucket_size);
    std::vector<int> members;
    int64_t numel = 0;
    const auto close = [&] {
      if (!members.empty()) add(std::move(members), sizes);
      members.clear();
      numel = 0;
    };
    for (int p = static_cast<int>(shapes_.params.size()) - 1; p >= 0; --p) {
      const ParamShape& param = shapes_.params[p];
      if (in_unit_[p] || !param.trainable || param.numel() == 0) continue;
      const bool fits = members.empty() ||
                        (numel + param.numel() <= limit &&
                         training_dtype(shapes_.params[members.front()], options_) == training_dtype(param, options_));
      if (!fits) close();
      members.push_back(p);
      numel += param.numel();
    }
    close();
  }

  void add(std::vector<int> members, const ShardingSizes& sizes) {
    PlannedUnit unit;
    unit.dtype = training_dtype(shapes_.params[members.front()], options_);
    unit.sizes = sizes;
    // The engine keeps the position of a module's last parameter, and of a bucket's first in backward.
    unit.position = *std::max_element(members.begin(), members.end());
    std::vector<int64_t> numels;
    int64_t trained = 0;
    for (const int p : members) {
      const int64_t numel = shapes_.params[p].numel();
      numels.push_back(numel);
      in_unit_[p] = true;
      if (!trains_ || !shapes_.params[p].trainable) continue;
      // Two gradients of a tied parameter and their sum.
      const int64_t gradients = shapes_.params[p].tied ? 3 : 1;
      unit.largest_autograd_numel = std::max(unit.largest_autograd_numel, gradients * numel);
      trained += (numel + ShardLayout::kAlignment - 1) / ShardLayout::kAlignment * ShardLayout::kAlignment;
    }
    unit.layout = ShardLayout(std::move(numels), sizes.shards());
    unit.trained_numel = std::min(unit.layout.shard_numel(), trained);
    unit.params = std::move(members);
    units_.push_back(std::move(unit));
  }

  const Options& options_;
  const ModelShapes& shapes_;
  int ranks_;
  bool trains_;
  std::vector<bool> in_unit_;
  std::vector<PlannedUnit> units_;
};

}  // namespace

DType training_dtype(const ParamShape& param, const Options& options) {
  if (!is_float(param.dtype)) return param.dtype;
  if (options.fp16.enabled) return DType::kFloat16;
  if (options.bf16.enabled) return DType::kBFloat16;
  return param.dtype;
}

PlannedUnits plan_units(const Options& options, const ModelShapes& shapes, int ranks, bool trains) {
  return UnitPlanner(options, shapes, ranks, trains).run();
}

}  // namespace deepscale
