// Writing a file so that readers see the old one or the whole new one, also after a power failure. Torch-free.
#pragma once

#include <functional>
#include <ostream>
#include <string>

namespace deepscale {

/// Lets `write` make PATH.tmp, brings it to the disk and renames it to PATH. Throws IoError naming the file, and
/// removes PATH.tmp, when the folder is missing, the disk is full, or `write` throws (its own error then).
void replace_file_by(const std::string& path, const std::function<void(const std::string& work)>& write);
/// The same for a stream of bytes.
void replace_file(const std::string& path, const std::function<void(std::ostream& out)>& write);

}  // namespace deepscale
