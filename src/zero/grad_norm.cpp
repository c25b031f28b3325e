#include "zero/grad_norm.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/spans.h"
#include "zero/flat_ops.h"

namespace deepscale {

GradNorm::GradNorm(std::vector<ParamUnit*> units, std::vector<std::vector<int>> model_index)
    : units_(std::move(units)) {
  int64_t blocks = 0;
  for (size_t u = 0; u < units_.size(); ++u) {
    std::vector<Span> spans;
    for (int i = 0; i < units_[u]->layout().tensors(); ++i) {
      Span span;
      if (model_index[u][i] >= 0) {
        const int64_t count = (units_[u]->layout().numel(i) + kernels::kNormBlock - 1) / kernels::kNormBlock;
        span = {blocks, count, model_index[u][i]};
        blocks += count;
        in_model_order_.push_back(span);
      }
      spans.push_back(span);
    }
    spans_.push_back(std::move(spans));
    if (units_[u]->plan().shards() > group_.size()) group_ = units_[u]->plan().optimizer;
  }
  std::sort(in_model_order_.begin(), in_model_order_.end(),
            [](const Span& a, const Span& b) { return a.model_index < b.model_index; });
  const at::Device device = units_.empty() ? at::Device(at::kCPU) : units_.front()->device();
  partials_ = group_.allocate(std::max<int64_t>(blocks, 1), at::kDouble, device);
}

void GradNorm::add_unit(int unit, const at::Tensor& settled_gradient) {
  for (const auto& piece : units_[unit]->pieces()) {
    const Span& span = spans_[unit][piece.tensor];
    if (span.model_index < 0) continue;
    const int64_t first = span.first_block + piece.tensor_offset / kernels::kNormBlock;
    const int64_t blocks = (piece.length + kernels::kNormBlock - 1) / kernels::kNormBlock;
    flat::sum_of_squares(flat::slice(settled_gradient, piece.shard_offset, piece.length),
                         flat::slice(partials_, first, blocks));
  }
}

GradNorm::Result GradNorm::combine() {
  // Every block has one owner, the others hold zero, so the sum over ranks is exact.
  if (!group_.is_self()) group_.all_reduce(partials_, ReduceOp::kSum, "gradient norm").wait_released();
  Result result;
  double total = 0.0;
  const at::Tensor on_host = partials_.cpu();
  const auto* values = on_host.const_data_ptr<double>();
  for (const Span& span : in_model_order_) {
    double tensor_sum = 0.0;
    for (int64_t b = 0; b < span.blocks; ++b) tensor_sum += values[span.first_block + b];
    if (!std::isfinite(tensor_sum) && result.first_nonfinite_index < 0) result.first_nonfinite_index = span.model_index;
    total += tensor_sum;
  }
  result.norm = std::sqrt(total);
  partials_.zero_();
  return result;
}

}  // namespace deepscale
