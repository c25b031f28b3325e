// Which disk a folder stands on: as a text to remember measurements by, and whose room its files take.
#pragma once

#include <string>

namespace deepscale {

/// Names the file system that holds `path` and the device beneath it ("ext4 /dev/nvme0n1p2 KXG60ZNV 79Q..."): the same
/// text for every folder of one file system and, as far as the system tells, after a restart; another one for another
/// disk. Empty when it cannot be found out (`path` must exist). Not a secret, not unique among machines. Threads: any.
std::string disk_identity(const std::string& path);

struct FileSystemFacts {
  std::string key;         ///< equal for folders whose files share one room, until a restart; empty: not known
  bool in_memory = false;  ///< its files are memory (tmpfs)
};

/// Of the file system that holds `path`, or will hold it: one that does not exist yet is as the nearest folder above.
FileSystemFacts file_system_of(const std::string& path);

}  // namespace deepscale
