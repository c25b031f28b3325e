#include "platform/tcp.h"

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "base/error.h"
#include "platform/socket_system.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

int milliseconds_left(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1 << 30));
}

/// True when the socket is ready for the events before the timeout.
bool wait_for(int64_t handle, short events, int timeout_ms) {
  sockets::PollEntry entry = {};
  entry.fd = static_cast<sockets::Native>(handle);
  entry.events = events;
  return sockets::poll(&entry, 1, timeout_ms) > 0;
}

std::string numeric_address(const sockaddr_storage& address, sockets::OptionLength size) {
  char text[NI_MAXHOST] = {};
  if (getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) !=
      0)
    return {};
  const std::string name = text;
  constexpr std::string_view kMapped = "::ffff:";  // an IPv4 peer on a socket for both families
  return name.starts_with(kMapped) ? name.substr(kMapped.size()) : name;
}

/// Error code of the connection attempt, 0 when it stands.
int attempt(int64_t handle, const addrinfo& target, Clock::time_point deadline) {
  sockets::make_asynchronous(handle);
  const auto length = static_cast<sockets::OptionLength>(target.ai_addrlen);
  if (::connect(static_cast<sockets::Native>(handle), target.ai_addr, length) == 0) return 0;
  const int error = sockets::last_error();
  if (!sockets::in_progress(error)) return error;
  if (!wait_for(handle, POLLOUT, milliseconds_left(deadline))) return sockets::kTimedOut;
  int result = 0;
  sockets::OptionLength size = sizeof(result);
  getsockopt(static_cast<sockets::Native>(handle), SOL_SOCKET, SO_ERROR, reinterpret_cast<char*>(&result), &size);
  return result;
}

}  // namespace

SocketHandle::SocketHandle(SocketHandle&& other) noexcept : handle_(std::exchange(other.handle_, -1)) {}

