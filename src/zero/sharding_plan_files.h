// How DeepSpeed's checkpoint files store what a stage shards: the part of the plan that files know.
#pragma once

#include <cstdint>

#include "deepscale/options_zero.h"

namespace deepscale {

enum class StateFileForm {
  kWhole,         ///< optimizer states stand in the model file, unsharded
  kPartitioned,   ///< one optimizer file per rank, parameters of a group end to end; the model file is whole
  kPerParameter,  ///< one optimizer and one model file per rank, every parameter in equal pieces
};

StateFileForm state_file_form(const ZeroOptions& zero);
/// Frozen parameters are listed beside the trained ones.
bool files_list_frozen(const ZeroOptions& zero);
/// What files call "zero_stage".
int64_t number_in_files(const ZeroOptions& zero);

}  // namespace deepscale
