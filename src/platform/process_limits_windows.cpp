#include "platform/process_limits.h"

namespace deepscale {

std::vector<ProcessLimit> process_limits() {
  return {};
}

}  // namespace deepscale
