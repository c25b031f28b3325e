#include "memory/swap_file.h"

#include <fmt/format.h>

#include "platform/files.h"
#include "platform/random.h"
#include "platform/resources.h"

namespace deepscale {

AsyncFile open_swap_file(const AsyncFileQueue& queue, const std::string& folder) {
  make_directories(folder);
  const std::string path = fmt::format("{}/deepscale_{}_{}.swap", folder, this_process_id(), random_token());
  AsyncFile file = queue.open(path, FileMode::kCreate, FileCaching::kDirect);
  remove_file(path);
  return file;
}

}  // namespace deepscale
