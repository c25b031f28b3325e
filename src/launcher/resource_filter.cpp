#include "launcher/resource_filter.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "launcher/text.h"

namespace deepscale {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const HostSlots* find_host(const std::vector<HostSlots>& hosts, const std::string& name) {
  const auto found = std::find_if(hosts.begin(), hosts.end(), [&](const HostSlots& host) { return host.host == name; });
  return found == hosts.end() ? nullptr : &*found;
}

void check_known(const std::vector<HostSlots>& available, const std::vector<HostSlots>& filter, const char* option) {
  for (const HostSlots& wanted : filter) {
    const HostSlots* host = find_host(available, wanted.host);
    if (host == nullptr) {
      std::vector<std::string> names;
      for (const HostSlots& known : available) names.push_back(known.host);
      ds_throw<ConfigError>("{}: unknown host \"{}\"; known: {}", option, wanted.host, fmt::join(names, ", "));
    }
    for (const std::string& slot : wanted.slots) {
      DS_CHECK_AS(ConfigError, contains(host->slots, slot), "{}: host \"{}\" has no slot {}; it has {}", option,
                  wanted.host, slot, fmt::join(host->slots, ", "));
    }
  }
}

}  // namespace

std::vector<HostSlots> parse_filter(const std::string& text, const std::string& option) {
  std::vector<HostSlots> hosts;
  for (const std::string& part : split(text, '@')) {
    const size_t colon = part.find(':');
    const std::string name = part.substr(0, colon);
    DS_CHECK_AS(ConfigError, !name.empty(), "{}: empty host in \"{}\"; expected host:slot,slot@host", option, text);
    // "a:0@a:2" says the same as "a:0,2".
    auto known = std::find_if(hosts.begin(), hosts.end(), [&](const HostSlots& host) { return host.host == name; });
    DS_CHECK_AS(ConfigError, known == hosts.end() || (colon != std::string::npos && !known->slots.empty()),
                "{}: host \"{}\" is named twice in \"{}\"", option, name, text);
    if (known == hosts.end()) known = hosts.insert(hosts.end(), HostSlots{name, {}});
    if (colon != std::string::npos) {
      for (const std::string& slot : split(part.substr(colon + 1), ',')) {
        DS_CHECK_AS(ConfigError, !slot.empty() && slot.find_first_not_of("0123456789") == std::string::npos,
                    "{}: \"{}\" in \"{}\" is not a slot number; expected host:slot,slot@host", option, slot, text);
        DS_CHECK_AS(ConfigError, !contains(known->slots, slot), "{}: slot {} is named twice in \"{}\"", option, slot,
                    text);
        known->slots.push_back(slot);
      }
    }
  }
  return hosts;
}

std::vector<HostSlots> include_resources(const std::vector<HostSlots>& available,
                                         const std::vector<HostSlots>& filter) {
  check_known(available, filter, "--include");
  std::vector<HostSlots> kept;
  for (const HostSlots& host : available) {
    const HostSlots* wanted = find_host(filter, host.host);
    if (wanted == nullptr) continue;
    HostSlots left{host.host, {}};
    for (const std::string& slot : host.slots) {
      if (wanted->slots.empty() || contains(wanted->slots, slot)) left.slots.push_back(slot);
    }
    kept.push_back(std::move(left));
  }
  return kept;
}

std::vector<HostSlots> exclude_resources(const std::vector<HostSlots>& available,
                                         const std::vector<HostSlots>& filter) {
  check_known(available, filter, "--exclude");
  std::vector<HostSlots> kept;
  for (const HostSlots& host : available) {
    const HostSlots* unwanted = find_host(filter, host.host);
    HostSlots left{host.host, {}};
    for (const std::string& slot : host.slots) {
      if (unwanted == nullptr || (!unwanted->slots.empty() && !contains(unwanted->slots, slot)))
        left.slots.push_back(slot);
    }
    if (!left.slots.empty()) kept.push_back(std::move(left));
  }
  DS_CHECK_AS(ConfigError, !kept.empty(), "--exclude leaves no slot to run on");
  return kept;
}

}  // namespace deepscale
