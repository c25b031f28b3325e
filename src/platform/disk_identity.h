// Which disk a folder stands on, as a text to remember measurements by.
#pragma once

#include <string>

namespace deepscale {

/// Names the file system that holds `path` and the device beneath it ("ext4 /dev/nvme0n1p2 KXG60ZNV 79Q..."): the same
/// text for every folder of one file system and, as far as the system tells, after a restart; another one for another
/// disk. Empty when it cannot be found out (`path` must exist). Not a secret, not unique among machines. Threads: any.
std::string disk_identity(const std::string& path);

}  // namespace deepscale
