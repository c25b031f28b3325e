// The socket calls of both systems under one set of names. Not for use outside src/platform.
#pragma once

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
// After winsock2.h, which must come first.
#include <mstcpip.h>

#include "base/error.h"
#else
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#endif

#include <cstdint>
#include <string>
#include <system_error>

namespace deepscale::sockets {

#ifdef _WIN32
using Native = SOCKET;
using PollEntry = WSAPOLLFD;
using OptionLength = int;
inline constexpr int kNoSignal = 0;
inline constexpr int kTimedOut = WSAETIMEDOUT;

/// Winsock must be started once per process; its end comes with the process.
inline void start() {
  static const int kStarted = [] {
    WSADATA data;
    return WSAStartup(MAKEWORD(2, 2), &data);
  }();
  DS_CHECK_AS(IoError, kStarted == 0, "Winsock cannot be started: error {}", kStarted);
}
inline int last_error() {
  return WSAGetLastError();
}
inline bool would_block(int error) {
  return error == WSAEWOULDBLOCK || error == WSAEINTR;
}
inline bool in_progress(int error) {
  return error == WSAEWOULDBLOCK || error == WSAEINPROGRESS;
}
inline void close(int64_t handle) {
  closesocket(static_cast<Native>(handle));
}
inline void make_asynchronous(int64_t handle) {
  u_long on = 1;
  ioctlsocket(static_cast<Native>(handle), FIONBIO, &on);
  SetHandleInformation(reinterpret_cast<HANDLE>(static_cast<uintptr_t>(handle)), HANDLE_FLAG_INHERIT, 0);
}
inline int poll(PollEntry* entries, size_t count, int timeout_ms) {
  return WSAPoll(entries, static_cast<ULONG>(count), timeout_ms);
}
#else
using Native = int;
using PollEntry = pollfd;
using OptionLength = socklen_t;
inline constexpr int kNoSignal = MSG_NOSIGNAL;
inline constexpr int kTimedOut = ETIMEDOUT;

inline void start() {}
inline int last_error() {
  return errno;
}
inline bool would_block(int error) {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}
inline bool in_progress(int error) {
  return error == EINPROGRESS;
}
inline void close(int64_t handle) {
  ::close(static_cast<Native>(handle));
}
inline void make_asynchronous(int64_t handle) {
  fcntl(static_cast<Native>(handle), F_SETFL, O_NONBLOCK);
  fcntl(static_cast<Native>(handle), F_SETFD, FD_CLOEXEC);
}
inline int poll(PollEntry* entries, size_t count, int timeout_ms) {
  return ::poll(entries, count, timeout_ms);
}
#endif

inline std::string error_text(int error) {
  return std::system_category().message(error);
}

template <typename T>
void set_option(int64_t handle, int level, int name, T value) {
  setsockopt(static_cast<Native>(handle), level, name, reinterpret_cast<const char*>(&value),
             static_cast<OptionLength>(sizeof(value)));
}

}  // namespace deepscale::sockets
