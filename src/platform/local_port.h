// A TCP port of this machine for a run's rendezvous, claimed so that two launchers that start at the same moment do not
// choose the same one. The port itself stays unbound: rank 0 of the run binds it later.
#pragma once

#include <memory>
#include <optional>

namespace deepscale {

class LocalPort {
 public:
  /// Claims `port`, or nothing when somebody listens on it or another run has claimed it.
  static std::optional<LocalPort> claim(int port);
  /// Claims a port that the system proposes. Throws IoError when there is none.
  static LocalPort claim_any();

  int number() const { return number_; }

  LocalPort(LocalPort&&) noexcept;
  LocalPort& operator=(LocalPort&&) noexcept;
  ~LocalPort();

 private:
  LocalPort(int number, int claim_handle) : number_(number), claim_handle_(claim_handle) {}

  int number_;
  int claim_handle_;  // kept open while the claim holds; -1: none
};

}  // namespace deepscale
