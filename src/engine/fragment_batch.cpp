#include "engine/fragment_batch.h"

#include <ATen/Functions.h>

#include <optional>

#include "comm/communicator.h"

namespace deepscale {
namespace {

constexpr int64_t kMostWaiting = int64_t{256} << 20;  // bytes of temporary memory

}  // namespace

FragmentBatch::FragmentBatch(Engine& engine, const NativeTensors& tensors, int threads)
    : engine_(engine), tensors_(tensors), threads_(threads), in_files_(engine.file_use().optimizer.has_value()) {}

at::Tensor FragmentBatch::home(int param, const std::string& key, at::ScalarType dtype) const {
  // SGD's momentum begins as the gradient, unless write_local() says that there is one.
  if (in_files_ || key == "momentum_buffer") return {};
  const std::optional<at::Tensor> local = engine_.read_local(param, key);
  const bool fits = local && local->is_cpu() && local->scalar_type() == dtype && local->is_contiguous();
  return fits ? *local : at::Tensor();
}

void FragmentBatch::add(int param, const std::string& key, const ManifestTensor& stored) {
  const auto range = engine_.fragment_of(param);
  if (range.length == 0) return;
  const at::ScalarType dtype = to_scalar_type(stored.dtype);
  at::Tensor values = home(param, key, dtype);
  if (!values.defined()) {
    values = at::empty({range.length}, at::TensorOptions(dtype));
    waiting_.push_back({param, key, values});
    waiting_bytes_ += static_cast<int64_t>(values.nbytes());
  }
  requests_.push_back({stored.name, range.offset, range.length, values.data_ptr()});
  if (waiting_bytes_ > kMostWaiting) flush();
}

void FragmentBatch::flush() {
  tensors_.read_all(requests_, threads_);
  for (const Waiting& values : waiting_) engine_.write_local(values.param, values.key, values.values);
  requests_.clear();
  waiting_.clear();
  waiting_bytes_ = 0;
}

}  // namespace deepscale
