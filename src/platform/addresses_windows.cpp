#include <winsock2.h>
#include <ws2tcpip.h>
// After winsock2.h, which must come first.
#include <iphlpapi.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "platform/tcp.h"

namespace deepscale {
namespace {

struct InterfaceAddress {
  std::string adapter;  // "interface" is a macro of Windows' headers
  std::string address;
  bool six = false;
};

std::vector<InterfaceAddress> interface_addresses() {
  ULONG bytes = 16 * 1024;
  std::vector<char> buffer;
  ULONG status = ERROR_BUFFER_OVERFLOW;
  for (int attempt = 0; attempt < 4 && status == ERROR_BUFFER_OVERFLOW; ++attempt) {
    buffer.resize(bytes);
    status = GetAdaptersAddresses(AF_UNSPEC, GAA_FLAG_SKIP_ANYCAST | GAA_FLAG_SKIP_MULTICAST | GAA_FLAG_SKIP_DNS_SERVER,
                                  nullptr, reinterpret_cast<IP_ADAPTER_ADDRESSES*>(buffer.data()), &bytes);
  }
  std::vector<InterfaceAddress> found;
  if (status != NO_ERROR) return found;
  for (auto* adapter = reinterpret_cast<IP_ADAPTER_ADDRESSES*>(buffer.data()); adapter != nullptr;
       adapter = adapter->Next) {
    if (adapter->OperStatus != IfOperStatusUp) continue;
    for (auto* entry = adapter->FirstUnicastAddress; entry != nullptr; entry = entry->Next) {
      const int family = entry->Address.lpSockaddr->sa_family;
      if (family == AF_INET6 &&
          IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<sockaddr_in6*>(entry->Address.lpSockaddr)->sin6_addr))
        continue;  // means something only with an interface
      char text[NI_MAXHOST] = {};
      if (getnameinfo(entry->Address.lpSockaddr, entry->Address.iSockaddrLength, text, sizeof(text), nullptr, 0,
                      NI_NUMERICHOST) != 0)
        continue;
      found.push_back({adapter->AdapterName, text, family == AF_INET6});
    }
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
    if (entry.address == address) return entry.adapter;
  }
  return {};
}

bool has_interface(const std::string& name) {
  const auto all = interface_addresses();
  return std::any_of(all.begin(), all.end(), [&](const InterfaceAddress& entry) { return entry.adapter == name; });
}

}  // namespace deepscale
