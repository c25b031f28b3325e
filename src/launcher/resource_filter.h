// Hosts with their slots, and the filters --include and --exclude over them: "host:slot,slot@host". Pure.
#pragma once

#include <string>
#include <vector>

namespace deepscale {

/// A machine of the run. A slot is a device's name: an index, or what CUDA_VISIBLE_DEVICES holds.
struct HostSlots {
  std::string host;
  std::vector<std::string> slots;

  bool operator==(const HostSlots&) const = default;
};

/// Parses a filter; a host without slots has an empty list. `option` names it in errors.
/// Throws ConfigError for an empty host or slot, a slot that is no number, a slot named twice, or a host named twice
/// unless each time with slots.
std::vector<HostSlots> parse_filter(const std::string& text, const std::string& option);

/// Keeps what the filter names, in the order of `available`. Throws ConfigError for an unknown host or slot.
std::vector<HostSlots> include_resources(const std::vector<HostSlots>& available, const std::vector<HostSlots>& filter);

/// Removes what the filter names. Throws as include_resources, and when nothing is left.
std::vector<HostSlots> exclude_resources(const std::vector<HostSlots>& available, const std::vector<HostSlots>& filter);

}  // namespace deepscale
