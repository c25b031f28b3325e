// Python's pickle format, protocols 0 to 5 as far as torch.save and plain containers use it, without executing
// anything: a file's instructions only build the nodes of py_value.h. Reading is safe on hostile bytes: every length is
// checked, and what is not understood is a CheckpointError.
//
// Known functions become what they would return: torch._utils._rebuild_tensor_v2 and _rebuild_parameter a tensor,
// collections.OrderedDict and defaultdict a dictionary. Every other class stays a node with its name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/py_value.h"

namespace deepscale {

/// Throws CheckpointError that says what is wrong at which byte.
PyDocument read_pickle(std::string_view bytes);

struct PickledStorage {
  std::shared_ptr<const void> data;
  int64_t bytes = 0;
};

struct PickledTensors {
  std::string bytes;                     ///< the pickle
  std::vector<PickledStorage> storages;  ///< storage "0", "1", ...
};

/// Protocol 2, which every Python 3 and torch read.
PickledTensors write_pickle(const PyDocument& document);

/// Names of storage classes: "FloatStorage" <-> kFloat32.
DType storage_dtype(std::string_view class_name);  ///< CheckpointError for an unknown one
std::string_view storage_class(DType dtype);

}  // namespace deepscale
