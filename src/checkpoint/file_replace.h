// Writing a file so that readers see the old one or the whole new one. Torch-free.
#pragma once

#include <functional>
#include <ostream>
#include <string>

namespace deepscale {

/// Writes PATH.tmp by `write`, then renames it to PATH. Throws IoError naming the file, and removes PATH.tmp, when the
/// folder is missing, the disk is full, or `write` throws (its own error then).
void replace_file(const std::string& path, const std::function<void(std::ostream& out)>& write);

}  // namespace deepscale
