#include "zero/sharding_plan_files.h"

namespace deepscale {

StateFileForm state_file_form(const ZeroOptions& zero) {
  if (zero.stage >= 3) return StateFileForm::kPerParameter;
  return zero.stage >= 1 ? StateFileForm::kPartitioned : StateFileForm::kWhole;
}

bool files_list_frozen(const ZeroOptions& zero) {
  return zero.stage >= 2;
}

int64_t number_in_files(const ZeroOptions& zero) {
  return zero.stage;
}

}  // namespace deepscale
