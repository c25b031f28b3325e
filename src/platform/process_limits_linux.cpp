#include <sys/resource.h>
#include <unistd.h>

#include <sstream>

#include "platform/process_limits.h"
#include "platform/text_reader.h"

namespace deepscale {
namespace {

struct AddressSpace {
  int64_t all_bytes = 0, data_bytes = 0;
};

/// Pages of /proc/self/statm: size, resident, shared, text, lib, data.
AddressSpace used_address_space() {
  std::istringstream fields(read_text_file("/proc/self/statm").value_or(""));
  int64_t all = 0, skipped = 0, data = 0;
  fields >> all >> skipped >> skipped >> skipped >> skipped >> data;
  if (!fields) return {};
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  return {all * page, data * page};
}

}  // namespace

std::vector<ProcessLimit> process_limits() {
  std::vector<ProcessLimit> found;
  const AddressSpace used = used_address_space();
  rlimit limit = {};
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    found.push_back({"RLIMIT_AS", static_cast<int64_t>(limit.rlim_cur), used.all_bytes, true,
                     "raise it with ulimit -v (unlimited by default)"});
  }
  if (getrlimit(RLIMIT_DATA, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) {
    found.push_back({"RLIMIT_DATA", static_cast<int64_t>(limit.rlim_cur), used.data_bytes, false,
                     "raise it with ulimit -d (unlimited by default)"});
  }
  return found;
}

}  // namespace deepscale
