#include "checkpoint/optimizer_files.h"

#include <ATen/Functions.h>

#include "base/shape.h"

namespace deepscale {
namespace {

std::vector<std::shared_ptr<TorchArchive>> archives_of(const std::vector<std::shared_ptr<const TorchFile>>& files) {
  std::vector<std::shared_ptr<TorchArchive>> archives;
  for (const auto& file : files) archives.push_back(file->archive());
  return archives;
}

}  // namespace

OptimizerFiles::OptimizerFiles(std::vector<const PyValue*> states,
                               const std::vector<std::shared_ptr<const TorchFile>>& files,
                               std::vector<std::vector<StoredParam>> groups)
    : OptimizerStates(std::move(states), archives_of(files), std::move(groups)) {}

std::optional<at::Tensor> OptimizerFiles::read(const std::string& name, const std::string& key, int64_t offset,
                                               int64_t length) const {
  at::Tensor values = at::empty({length}, at::kFloat);
  const bool found = OptimizerStates::read(name, key, offset, length, values.mutable_data_ptr<float>());
  return found ? std::optional(values) : std::nullopt;
}

std::optional<at::Tensor> OptimizerFiles::read_whole(const std::string& name, const std::string& key) const {
  const StoredParam* stored = find(name);
  if (stored == nullptr) return std::nullopt;
  const auto values = read(name, key, 0, numel_of(stored->shape));
  return values ? std::optional<at::Tensor>(values->view(stored->shape)) : std::nullopt;
}

}  // namespace deepscale
