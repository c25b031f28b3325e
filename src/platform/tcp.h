// Lines of text over TCP, for the control messages of a run over several machines (src/launcher/control.h), and the
// network addresses of this machine. Nothing here blocks longer than the given time. A connection is used by one
// thread. Peers that vanish without a word (a pulled cable, a machine that lost power) are noticed by the kernel's
// keep-alive probes, which a machine answers even while the process is stopped or starved.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// An open socket, closed with the object.
class SocketHandle {
 public:
  SocketHandle() = default;
  explicit SocketHandle(int64_t handle) : handle_(handle) {}
  SocketHandle(SocketHandle&& other) noexcept;
  SocketHandle& operator=(SocketHandle&& other) noexcept;
  ~SocketHandle();

  int64_t get() const { return handle_; }
  bool valid() const { return handle_ >= 0; }

 private:
  int64_t handle_ = -1;
};

class TcpConnection {
 public:
  /// Connects to a numeric address or a host name. Nothing when nobody answers in time; `reason` says why.
  static std::optional<TcpConnection> connect(const std::string& address, int port, std::chrono::milliseconds timeout,
                                              std::string* reason = nullptr);

  /// From here on a peer that does not answer for this long counts as gone. At least one second.
  void set_peer_timeout(std::chrono::seconds timeout);

  /// Queues the line (which holds no line break) and sends what the system takes at once.
  void send_line(std::string_view line);
  /// Sends what is queued until the deadline; false when something is left or the peer is gone.
  bool flush(std::chrono::milliseconds timeout);

  /// The next complete line that has arrived, without its line break. Does not wait.
  std::optional<std::string> next_line();
  /// Waits until something arrives or the peer is gone.
  void wait_readable(std::chrono::milliseconds timeout) const;
  /// The peer closed the connection, does not answer any more, or sent a line of more than kMaxLineBytes; lines that
  /// came before can still be read.
  bool closed() const { return closed_; }
  /// Why closed() is true, for people.
  const std::string& closed_reason() const { return closed_reason_; }

  /// Numeric addresses of both ends; IPv4 addresses in their usual form.
  std::string local_address() const;
  std::string peer_address() const;

  static constexpr size_t kMaxLineBytes = size_t{16} << 20;

 private:
  friend class TcpListener;
  explicit TcpConnection(SocketHandle socket);
  void write_queued();
  void read_arrived();
  void close(std::string reason);

  SocketHandle socket_;
  /// Where the first line in received_ ends; npos when none is complete. Looks at every byte once.
  size_t line_end();

  std::string unsent_;
  size_t sent_ = 0;  // bytes of unsent_ that are gone already
  std::string received_;
  size_t searched_ = 0;  // bytes of received_ that hold no line end
  bool closed_ = false;
  std::string closed_reason_;
};

class TcpListener {
 public:
  /// Listens on every address of this machine, on a port that the system chooses. Throws IoError.
  TcpListener();

  int port() const { return port_; }
  /// A connection that has arrived, if any. Does not wait.
  std::optional<TcpConnection> accept();

 private:
  SocketHandle socket_;
  int port_ = 0;
};

/// Numeric addresses of this machine that others may reach (no loopback, no link-local ones), IPv4 first. A machine
/// without network has none.
std::vector<std::string> own_addresses();

/// Numeric addresses that a host name (or address) stands for; empty when it cannot be resolved. May ask a name server.
std::vector<std::string> addresses_of(const std::string& host);

/// Name of the interface that has the numeric address ("eth0"); empty when there is none.
std::string interface_of(const std::string& address);
/// Whether this machine has an interface of that name that is up.
bool has_interface(const std::string& name);

/// 127.0.0.0/8 or ::1.
bool is_loopback(const std::string& address);

}  // namespace deepscale
