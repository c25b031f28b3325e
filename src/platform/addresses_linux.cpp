#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "platform/tcp.h"

namespace deepscale {
namespace {

struct InterfaceAddress {
  std::string interface;
  std::string address;
  bool six = false;
};

std::vector<InterfaceAddress> interface_addresses() {
  ifaddrs* first = nullptr;
  if (getifaddrs(&first) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(first, &freeifaddrs);
  std::vector<InterfaceAddress> found;
  for (const ifaddrs* entry = first; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const int family = entry->ifa_addr->sa_family;
    char text[INET6_ADDRSTRLEN] = {};
    if (family == AF_INET) {
      inet_ntop(family, &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr, text, sizeof(text));
    } else if (family == AF_INET6) {
      const auto* six = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      if (IN6_IS_ADDR_LINKLOCAL(&six->sin6_addr)) continue;  // means something only with an interface
      inet_ntop(family, &six->sin6_addr, text, sizeof(text));
    } else {
      continue;
    }
    found.push_back({entry->ifa_name, text, family == AF_INET6});
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const InterfaceAddress& a, const InterfaceAddress& b) { return a.six < b.six; });
  return found;
}

}  // namespace

std::vector<std::string> own_addresses() {
  std::vector<std::string> addresses;
  for (const InterfaceAddress& entry : interface_addresses()) {
    if (!is_loopback(entry.address)) addresses.push_back(entry.address);
  }
  return addresses;
}

std::string interface_of(const std::string& address) {
  for (const InterfaceAddress& entry : interface_addresses()) {
    if (entry.address == address) return entry.interface;
  }
  return {};
}

bool has_interface(const std::string& name) {
  const auto all = interface_addresses();
  return std::any_of(all.begin(), all.end(), [&](const InterfaceAddress& entry) { return entry.interface == name; });
}

}  // namespace deepscale
