#include "inference/weight_store.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/error.h"

namespace deepscale {

/// A matrix is whole as long as it lives.
class WeightStore::Use {
 public:
  Use(Engine* engine, const Matrix& matrix) : engine_(matrix.unit ? engine : nullptr), unit_(matrix.unit.get()) {
    if (engine_ != nullptr) engine_->pre_forward(*unit_, {});
  }
  ~Use() {
    if (engine_ != nullptr) engine_->post_forward(*unit_, {});
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  Engine* engine_;
  ParamUnit* unit_;
};

WeightStore::WeightStore(ModelFolder& source, const WeightStoreOptions& options) : source_(source), options_(options) {
  if (packed()) check_packed_shape({0, 0, options.bits, options.group_size, false});
  if (options.folder.empty()) return;
  FileTierOptions file;
  file.folder = options.folder;
  file.pool_bytes = usual_pool_bytes();
  tier_ = std::make_unique<FileTier>(file);
  left_in_memory_ = options.max_resident.value_or(0);
}

int WeightStore::matrix(const std::string& name, int64_t rows, int64_t cols) {
  const auto known = std::find_if(matrices_.begin(), matrices_.end(), [&](const auto& m) { return m.name == name; });
  if (known != matrices_.end()) return static_cast<int>(known - matrices_.begin());
  const c10::NoGradGuard no_grad;
  Matrix made{name, {rows, cols, packed() ? options_.bits : 8, options_.group_size, false}, {}, nullptr};
  const std::vector<int64_t> shape =
      packed() ? std::vector<int64_t>{made.shape.numel(options_.dtype)} : std::vector<int64_t>{rows, cols};
  made.value = at::empty(shape, at::TensorOptions().dtype(options_.dtype));
  parameters_ += rows * cols;
  weight_bytes_ += static_cast<int64_t>(made.value.nbytes());
  left_in_memory_ -= rows * cols;
  if (tier_ == nullptr || left_in_memory_ >= 0) {
    fill(made);
  } else {
    made.unit = std::make_shared<ParamUnit>(name, std::vector<NamedParam>{{name, made.value}},
                                            plan_for_sharded_parameters(PlanGroups::over(Communicator::self())),
                                            options_.dtype, tier_.get(), ParamUnit::Values::kUndefined);
    made.unit->hold();
    fill(made);
    made.unit->store_gathered();
    made.unit->unhold();
  }
  matrices_.push_back(std::move(made));
  return static_cast<int>(matrices_.size()) - 1;
}

void WeightStore::fill(const Matrix& matrix) {
  if (!packed()) return source_.read(matrix.name, matrix.value);
  const at::Tensor plain = at::empty({matrix.shape.rows, matrix.shape.cols}, at::TensorOptions().dtype(options_.dtype));
  source_.read(matrix.name, plain);
  matrix.value.copy_(pack_weight(plain, matrix.shape));
}

at::Tensor WeightStore::resident(const std::string& name, const std::vector<int64_t>& shape) {
  at::Tensor value = at::empty(shape, at::TensorOptions().dtype(options_.dtype));
  source_.read(name, value);
  parameters_ += value.numel();
  weight_bytes_ += static_cast<int64_t>(value.nbytes());
  return value;
}

void WeightStore::finish() {
  if (tier_ == nullptr) return;
  tier_->flush();
  EngineOptions options;
  options.groups = PlanGroups::over(Communicator::self());
  options.plan = plan_for_sharded_parameters(options.groups);
  options.optimizer.kind = OptimizerKind::kNone;
  options.param_resident_adapts = !options_.max_resident.has_value();
  std::vector<EngineParam> params;
  for (const Matrix& matrix : matrices_) {
    if (matrix.unit) params.push_back({matrix.name, matrix.value, -1, matrix.unit});
  }
  engine_ = std::make_unique<Engine>(std::move(options), std::move(params));
}

at::Tensor WeightStore::linear(int matrix, const at::Tensor& x, const at::Tensor& bias) {
  const Matrix& of = matrices_[matrix];
  const Use use(engine_.get(), of);
  const std::optional<at::Tensor> offset = bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt;
  return packed() ? packed_linear(x, of.value, of.shape, offset) : few_rows_linear(x, of.value, offset);
}

at::Tensor WeightStore::embedding(int matrix, const at::Tensor& ids) {
  const Matrix& of = matrices_[matrix];
  const Use use(engine_.get(), of);
  return packed() ? packed_embedding(ids, of.value, of.shape) : at::embedding(of.value, ids);
}

std::optional<FileTierFacts> WeightStore::file_facts() const {
  if (tier_ == nullptr) return std::nullopt;
  return tier_->facts();
}

}  // namespace deepscale
