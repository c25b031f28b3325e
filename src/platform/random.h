// Unpredictable bytes from the operating system.
#pragma once

#include <string>

namespace deepscale {

/// 32 hexadecimal digits that nobody can guess. Throws IoError. Threads: any.
std::string random_token();

}  // namespace deepscale
