// The claim is a Unix socket in the abstract name space, named after the port: it exists per network name space, as
// ports do, and the kernel gives it back whatever way the claiming process ends.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "platform/local_port.h"

namespace deepscale {
namespace {

/// Binds and listens for a moment, as c10d's TCPStore will (all addresses, address reuse). Port 0: any; -1 when
/// refused.
int probe(int port) {
  int handle = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool six = handle >= 0;
  if (!six) handle = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (handle < 0) return -1;
  const int on = 1;
  const int off = 0;
  setsockopt(handle, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in6 address6 = {};
  address6.sin6_family = AF_INET6;
  address6.sin6_port = htons(static_cast<uint16_t>(port));
  sockaddr_in address4 = {};
  address4.sin_family = AF_INET;
  address4.sin_port = htons(static_cast<uint16_t>(port));
  if (six) setsockopt(handle, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  const auto* address =
      six ? reinterpret_cast<const sockaddr*>(&address6) : reinterpret_cast<const sockaddr*>(&address4);
  const socklen_t size = six ? sizeof(address6) : sizeof(address4);
  int chosen = -1;
  if (bind(handle, address, size) == 0 && listen(handle, 1) == 0) {
    sockaddr_in6 bound = {};
    socklen_t bound_size = sizeof(bound);
    getsockname(handle, reinterpret_cast<sockaddr*>(&bound), &bound_size);
    chosen = ntohs(bound.sin6_port);  // the port lies at the same place in both address families
  }
  close(handle);
  return chosen;
}

/// A handle that holds the claim, -1 when it is taken, -2 when claims do not work here.
int claim_name(int port) {
  const int handle = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (handle < 0) return -2;
  const std::string name = fmt::format("deepscale-port-{}", port);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (bind(handle, reinterpret_cast<const sockaddr*>(&address), size) == 0) return handle;
  const bool taken = errno == EADDRINUSE;
  close(handle);
  return taken ? -1 : -2;
}

}  // namespace

std::optional<LocalPort> LocalPort::claim(int port) {
  const int handle = claim_name(port);
  if (handle == -1) return std::nullopt;
  LocalPort claimed(port, handle < 0 ? -1 : handle);
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
  ds_throw<IoError>("no free TCP port on this machine ({}); give one with --master_port", std::strerror(errno));
}

LocalPort::LocalPort(LocalPort&& other) noexcept
    : number_(other.number_), claim_handle_(std::exchange(other.claim_handle_, -1)) {}

LocalPort& LocalPort::operator=(LocalPort&& other) noexcept {
  std::swap(number_, other.number_);
  std::swap(claim_handle_, other.claim_handle_);
  return *this;
}

LocalPort::~LocalPort() {
  if (claim_handle_ >= 0) close(claim_handle_);
}

}  // namespace deepscale
