// Hostfiles: one machine per line, "host slots=N". Blank lines, everything after '#' and
// attributes for other programs ("max_slots=8") are ignored. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "launcher/resource_filter.h"

namespace deepscale {

/// Hosts in the order of the file, slots 0..N-1. `path` names the file in errors.
/// Throws ConfigError with the line's number for a malformed line, a host that begins with '-' (ssh would take it for
/// an option), a host named twice or no slots, and when there is no host at all.
std::vector<HostSlots> parse_hostfile(std::string_view text, const std::string& path);

/// Reads and parses a hostfile. Throws ConfigError, also when the file cannot be read.
std::vector<HostSlots> read_hostfile(const std::string& path);

/// The same from DeepSpeed's world information: URL-safe base64 of {"host": [slots], ...}. Throws ConfigError.
std::vector<HostSlots> parse_world_info(const std::string& text);

/// Where a hostfile is looked for when none is given.
inline constexpr const char* kDefaultHostfile = "/job/hostfile";

}  // namespace deepscale
