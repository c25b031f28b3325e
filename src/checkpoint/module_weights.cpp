// Weights of a torch module in safetensors files (deepscale/training.h: load_weights, save_weights).
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <set>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "comm/communicator.h"
#include "deepscale/training.h"

namespace deepscale {
namespace {

struct Named {
  std::string name;
  at::Tensor tensor;
};

/// Parameters, then buffers; undefined ones left out. Shared tensors appear under each of their names.
std::vector<Named> named_tensors(const torch::nn::Module& model) {
  std::vector<Named> all;
  for (const auto& entry : model.named_parameters()) all.push_back({entry.key(), entry.value()});
  for (const auto& entry : model.named_buffers()) {
    if (entry.value().defined()) all.push_back({entry.key(), entry.value()});
  }
  return all;
}

void check_names(const std::vector<Named>& wanted, const SafetensorsFile& file, const std::string& path) {
  std::set<const at::TensorImpl*> present;
  std::set<std::string> known;
  for (const auto& [name, tensor] : wanted) {
    known.insert(name);
    const SafetensorsEntry* entry = file.find(name);
    if (entry == nullptr) continue;
    present.insert(tensor.unsafeGetTensorImpl());
    DS_CHECK_AS(CheckpointError, entry->shape == tensor.sizes().vec(),
                "safetensors file {}: {} has shape [{}], the model's has [{}]", path, name,
                fmt::join(entry->shape, ", "), fmt::join(tensor.sizes(), ", "));
  }
  for (const auto& [name, tensor] : wanted) {
    DS_CHECK_AS(CheckpointError, present.contains(tensor.unsafeGetTensorImpl()),
                "safetensors file {} has no tensor {}, which the model needs", path, name);
  }
  for (const auto& entry : file.header().entries) {
    DS_CHECK_AS(CheckpointError, known.contains(entry.name),
                "safetensors file {} has a tensor {} that the model does not know", path, entry.name);
  }
}

}  // namespace

void load_weights(torch::nn::Module& model, const std::string& path) {
  const c10::NoGradGuard no_grad;
  SafetensorsFile file = SafetensorsFile::open(path);
  const std::vector<Named> wanted = named_tensors(model);
  check_names(wanted, file, path);
  for (const auto& [name, tensor] : wanted) {
    const SafetensorsEntry* entry = file.find(name);
    if (entry == nullptr) continue;
    const at::Tensor values = at::empty(entry->shape, at::TensorOptions(to_scalar_type(entry->dtype)));
    file.read(*entry, values.data_ptr());
    tensor.copy_(values);
  }
}

void save_weights(const torch::nn::Module& model, const std::string& path) {
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> kept;
  std::vector<SafetensorsItem> items;
  std::set<const at::TensorImpl*> seen;
  for (const auto& [name, tensor] : named_tensors(model)) {
    if (!seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
    kept.push_back(tensor.detach().to(at::kCPU).contiguous());
    items.push_back({name, to_dtype(tensor.scalar_type()), tensor.sizes().vec(), kept.back().const_data_ptr()});
  }
  write_safetensors(path, items, {{"format", "pt"}});
}

}  // namespace deepscale
