// The control channel of a run over several machines: every agent holds one TCP connection to the launcher. It carries
// one JSON object per line and nothing that is executed. Whoever connects must know the run's token.
//   agent -> launcher   hello (who and where I am), failed (a rank's failure), done (my ranks have ended)
//   launcher -> agent   go (all are there: rendezvous and places), stop
// A side whose peer is gone, closed or silent beyond the timeout, sees that as Event::kLost; this is how a machine that
// was cut off ends its ranks by itself. Threads: each object is used by one.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "launcher/agent_plan.h"
#include "launcher/launch_plan.h"
#include "launcher/supervise.h"
#include "platform/tcp.h"

namespace deepscale {

/// An agent introduces itself.
struct AgentHello {
  int index = -1;       ///< of the machine, or the rank where agents run one rank each
  std::string host;     ///< its own host name
  int64_t process = 0;  ///< of the agent
  int port = 0;         ///< a free port of its machine, for the rendezvous
};

/// What an agent needs to start its ranks.
struct AgentGo {
  std::string master_addr;
  int master_port = 0;
  RankPlace first_rank;  ///< of its ranks; the others follow
};

/// How an agent's ranks ended.
struct AgentDone {
  int code = 0;
  std::string problem;  ///< why nothing ran, or why it stopped without a rank's failure; empty: nothing to say
};

/// What the launcher hears.
struct AgentEvent {
  enum class Kind : uint8_t { kHello, kFailed, kDone, kLost };
  Kind kind = Kind::kHello;
  int index = -1;
  AgentHello hello;
  RankFailure failure;
  AgentDone done;
  std::string reason;  ///< kLost: why
};

class ControlServer {
 public:
  /// Listens. Throws IoError.
  ControlServer(std::string token, std::chrono::seconds peer_timeout);

  int port() const { return listener_.port(); }
  /// What has arrived since the last call. Does not wait. kLost comes once per agent, after its last words, and only
  /// for agents that have not said done.
  std::vector<AgentEvent> poll();
  void go(int index, const AgentGo& go);
  void stop(StopSignal signal);
  /// The address by which an agent is reached by others: its own as the launcher sees it, or, for an agent on this
  /// machine, the one that others reached this machine by.
  std::string address_of(int index) const;

 private:
  struct Peer {
    TcpConnection connection;
    int index = -1;  ///< -1: has not introduced itself
    bool finished = false;
    std::chrono::steady_clock::time_point since;
  };
  void read_peer(Peer& peer, std::vector<AgentEvent>& events);
  const Peer* find(int index) const;

  TcpListener listener_;
  std::string token_;
  std::chrono::seconds peer_timeout_;
  std::vector<Peer> peers_;
};

/// An agent's end.
class ControlClient : public RunLink {
 public:
  /// Connects to the first address of the plan that answers. Throws IoError naming those that were tried.
  explicit ControlClient(const AgentPlan& plan);

  void hello(const AgentHello& hello);
  /// Waits until the launcher says go. Nothing when it said stop or is gone (see poll and lost()).
  std::optional<AgentGo> wait_go(std::chrono::milliseconds timeout);
  void done(const AgentDone& done);

  std::optional<StopSignal> poll() override;
  void rank_failed(const RankFailure& failure) override;
  /// Why the launcher is gone; empty while it is there.
  std::string lost() const;
  /// This machine's address on the way to the launcher.
  std::string local_address() const { return connection_->local_address(); }

 private:
  void read();

  std::string token_;
  std::optional<TcpConnection> connection_;
  std::optional<AgentGo> go_;
  std::optional<StopSignal> stop_;
};

}  // namespace deepscale
