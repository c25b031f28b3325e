// io_uring as an engine of asynchronous files.
#pragma once

#include <memory>
#include <string>

#include "platform/async_internal.h"

namespace deepscale::async_internal {

/// Why io_uring cannot be used in this process; empty when it can.
std::string why_not_io_uring();

/// Throws IoError when the kernel refuses.
std::unique_ptr<Engine> make_uring_engine(QueueCore& core);

}  // namespace deepscale::async_internal
