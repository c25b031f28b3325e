// The claim is a named mutex object: it exists per terminal session, which ranks of one run share, and the system
// removes it whatever way the claiming process ends.
#include <winsock2.h>
#include <ws2tcpip.h>

#include <utility>

#include "base/error.h"
#include "platform/local_port.h"
#include "platform/text_windows.h"

namespace deepscale {
namespace {

/// Winsock, for as long as this lives.
class Sockets {
 public:
  Sockets() { started_ = WSAStartup(MAKEWORD(2, 2), &facts_) == 0; }
  ~Sockets() {
    if (started_) WSACleanup();
  }
  Sockets(const Sockets&) = delete;
  Sockets& operator=(const Sockets&) = delete;

 private:
  WSADATA facts_ = {};
  bool started_ = false;
};

/// Binds and listens for a moment. Port 0: any; -1 when refused.
int probe_family(int family, int port) {
  const SOCKET handle = socket(family, SOCK_STREAM, IPPROTO_TCP);
  if (handle == INVALID_SOCKET) return -1;
  // Without it, Windows lets two programs listen on one port.
  const BOOL on = TRUE;
  setsockopt(handle, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, reinterpret_cast<const char*>(&on), sizeof(on));
  sockaddr_in6 address6 = {};
  address6.sin6_family = AF_INET6;
  address6.sin6_port = htons(static_cast<u_short>(port));
  sockaddr_in address4 = {};
  address4.sin_family = AF_INET;
  address4.sin_port = htons(static_cast<u_short>(port));
  const bool six = family == AF_INET6;
  const DWORD off = 0;
  if (six) setsockopt(handle, IPPROTO_IPV6, IPV6_V6ONLY, reinterpret_cast<const char*>(&off), sizeof(off));
  const auto* address =
      six ? reinterpret_cast<const sockaddr*>(&address6) : reinterpret_cast<const sockaddr*>(&address4);
  int chosen = -1;
  if (bind(handle, address, six ? sizeof(address6) : sizeof(address4)) == 0 && listen(handle, 1) == 0) {
    sockaddr_in6 bound = {};
    int bound_size = sizeof(bound);
    getsockname(handle, reinterpret_cast<sockaddr*>(&bound), &bound_size);
    chosen = ntohs(bound.sin6_port);  // the port lies at the same place in both address families
  }
  closesocket(handle);
  return chosen;
}

int probe(int port) {
  const Sockets sockets;
  const SOCKET six = socket(AF_INET6, SOCK_STREAM, IPPROTO_TCP);
  if (six == INVALID_SOCKET) return probe_family(AF_INET, port);
  closesocket(six);
  return probe_family(AF_INET6, port);
}

/// A handle that holds the claim, null when it is taken.
HANDLE claim_name(int port) {
  HANDLE const handle = CreateMutexW(nullptr, FALSE, to_wide(fmt::format("Local\\deepscale-port-{}", port)).c_str());
  if (handle == nullptr || GetLastError() != ERROR_ALREADY_EXISTS) return handle;
  CloseHandle(handle);
  return nullptr;
}

}  // namespace

// Kernel handles have 32 significant bits on every Windows, so an int holds one.

std::optional<LocalPort> LocalPort::claim(int port) {
  HANDLE const handle = claim_name(port);
  if (handle == nullptr) return std::nullopt;
  LocalPort claimed(port, static_cast<int>(reinterpret_cast<intptr_t>(handle)));
  if (probe(port) != port) return std::nullopt;
  return claimed;
}

LocalPort LocalPort::claim_any() {
  constexpr int kAttempts = 16;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const int port = probe(0);
    if (port <= 0) break;
    if (auto claimed = claim(port)) return std::move(*claimed);
  }
  ds_throw<IoError>("no free TCP port on this machine; give one with --master_port");
}

LocalPort::LocalPort(LocalPort&& other) noexcept
    : number_(other.number_), claim_handle_(std::exchange(other.claim_handle_, -1)) {}

LocalPort& LocalPort::operator=(LocalPort&& other) noexcept {
  std::swap(number_, other.number_);
  std::swap(claim_handle_, other.claim_handle_);
  return *this;
}

LocalPort::~LocalPort() {
  if (claim_handle_ >= 0) CloseHandle(reinterpret_cast<HANDLE>(static_cast<intptr_t>(claim_handle_)));
}

}  // namespace deepscale
