// The optimizer states of a checkpoint (optimizer_states.h) as at::Tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/optimizer_states.h"
#include "checkpoint/torch_file.h"

namespace deepscale {

class OptimizerFiles : public OptimizerStates {
 public:
  OptimizerFiles(std::vector<const PyValue*> states, const std::vector<std::shared_ptr<const TorchFile>>& files,
                 std::vector<std::vector<StoredParam>> groups);

  /// Elements [offset, offset + length) of a flattened parameter's state in fp32; nothing where the files have none.
  [[nodiscard]] std::optional<at::Tensor> read(const std::string& name, const std::string& key, int64_t offset,
                                               int64_t length) const;
  /// The whole parameter, in its shape.
  [[nodiscard]] std::optional<at::Tensor> read_whole(const std::string& name, const std::string& key) const;
};

}  // namespace deepscale