SocketHandle& SocketHandle::operator=(SocketHandle&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

SocketHandle::~SocketHandle() {
  if (valid()) sockets::close(handle_);
}

TcpConnection::TcpConnection(SocketHandle socket) : socket_(std::move(socket)) {
  sockets::make_asynchronous(socket_.get());
  sockets::set_option(socket_.get(), IPPROTO_TCP, TCP_NODELAY, 1);
}

std::optional<TcpConnection> TcpConnection::connect(const std::string& address, int port, milliseconds timeout,
                                                    std::string* reason) {
  sockets::start();
  const Clock::time_point deadline = Clock::now() + timeout;
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int failed = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> targets(failed == 0 ? found : nullptr, &freeaddrinfo);
  std::string why = failed == 0 ? "no address" : "the name cannot be resolved";
  for (const addrinfo* target = targets.get(); target != nullptr; target = target->ai_next) {
    SocketHandle socket(static_cast<int64_t>(::socket(target->ai_family, target->ai_socktype, target->ai_protocol)));
    if (!socket.valid()) continue;
    const int error = attempt(socket.get(), *target, deadline);
    if (error == 0) return TcpConnection(std::move(socket));
    why = sockets::error_text(error);
  }
  if (reason != nullptr) *reason = why;
  return std::nullopt;
}

void TcpConnection::set_peer_timeout(std::chrono::seconds timeout) {
  constexpr int kProbes = 3;
  const int total_s = std::max(1, static_cast<int>(timeout.count()));
  const int step_s = std::max(1, total_s / (kProbes + 1));
#ifdef _WIN32
  tcp_keepalive values = {1, static_cast<ULONG>(step_s * 1000), static_cast<ULONG>(step_s * 1000)};
  DWORD returned = 0;
  WSAIoctl(static_cast<SOCKET>(socket_.get()), SIO_KEEPALIVE_VALS, &values, sizeof(values), nullptr, 0, &returned,
           nullptr, nullptr);
#else
  sockets::set_option(socket_.get(), SOL_SOCKET, SO_KEEPALIVE, 1);
  sockets::set_option(socket_.get(), IPPROTO_TCP, TCP_KEEPIDLE, step_s);
  sockets::set_option(socket_.get(), IPPROTO_TCP, TCP_KEEPINTVL, step_s);
  sockets::set_option(socket_.get(), IPPROTO_TCP, TCP_KEEPCNT, kProbes);
  // Also when bytes that we sent are not acknowledged (keep-alive probes only an idle connection).
  sockets::set_option(socket_.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<unsigned>(total_s) * 1000u);
#endif
}

void TcpConnection::close(std::string reason) {
  if (closed_) return;
  closed_ = true;
  closed_reason_ = std::move(reason);
}

void TcpConnection::write_queued() {
  while (sent_ < unsent_.size() && !closed_) {
    const auto wrote =
        ::send(static_cast<sockets::Native>(socket_.get()), unsent_.data() + sent_,
               static_cast<unsigned>(std::min<size_t>(unsent_.size() - sent_, 1 << 16)), sockets::kNoSignal);
    if (wrote > 0) {
      sent_ += static_cast<size_t>(wrote);
      continue;
    }
    const int error = sockets::last_error();
    if (sockets::would_block(error)) return;
    // What the peer said before it went is still to be read.
    read_arrived();
    close(sockets::error_text(error));
  }
  if (closed_) return;
  unsent_.clear();
  sent_ = 0;
}

size_t TcpConnection::line_end() {
  const size_t end = received_.find('\n', searched_);
  searched_ = end == std::string::npos ? received_.size() : end;
  return end;
}

void TcpConnection::read_arrived() {
  std::array<char, 16384> buffer;
  while (!closed_) {
    const auto got =
        ::recv(static_cast<sockets::Native>(socket_.get()), buffer.data(), static_cast<unsigned>(buffer.size()), 0);
    if (got > 0) {
      received_.append(buffer.data(), static_cast<size_t>(got));
      if (received_.size() > kMaxLineBytes && line_end() == std::string::npos) close("it sent an endless line");
      continue;
    }
    const int error = sockets::last_error();
    if (got == 0) {
      close("it closed the connection");
    } else if (sockets::would_block(error)) {
      return;
    } else {
      close(sockets::error_text(error));
    }
  }
}

void TcpConnection::send_line(std::string_view line) {
  if (closed_) return;
  unsent_.append(line);
  unsent_ += '\n';
  write_queued();
}

bool TcpConnection::flush(milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  write_queued();
  while (sent_ < unsent_.size() && !closed_ && Clock::now() < deadline) {
    wait_for(socket_.get(), POLLOUT, milliseconds_left(deadline));
    write_queued();
  }
  return sent_ == unsent_.size() && !closed_;
}

std::optional<std::string> TcpConnection::next_line() {
  write_queued();
  size_t end = line_end();
  if (end == std::string::npos) {
    read_arrived();
    end = line_end();
    if (end == std::string::npos) return std::nullopt;
  }
  std::string line = received_.substr(0, end);
  received_.erase(0, end + 1);
  searched_ = 0;
  return line;
}

void TcpConnection::wait_readable(milliseconds timeout) const {
  if (closed_ || received_.find('\n', searched_) != std::string::npos) return;
  wait_for(socket_.get(), POLLIN, static_cast<int>(timeout.count()));
}

std::string TcpConnection::local_address() const {
  sockaddr_storage address = {};
  sockets::OptionLength size = sizeof(address);
  getsockname(static_cast<sockets::Native>(socket_.get()), reinterpret_cast<sockaddr*>(&address), &size);
  return numeric_address(address, size);
}

std::string TcpConnection::peer_address() const {
  sockaddr_storage address = {};
  sockets::OptionLength size = sizeof(address);
  getpeername(static_cast<sockets::Native>(socket_.get()), reinterpret_cast<sockaddr*>(&address), &size);
  return numeric_address(address, size);
}

TcpListener::TcpListener() {
  sockets::start();
  // One socket for both families; machines without IPv6 get an IPv4 one.
  for (const int family : {AF_INET6, AF_INET}) {
    socket_ = SocketHandle(static_cast<int64_t>(::socket(family, SOCK_STREAM, 0)));
    if (!socket_.valid()) continue;
    sockaddr_storage address = {};
    address.ss_family = static_cast<decltype(address.ss_family)>(family);
    if (family == AF_INET6) sockets::set_option(socket_.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    const auto native = static_cast<sockets::Native>(socket_.get());
    const sockets::OptionLength size = family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    if (bind(native, reinterpret_cast<const sockaddr*>(&address), size) != 0 || listen(native, SOMAXCONN) != 0)
      continue;
    sockets::make_asynchronous(socket_.get());
    sockets::OptionLength bound = sizeof(address);
    getsockname(native, reinterpret_cast<sockaddr*>(&address), &bound);
    // The port lies at the same place in both families.
    port_ = ntohs(reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
    return;
  }
  ds_throw<IoError>("cannot listen for the machines of the run: {}", sockets::error_text(sockets::last_error()));
}

std::vector<std::string> addresses_of(const std::string& host) {
  sockets::start();
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return {};
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    char text[NI_MAXHOST] = {};
    const auto size = static_cast<sockets::OptionLength>(entry->ai_addrlen);
    if (getnameinfo(entry->ai_addr, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0)
      addresses.emplace_back(text);
  }
  return addresses;
}

std::optional<TcpConnection> TcpListener::accept() {
  SocketHandle socket(static_cast<int64_t>(::accept(static_cast<sockets::Native>(socket_.get()), nullptr, nullptr)));
  if (!socket.valid()) return std::nullopt;
  return TcpConnection(std::move(socket));
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

}  // namespace deepscale
