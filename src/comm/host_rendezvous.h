// How ranks find each other before they share memory: an all-gather of small byte strings. A torch store, a process
// group, threads or a folder can serve.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace deepscale {

/// Collective: gives every rank's argument to every rank, in rank order. May be called several times.
/// Throws CommError when a peer does not come.
using HostRendezvous = std::function<std::vector<std::string>(std::string)>;

/// Joins threads of one process. Copies share one state. Threads: any.
class ThreadRendezvous {
 public:
  explicit ThreadRendezvous(int size);
  /// The callback of one rank. It may outlive this object.
  [[nodiscard]] HostRendezvous of_rank(int rank) const;
  /// Ends every exchange under way and all later ones with a CommError that carries `cause`.
  void fail(const std::string& cause) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// Joins processes of one host through a folder of small files in runtime_folder(), named by
/// the user and `key`, which must be the same on all ranks and different for runs at the same time. Leftovers of a
/// killed run are recognised and ignored. Throws CommError from the callback after `timeout`.
HostRendezvous directory_rendezvous(const std::string& key, int rank, int size,
                                    std::chrono::milliseconds timeout = std::chrono::minutes(5));

}  // namespace deepscale
