// The file in which a process keeps what does not fit into memory.
#pragma once

#include <string>

#include "platform/async_file.h"

namespace deepscale {

/// An empty file in `folder` (made when missing) that has no lasting name: it is gone when the process is, however that
/// ends. Opened for direct access. Throws IoError naming the folder when it is no folder or cannot be written.
AsyncFile open_swap_file(const AsyncFileQueue& queue, const std::string& folder);

}  // namespace deepscale
